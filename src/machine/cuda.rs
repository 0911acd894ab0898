//! How operations reach a GPU: tensors by address, kernels by name, launches checked against the compiled kernels.
use super::cpu::{Permit, Slot};
use super::device::Unavailable;
use super::driver::{Boxed, Driver, Extent, Kernel, TensorMap};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::rc::Rc;

/// What can go wrong on a CUDA machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This binary was built where no nvcc was found.
    #[error(
        "this build has no GPU kernels: nvcc was not found when it was built. Searched: {searched}.\n\
         Install the wheels of nvcc beside Cargo.toml and build again:\n    \
         pip install --no-deps --target .cuda -r requirements-cuda.txt"
    )]
    NoKernels {
        /// Where it was looked for.
        searched: &'static str,
    },
    /// No driver, or no device.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The binary holds no code for the device.
    #[error(
        "{device} has compute capability {capability}, and the kernels of this build are for {built}; build with \
         GYRUS_CUDA_ARCHS=\"80;90a;{wanted}\""
    )]
    NoCodeFor {
        /// The device's name.
        device: String,
        /// Its compute capability.
        capability: String,
        /// What the kernels were compiled for.
        built: &'static str,
        /// What to compile for.
        wanted: String,
    },
    /// No such kernel in kernels/*.cu.
    #[error("there is no kernel `{name}`")]
    NoKernel {
        /// The name.
        name: &'static str,
    },
    /// An operation that only a host computes.
    #[error("the operation {op} has no CUDA kernel; use --device cpu")]
    NoKernelOf {
        /// The operation.
        op: &'static str,
    },
    /// A launch that does not fit the compiled kernel.
    #[error("kernel `{kernel}` takes parameters of {wanted:?} bytes, but was given {given:?}")]
    Arguments {
        /// The kernel.
        kernel: &'static str,
        /// Bytes of its parameters.
        wanted: Vec<usize>,
        /// Bytes of the arguments.
        given: Vec<usize>,
    },
    /// The device's memory is too small.
    #[error(
        "out of memory on {device}: {} were asked for{purpose}, {} of {} are free",
        mib(*asked), mib(*free), mib(*total)
    )]
    OutOfMemory {
        /// Bytes asked for.
        asked: usize,
        /// What for, as a part of the sentence; empty where it is not known.
        purpose: String,
        /// The part of them that grows with the batch.
        activations: usize,
        /// Bytes free.
        free: usize,
        /// Bytes there are.
        total: usize,
        /// The device's name.
        device: String,
    },
    /// A kernel did something it must not, or a driver's call failed.
    #[error("{doing}: {what}")]
    Failed {
        /// What was being done.
        doing: String,
        /// What the driver says.
        what: String,
    },
}

/// What a CUDA machine's calls return.
pub type Result<T> = std::result::Result<T, Error>;

/// A number of bytes, for people.
pub fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// An address on the device, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ptr(pub u64);

impl Ptr {
    /// No address: an optional tensor that is absent.
    pub const NULL: Ptr = Ptr(0);
    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Ptr {
        Ptr(self.0 + bytes as u64)
    }
}

/// An argument of a kernel.
#[derive(Clone, Debug)]
pub enum Arg {
    /// A pointer.
    Ptr(Ptr),
    /// An `int`.
    Int(i32),
    /// A `float`.
    Float(f32),
    /// A struct by value.
    Bytes(Vec<u8>),
}

