//! An NVIDIA GPU, through the driver API that is found at run time.
use super::cuda::{ALIGN, Error, Result};
use super::device::{self, Unavailable};
use super::driver::{Boxed, Driver, Extent, Graph, Kernel, Moment, Pinned, TensorMap, out_of_memory};
use super::kernels;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute, CUevent_flags, CUfunction_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

/// Dynamic shared memory that a kernel gets without asking, in bytes.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

/// One GPU, opened.
pub struct Gpu {
    context: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    processors: usize,
    hopper: bool,
    /// Per image of kernels: not looked at yet, without code for this device, or loaded.
    modules: RefCell<Vec<Module>>,
    functions: RefCell<Vec<CudaFunction>>,
    graphs: RefCell<Vec<Option<CudaGraph>>>,
    moments: RefCell<Vec<CudaEvent>>,
}

#[derive(Clone)]
enum Module {
    Unread,
    NoCode,
    Loaded(Arc<CudaModule>),
}

fn failed(doing: impl Into<String>) -> impl FnOnce(DriverError) -> Error {
    let doing = doing.into();
    move |error| {
        let text = |s: std::result::Result<&std::ffi::CStr, _>| {
            s.map_or_else(|_| "unknown error".to_owned(), |s| s.to_string_lossy().into_owned())
        };
        Error::Failed { doing, what: format!("{}: {}", text(error.error_name()), text(error.error_string())) }
    }
}

impl Gpu {
    /// Opens device number `ordinal`.
    ///
    /// # Errors
    /// A build without kernels, a machine without a driver or without that device.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        if kernels::IMAGES.is_empty() {
            return Err(Error::NoKernels { searched: kernels::SEARCHED });
        }
        let devices = device::cuda()?.devices.len();
        if ordinal >= devices {
            return Err(Unavailable::NoSuchDevice { ordinal, devices }.into());
        }
        let open = || -> std::result::Result<Gpu, DriverError> {
            let context = CudaContext::new(ordinal)?;
            // SAFETY: all work is ordered by this program: one stream computes, and the stream of copies waits for it
            // and is waited for by name.
            unsafe { context.disable_event_tracking() };
            let (compute, copies) = (context.new_stream()?, context.new_stream()?);
            let processors =
                context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            // The kernels of sm_90a, which run on 9.0 alone, are in every build.
            let hopper = context.compute_capability()? == (9, 0);
            Ok(Gpu {
                context,
                compute,
                copies,
                processors: processors as usize,
                hopper,
                modules: RefCell::new(vec![Module::Unread; kernels::IMAGES.len()]),
                functions: RefCell::default(),
                graphs: RefCell::default(),
                moments: RefCell::default(),
            })
        };
        open().map_err(failed(format!("opening CUDA device {ordinal}")))
    }

    /// The kernel, from the first image that has it.
    fn find(&self, name: &'static str) -> Result<CudaFunction> {
        let mut no_code = false;
        for (module, (file, image)) in self.modules.borrow_mut().iter_mut().zip(kernels::IMAGES) {
            if let Module::Unread = module {
                *module = match self.context.load_module(Ptx::from_binary(image.to_vec())) {
                    Ok(loaded) => Module::Loaded(loaded),
                    Err(DriverError(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)) => Module::NoCode,
                    Err(error) => return Err(failed(format!("loading the kernels of {file}"))(error)),
                };
            }
            match module {
                Module::Loaded(module) => {
                    if let Ok(function) = module.load_function(name) {
                        return Ok(function);
                    }
                }
                Module::NoCode | Module::Unread => no_code = true,
            }
        }
        if no_code { Err(self.no_code()) } else { Err(Error::NoKernel { name }) }
    }

    fn no_code(&self) -> Error {
        let (major, minor) = self.context.compute_capability().unwrap_or_default();
        Error::NoCodeFor {
            device: self.name(),
            capability: format!("{major}.{minor}"),
            built: kernels::ARCHITECTURES,
            wanted: format!("{major}{minor}"),
        }
    }
}

