//! The emulator: the same kernels, compiled for the host, with a fiber per CUDA thread (kernels/emu). Slow and strict:
//! it finds races, reads beyond the end and misused barriers that a GPU may let pass.
use super::cuda::{ALIGN, Error, Result};
use super::driver::{Boxed, Driver, Extent, Graph, Kernel, Moment, Pinned, TensorMap, out_of_memory};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

unsafe extern "C" {
    fn emu_configure(workers: u32, seed: u64, async_mode: c_int);
    fn emu_parameters(name: *const c_char, sizes: *mut usize, most: usize) -> c_int;
    fn emu_tensor_map(
        map: *mut TensorMap,
        element_bytes: u32,
        rank: u32,
        tensor: *const c_void,
        extent: *const u64,
        stride: *const u64,
        of_box: *const u32,
        swizzle_128b: u32,
    ) -> i32;
    fn emu_launch(
        name: *const c_char,
        grid: *const u32,
        block: u32,
        shared: usize,
        args: *mut *mut c_void,
        error: *mut c_char,
        error_len: usize,
    ) -> c_int;
}

/// When asynchronous copies and products take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Async {
    /// As soon as they are issued.
    Early,
    /// Not before they are waited for.
    Late,
    /// At some moment between.
    Random,
}

/// How threads take turns, and copies happen.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// 0: threads in order; odd: evenly at random; even: by priorities that change now and then.
    pub seed: u64,
    /// When asynchronous work takes effect.
    pub mode: Async,
    /// Threads of the host that run blocks.
    pub workers: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule { seed: 0, mode: Async::Late, workers: 2 }
    }
}

/// What the emulated device says of itself: few multiprocessors, so that kernels whose blocks take several rows or
/// tiles each do so in small cases too.
const PROCESSORS: usize = 4;

/// The memory the emulated device has, unless told otherwise, in bytes.
const MEMORY: usize = 4 << 30;

/// Kernels take at most this many parameters.
const PARAMETERS: usize = 64;

/// An emulated device.
pub struct Emulator {
    schedule: Schedule,
    hopper: bool,
    memory: usize,
    names: RefCell<Vec<CString>>,
    /// The size of what was allocated, by address.
    allocated: RefCell<HashMap<u64, Layout>>,
    /// The launches captured so far, while a capture is going on.
    capturing: RefCell<Option<Vec<Captured>>>,
    graphs: RefCell<Vec<Vec<Captured>>>,
    moments: RefCell<Vec<Instant>>,
}

#[derive(Clone)]
struct Captured {
    kernel: usize,
    extent: Extent,
    args: Vec<Vec<u8>>,
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), ALIGN).expect("sizes are those of tensors")
}

/// The schedule is the emulator's, not a launch's: one at a time.
static LAUNCHES: Mutex<()> = Mutex::new(());