impl Arg {
    /// A `#[repr(C)]` struct, by value.
    pub fn bytes(value: &impl bytemuck::NoUninit) -> Arg {
        Arg::Bytes(bytemuck::bytes_of(value).to_vec())
    }
    fn size(&self) -> usize {
        match self {
            Arg::Ptr(_) => 8,
            Arg::Int(_) | Arg::Float(_) => 4,
            Arg::Bytes(bytes) => bytes.len(),
        }
    }
    fn address(&mut self) -> *mut c_void {
        match self {
            Arg::Ptr(v) => (&raw mut v.0).cast(),
            Arg::Int(v) => std::ptr::from_mut(v).cast(),
            Arg::Float(v) => std::ptr::from_mut(v).cast(),
            Arg::Bytes(bytes) => bytes.as_mut_ptr().cast(),
        }
    }
}
impl From<Ptr> for Arg {
    fn from(p: Ptr) -> Arg {
        Arg::Ptr(p)
    }
}
impl From<Option<Ptr>> for Arg {
    fn from(p: Option<Ptr>) -> Arg {
        Arg::Ptr(p.unwrap_or(Ptr::NULL))
    }
}
impl From<usize> for Arg {
    fn from(n: usize) -> Arg {
        Arg::Int(n.try_into().expect("extents of kernels are below 2³¹"))
    }
}
impl From<u32> for Arg {
    fn from(n: u32) -> Arg {
        (n as usize).into()
    }
}
impl From<f32> for Arg {
    fn from(x: f32) -> Arg {
        Arg::Float(x)
    }
}
impl From<f64> for Arg {
    fn from(x: f64) -> Arg {
        Arg::Float(x as f32)
    }
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Blocks along x, y and z; a launch of no blocks is left out.
    pub grid: [usize; 3],
    /// Threads in a block.
    pub block: usize,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

/// What a tensor's elements are on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// `float`.
    F32,
    /// `__nv_bfloat16`.
    Bf16,
    /// `unsigned`.
    U32,
    /// `__half`.
    F16,
}

/// Where a tensor lies on the device.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its elements.
    pub element: Element,
    /// Its address.
    pub at: Ptr,
    /// The address of its copy in bf16, for parameters.
    pub copy: Option<Ptr>,
}

/// What kernels are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its multiprocessors.
    pub processors: usize,
    /// Whether kernels for Hopper run on it.
    pub hopper: bool,
}

impl Card {
    /// An H200, as an H100 SXM.
    pub const H200: Card = Card { processors: 132, hopper: true };
    /// Arithmetic of the tensor cores of one of its multiprocessors in a cycle.
    pub const FLOP_PER_CYCLE: usize = 4096;
}

/// Alignment of tensors and of the workspace, in bytes.
pub const ALIGN: usize = 256;

/// Whether launches are only looked at, or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Measure,
    Launch,
}

/// Where operations launch their kernels, and how they find their tensors.
pub struct Stream {
    driver: Rc<dyn Driver>,
    places: Vec<Place>,
    permits: Vec<Permit>,
    running: Cell<usize>,
    kernels: RefCell<HashMap<&'static str, Kernel>>,
    mode: Cell<Mode>,
    workspace: Cell<Ptr>,
    workspace_bytes: Cell<usize>,
}