impl Driver for Gpu {
    fn name(&self) -> String {
        self.context.name().unwrap_or_else(|_| "CUDA device".to_owned())
    }
    fn processors(&self) -> usize {
        self.processors
    }
    fn hopper(&self) -> bool {
        self.hopper
    }
    fn tensor_map(&self, matrix: &Boxed) -> Result<TensorMap> {
        let (extent, stride, of_box) = matrix.encoded();
        let every = vec![1_u32; extent.len()];
        let mut map = TensorMap([0; 128]);
        // SAFETY: the map is as large and aligned as a CUtensorMap; the arrays are as long as the rank asks for.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                extent.len() as u32,
                matrix.at as *mut c_void,
                extent.as_ptr(),
                stride.as_ptr(),
                of_box.as_ptr(),
                every.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(failed(format!("describing {matrix:?} to TMA")))?;
        Ok(map)
    }
    fn memory(&self) -> Result<[usize; 2]> {
        let (free, total) = self.context.mem_get_info().map_err(failed("asking how much memory is free"))?;
        Ok([free, total])
    }
    fn alloc(&self, bytes: usize) -> Result<u64> {
        // SAFETY: the size is not zero; whoever asks frees the address once.
        match unsafe { result::malloc_sync(bytes.max(ALIGN)) } {
            Ok(at) => Ok(at),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(out_of_memory(self, bytes)),
            Err(error) => Err(failed(format!("allocating {bytes} bytes"))(error)),
        }
    }
    unsafe fn free(&self, at: u64) {
        // An error has nowhere to go here; one of a launch before comes back from the next call too.
        let _ = self.synchronise();
        let _ = self.finish_sending();
        // SAFETY: the address is the caller's to vouch for, and nothing runs any more.
        let _ = unsafe { result::free_sync(at) };
    }
    fn pin(&self, bytes: usize) -> Result<*mut u8> {
        // SAFETY: plain page-locked memory (no flags), as large as what is zeroed.
        unsafe {
            let at = result::malloc_host(bytes.max(1), 0)
                .map_err(failed(format!("page-locking {bytes} bytes of host memory")))?;
            std::ptr::write_bytes(at.cast::<u8>(), 0, bytes);
            Ok(at.cast())
        }
    }
    unsafe fn unpin(&self, at: *mut u8, _: usize) {
        let _ = self.finish_sending();
        // SAFETY: the memory is the caller's to vouch for, and nothing is sent from it any more.
        let _ = unsafe { result::free_host(at.cast()) };
    }
    fn upload(&self, at: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the range on the device is the caller's to vouch for; memory that is not page-locked has been read
        // when the call returns.
        unsafe { result::memcpy_htod_async(at, from, self.compute.cu_stream()) }
            .map_err(failed(format!("copying {} bytes to the device", from.len())))
    }
    fn download(&self, at: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: as in `upload`; `to` is complete after the synchronisation below.
        unsafe { result::memcpy_dtoh_async(to, at, self.compute.cu_stream()) }
            .map_err(failed(format!("copying {} bytes from the device", to.len())))?;
        self.synchronise()
    }
    fn fill(&self, at: u64, byte: u8, len: usize) -> Result<()> {
        // SAFETY: the range is the caller's to vouch for.
        unsafe { result::memset_d8_async(at, byte, len, self.compute.cu_stream()) }
            .map_err(failed(format!("filling {len} bytes")))
    }
    fn copy(&self, from: u64, to: u64, len: usize) -> Result<()> {
        // SAFETY: both ranges are the caller's to vouch for.
        unsafe { result::memcpy_dtod_async(to, from, len, self.compute.cu_stream()) }
            .map_err(failed(format!("copying {len} bytes on the device")))
    }
    fn send(&self, from: &Pinned, len: usize, to: u64, after: Moment) -> Result<()> {
        let doing = || format!("sending {len} bytes to the device");
        self.copies.wait(&self.moments.borrow()[after.0]).map_err(failed(doing()))?;
        // SAFETY: the memory is page-locked; it is changed after `finish_sending` only, and `unpin` waits for that too;
        // the range on the device is the caller's to vouch for.
        unsafe { result::memcpy_htod_async(to, &from.bytes()[..len], self.copies.cu_stream()) }
            .map_err(failed(doing()))
    }
    fn await_sent(&self) -> Result<()> {
        self.compute.join(&self.copies).map_err(failed("waiting for copies"))
    }
    fn finish_sending(&self) -> Result<()> {
        self.copies.synchronize().map_err(failed("waiting for copies"))
    }
    fn kernel(&self, name: &'static str) -> Result<Kernel> {
        let function = self.find(name)?;
        let mut parameters = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: both pointers are to live integers; the function is loaded.
            let answer = unsafe {
                sys::cuFuncGetParamInfo(
                    function.cu_function(),
                    parameters.len(),
                    &raw mut offset,
                    &raw mut size,
                )
            };
            match answer {
                CUresult::CUDA_SUCCESS => parameters.push(size),
                CUresult::CUDA_ERROR_INVALID_VALUE => break, // past the last
                other => {
                    return Err(failed(format!("asking for the parameters of `{name}`"))(DriverError(other)));
                }
            }
        }
        // What the card can give, less what the kernel has of its own.
        let limit = self
            .context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .and_then(|most| Ok(most - function.shared_size_bytes()?))
            .map_err(failed(format!("asking for the shared memory of `{name}`")))?;
        if limit > SHARED_BY_DEFAULT as i32 {
            function
                .set_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit)
                .map_err(failed(format!("giving `{name}` {limit} bytes of shared memory")))?;
        }
        let mut functions = self.functions.borrow_mut();
        functions.push(function);
        Ok(Kernel { name, handle: functions.len() - 1, parameters })
    }
    unsafe fn launch(&self, kernel: &Kernel, extent: Extent, args: &mut [*mut c_void]) -> Result<()> {
        let Extent { grid: [x, y, z], block, shared } = extent;
        let function = self.functions.borrow()[kernel.handle].cu_function();
        // SAFETY: the function is loaded; the arguments are the caller's to vouch for.
        unsafe {
            result::launch_kernel(function, (x, y, z), (block, 1, 1), shared, self.compute.cu_stream(), args)
        }
        .map_err(failed(format!("launching `{}` with {extent:?}", kernel.name)))
    }
    fn begin_capture(&self) -> Result<()> {
        self.compute
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(failed("beginning to capture a graph"))
    }
    fn end_capture(&self) -> Result<Graph> {
        let graph = self
            .compute
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .map_err(failed("capturing a graph"))?
            .ok_or_else(|| Error::Failed {
                doing: "capturing a graph".to_owned(),
                what: "nothing was launched".to_owned(),
            })?;
        graph.upload().map_err(failed("uploading a graph"))?;
        let mut graphs = self.graphs.borrow_mut();
        graphs.push(Some(graph));
        Ok(Graph(graphs.len() - 1))
    }
    fn replay(&self, graph: Graph) -> Result<()> {
        let graphs = self.graphs.borrow();
        let graph = graphs[graph.0].as_ref().expect("a graph is replayed before it is released");
        graph.launch().map_err(failed("replaying a graph"))
    }
    fn release(&self, graph: Graph) {
        self.graphs.borrow_mut()[graph.0] = None;
    }
    fn mark(&self) -> Result<Moment> {
        let event = self
            .compute
            .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
            .map_err(failed("recording an event"))?;
        let mut moments = self.moments.borrow_mut();
        moments.push(event);
        Ok(Moment(moments.len() - 1))
    }
    fn mark_again(&self, moment: Moment) -> Result<()> {
        self.moments.borrow()[moment.0].record(&self.compute).map_err(failed("recording an event"))
    }
    fn microseconds(&self, from: Moment, to: Moment) -> Result<f64> {
        let moments = self.moments.borrow();
        moments[to.0].synchronize().map_err(failed("waiting for an event"))?;
        let ms = moments[from.0].elapsed_ms(&moments[to.0]).map_err(failed("reading a time"))?;
        Ok(f64::from(ms) * 1e3)
    }
    fn synchronise(&self) -> Result<()> {
        self.compute.synchronize().map_err(failed("waiting for the device"))
    }
}