fn one_at_a_time() -> MutexGuard<'static, ()> {
    LAUNCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Emulator {
    /// A device whose threads take turns by `schedule`.
    pub fn new(schedule: Schedule) -> Self {
        Emulator {
            schedule,
            hopper: true,
            memory: MEMORY,
            names: RefCell::default(),
            allocated: RefCell::default(),
            capturing: RefCell::default(),
            graphs: RefCell::default(),
            moments: RefCell::default(),
        }
    }
    /// The same as a device of an earlier architecture, to which kernels for Hopper are not offered.
    #[must_use]
    pub fn before_hopper(self) -> Self {
        Emulator { hopper: false, ..self }
    }
    /// The same with another amount of memory, in bytes.
    #[must_use]
    pub fn with_memory(self, memory: usize) -> Self {
        Emulator { memory, ..self }
    }
    /// The kernels that it has been asked for.
    pub fn kernels(&self) -> Vec<String> {
        self.names.borrow().iter().map(|name| name.to_string_lossy().into_owned()).collect()
    }
    fn used(&self) -> usize {
        self.allocated.borrow().values().map(Layout::size).sum()
    }
    fn run(&self, kernel: usize, extent: Extent, args: &mut [*mut c_void]) -> Result<()> {
        let name = self.names.borrow()[kernel].clone();
        let mut message = [0_u8; 1024];
        let _turn = one_at_a_time();
        let Schedule { seed, mode, workers } = self.schedule;
        // SAFETY: all pointers are to live values of the sizes given; the arguments are the caller's to vouch for.
        let failed = unsafe {
            emu_configure(workers, seed, mode as c_int);
            emu_launch(
                name.as_ptr(),
                extent.grid.as_ptr(),
                extent.block,
                extent.shared as usize,
                args.as_mut_ptr(),
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if failed == 0 {
            return Ok(());
        }
        let end = message.iter().position(|&c| c == 0).unwrap_or(message.len());
        Err(Error::Failed {
            doing: format!("running `{}`", name.to_string_lossy()),
            what: String::from_utf8_lossy(&message[..end]).into_owned(),
        })
    }
}

impl Driver for Emulator {
    fn name(&self) -> String {
        "emulated device".to_owned()
    }
    fn processors(&self) -> usize {
        PROCESSORS
    }
    fn hopper(&self) -> bool {
        self.hopper
    }
    fn tensor_map(&self, matrix: &Boxed) -> Result<TensorMap> {
        let (extent, stride, of_box) = matrix.encoded();
        let (rank, tensor) = (extent.len() as u32, matrix.at as *const c_void);
        let mut map = TensorMap([0; 128]);
        let (extent, stride, of_box) = (extent.as_ptr(), stride.as_ptr(), of_box.as_ptr());
        // SAFETY: the arrays are as long as the rank asks for; the map has room for one.
        let refused = unsafe { emu_tensor_map(&raw mut map, 2, rank, tensor, extent, stride, of_box, 1) };
        if refused == 0 {
            return Ok(map);
        }
        Err(Error::Failed { doing: format!("describing {matrix:?} to TMA"), what: "refused".to_owned() })
    }
    fn memory(&self) -> Result<[usize; 2]> {
        Ok([self.memory - self.used(), self.memory])
    }
    fn alloc(&self, bytes: usize) -> Result<u64> {
        if self.used() + bytes > self.memory {
            return Err(out_of_memory(self, bytes));
        }
        let layout = layout(bytes);
        // SAFETY: the layout's size is not zero.
        let at = unsafe { alloc_zeroed(layout) } as u64;
        if at == 0 {
            return Err(out_of_memory(self, bytes));
        }
        self.allocated.borrow_mut().insert(at, layout);
        Ok(at)
    }
    unsafe fn free(&self, at: u64) {
        let layout = self.allocated.borrow_mut().remove(&at).expect("what is freed was allocated");
        // SAFETY: allocated with this layout, and removed from what there is to free.
        unsafe { dealloc(at as *mut u8, layout) };
    }
    fn pin(&self, bytes: usize) -> Result<*mut u8> {
        // SAFETY: the layout's size is not zero.
        let at = unsafe { alloc_zeroed(layout(bytes)) };
        if at.is_null() { Err(out_of_memory(self, bytes)) } else { Ok(at) }
    }
    unsafe fn unpin(&self, at: *mut u8, bytes: usize) {
        // SAFETY: the caller vouches that `pin` allocated it with this layout.
        unsafe { dealloc(at, layout(bytes)) };
    }
    fn upload(&self, at: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the range is the caller's to vouch for.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), at as *mut u8, from.len()) };
        Ok(())
    }
    fn download(&self, at: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the range is the caller's to vouch for.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }
    fn fill(&self, at: u64, byte: u8, len: usize) -> Result<()> {
        // SAFETY: the range is the caller's to vouch for.
        unsafe { std::ptr::write_bytes(at as *mut u8, byte, len) };
        Ok(())
    }
    fn copy(&self, from: u64, to: u64, len: usize) -> Result<()> {
        // SAFETY: both ranges are the caller's to vouch for.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len) };
        Ok(())
    }
    fn send(&self, from: &Pinned, len: usize, to: u64, _: Moment) -> Result<()> {
        self.upload(to, &from.bytes()[..len])
    }
    fn await_sent(&self) -> Result<()> {
        Ok(())
    }
    fn finish_sending(&self) -> Result<()> {
        Ok(())
    }
    fn kernel(&self, name: &'static str) -> Result<Kernel> {
        let text = CString::new(name).expect("names of kernels have no zero byte");
        let mut sizes = [0; PARAMETERS];
        // SAFETY: the name ends in a zero byte, and at most as many sizes are written as there is room for.
        let count = unsafe { emu_parameters(text.as_ptr(), sizes.as_mut_ptr(), PARAMETERS) };
        let Ok(count) = usize::try_from(count) else { return Err(Error::NoKernel { name }) };
        let mut names = self.names.borrow_mut();
        names.push(text);
        Ok(Kernel { name, handle: names.len() - 1, parameters: sizes[..count].to_vec() })
    }
    unsafe fn launch(&self, kernel: &Kernel, extent: Extent, args: &mut [*mut c_void]) -> Result<()> {
        if let Some(captured) = &mut *self.capturing.borrow_mut() {
            let copy = |(&arg, &size): (&*mut c_void, &usize)| {
                // SAFETY: an argument is as large as its parameter, which the caller vouches for.
                unsafe { std::slice::from_raw_parts(arg.cast::<u8>().cast_const(), size) }.to_vec()
            };
            let args = args.iter().zip(&kernel.parameters).map(copy).collect();
            captured.push(Captured { kernel: kernel.handle, extent, args });
            return Ok(());
        }
        self.run(kernel.handle, extent, args)
    }
    fn begin_capture(&self) -> Result<()> {
        self.capturing.replace(Some(Vec::new()));
        Ok(())
    }
    fn end_capture(&self) -> Result<Graph> {
        let mut graphs = self.graphs.borrow_mut();
        graphs.push(self.capturing.take().unwrap_or_default());
        Ok(Graph(graphs.len() - 1))
    }
    fn replay(&self, graph: Graph) -> Result<()> {
        for launch in &self.graphs.borrow()[graph.0] {
            // A struct by value may ask for any alignment up to that of a tensor map.
            let mut args: Vec<Aligned> = launch.args.iter().map(|bytes| Aligned::copy(bytes)).collect();
            let mut args: Vec<*mut c_void> = args.iter_mut().map(|a| (&raw mut a.0).cast()).collect();
            self.run(launch.kernel, launch.extent, &mut args)?;
        }
        Ok(())
    }
    fn release(&self, graph: Graph) {
        self.graphs.borrow_mut()[graph.0].clear();
    }
    fn mark(&self) -> Result<Moment> {
        let mut moments = self.moments.borrow_mut();
        moments.push(Instant::now());
        Ok(Moment(moments.len() - 1))
    }
    fn mark_again(&self, moment: Moment) -> Result<()> {
        self.moments.borrow_mut()[moment.0] = Instant::now();
        Ok(())
    }
    fn microseconds(&self, from: Moment, to: Moment) -> Result<f64> {
        let moments = self.moments.borrow();
        Ok(moments[to.0].duration_since(moments[from.0]).as_secs_f64() * 1e6)
    }
    fn synchronise(&self) -> Result<()> {
        Ok(())
    }
}

/// An argument's bytes, aligned for any type.
#[repr(C, align(128))]
struct Aligned([u8; 4096]);

impl Aligned {
    fn copy(bytes: &[u8]) -> Self {
        let mut aligned = Aligned([0; 4096]);
        aligned.0[..bytes.len()].copy_from_slice(bytes);
        aligned
    }
}