impl Stream {
    /// A stream of operations that may touch what `permits` says, on tensors at `places`, by slot. It only looks at
    /// launches until it is given a workspace.
    pub fn new(driver: Rc<dyn Driver>, places: Vec<Place>, permits: Vec<Permit>) -> Self {
        Stream {
            driver,
            places,
            permits,
            running: Cell::new(usize::MAX),
            kernels: RefCell::default(),
            mode: Cell::new(Mode::Measure),
            workspace: Cell::new(Ptr::NULL),
            workspace_bytes: Cell::new(0),
        }
    }
    /// The largest workspace that any operation has asked for.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes.get()
    }
    /// Gives operations room to work in, at least [`workspace_bytes`](Self::workspace_bytes), and tensors their
    /// addresses: launches are done from now on.
    pub fn begin(&mut self, places: Vec<Place>, workspace: Ptr) {
        self.places = places;
        self.workspace.set(workspace);
        self.mode.set(Mode::Launch);
    }
    /// Says that operation `op` launches next, and may touch what it declared.
    pub fn enter(&self, op: usize) {
        self.running.set(op);
    }
    /// The device, as far as kernels are chosen by it.
    pub fn card(&self) -> Card {
        Card { processors: self.driver.processors(), hopper: self.driver.hopper() }
    }
    /// The argument that lets a kernel for Hopper load boxes of a matrix.
    ///
    /// # Errors
    /// What the driver says.
    pub fn tensor_map(&self, matrix: &Boxed) -> Result<Arg> {
        // While launches are only looked at there are no addresses yet.
        let map = match self.mode.get() {
            Mode::Measure => TensorMap([0; 128]),
            Mode::Launch => self.driver.tensor_map(matrix)?,
        };
        Ok(Arg::bytes(&map))
    }
    /// The address of a tensor of bf16: an activation, or the copy of a parameter.
    #[track_caller]
    pub fn bf16(&self, t: impl Slot) -> Ptr {
        let place = self.place(t.slot());
        match place.copy {
            Some(copy) => copy,
            None => self.of(t.slot(), Element::Bf16),
        }
    }
    /// The address of a tensor of f32: parameters themselves, statistics, losses.
    #[track_caller]
    pub fn f32(&self, t: impl Slot) -> Ptr {
        self.of(t.slot(), Element::F32)
    }
    /// The address of a tensor of indices.
    #[track_caller]
    pub fn indices(&self, t: impl Slot) -> Ptr {
        self.of(t.slot(), Element::U32)
    }
    /// The address of a tensor of stored volumes.
    #[track_caller]
    pub fn f16(&self, t: impl Slot) -> Ptr {
        self.of(t.slot(), Element::F16)
    }
    /// The copy in bf16 of a tensor that holds parameters; nothing for one that holds none.
    pub fn bf16_copy(&self, t: impl Slot) -> Option<Ptr> {
        self.place(t.slot()).copy
    }
    #[track_caller]
    fn place(&self, t: usize) -> Place {
        let Permit { reads, writes } = &self.permits[self.running.get()];
        assert!(
            reads.contains(&t) || writes.contains(&t),
            "slot {t} is not among what the operation touches"
        );
        self.places[t]
    }
    #[track_caller]
    fn of(&self, t: usize, element: Element) -> Ptr {
        let place = self.place(t);
        assert_eq!(place.element, element, "elements of slot {t}");
        place.at
    }
    /// Room for `bytes` bytes, for the launches of the running operation. An operation asks once.
    pub fn workspace(&self, bytes: usize) -> Ptr {
        self.workspace_bytes.set(self.workspace_bytes.get().max(bytes));
        self.workspace.get()
    }
    /// Launches a kernel. Its arguments are compared with the compiled kernel's parameters.
    ///
    /// # Errors
    /// A kernel that is not there or takes other arguments; what the driver says.
    pub fn launch(&self, launch: Launch, args: &[Arg]) -> Result<()> {
        let mut kernels = self.kernels.borrow_mut();
        let kernel = match kernels.entry(launch.kernel) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(self.driver.kernel(launch.kernel)?),
        };
        if self.mode.get() == Mode::Measure {
            let given: Vec<usize> = args.iter().map(Arg::size).collect();
            if given != kernel.parameters {
                let wanted = kernel.parameters.clone();
                return Err(Error::Arguments { kernel: launch.kernel, wanted, given });
            }
            return Ok(());
        }
        let extent = |n: usize| u32::try_from(n).expect("launches are smaller than 2³² blocks");
        let grid = launch.grid.map(extent);
        if grid.contains(&0) {
            return Ok(());
        }
        let extent = Extent { grid, block: extent(launch.block), shared: extent(launch.shared) };
        let mut values = args.to_vec();
        let mut addresses: Vec<*mut c_void> = values.iter_mut().map(Arg::address).collect();
        // SAFETY: number and sizes of the arguments were compared with the kernel's parameters when the operation was
        // measured; addresses come from `places` and `workspace`, which lie in one live allocation. That a kernel stays
        // inside its tensors is what the emulator's sanitizers and the guard bytes of `gyrus check` hold it to.
        unsafe { self.driver.launch(kernel, extent, &mut addresses) }
    }
}
