//! What a CUDA machine asks of whoever runs its kernels: a GPU ([`Gpu`](super::Gpu)), or the emulator that the tests
//! have instead of one.
use super::cuda::{Error, Result};
use std::ffi::c_void;

/// A kernel, ready to be launched.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name in kernels/*.cu.
    pub name: &'static str,
    /// What its driver knows it by.
    pub handle: usize,
    /// Bytes of each of its parameters.
    pub parameters: Vec<usize>,
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads in a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// A captured sequence of launches, by its number with the driver that captured it.
#[derive(Clone, Copy, Debug)]
pub struct Graph(pub usize);

/// A moment on the compute stream, by its number with the driver.
#[derive(Clone, Copy, Debug)]
pub struct Moment(pub usize);

/// Host memory that a device reads by itself, while the host goes on.
#[derive(Clone, Copy, Debug)]
pub struct Pinned {
    /// Where it begins.
    pub at: *mut u8,
    /// Bytes.
    pub len: usize,
}

impl Pinned {
    /// The memory itself. Whoever holds two of them for one range vouches that they are not used at the same time.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `at` and `len` are those of a live allocation of the driver, initialised by the system; `&mut self` is
        // exclusive, but for copies, whose holders vouch for it.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

/// Runs kernels on one device: one stream for kernels, one for copies from pinned memory.
///
/// Addresses are the device's. Whoever passes one vouches that it lies, with all bytes that follow from the call, in
/// memory that [`alloc`](Driver::alloc) returned; everything allocated is freed with the driver.
pub trait Driver {
    /// What the device is called.
    fn name(&self) -> String;
    /// Its multiprocessors.
    fn processors(&self) -> usize;
    /// Bytes that are free and that there are.
    fn memory(&self) -> Result<[usize; 2]>;
    /// Memory of `bytes` bytes, aligned to 256.
    fn alloc(&self, bytes: usize) -> Result<u64>;
    /// Host memory of `bytes` bytes for [`send`](Driver::send).
    fn pinned(&self, bytes: usize) -> Result<Pinned>;
    /// Writes `from` to the device. Returns when `from` may change.
    fn upload(&self, at: u64, from: &[u8]) -> Result<()>;
    /// Reads from the device what all launches before have left.
    fn download(&self, at: u64, to: &mut [u8]) -> Result<()>;
    /// Sets `len` bytes.
    fn fill(&self, at: u64, byte: u8, len: usize) -> Result<()>;
    /// Copies on the device, in order with launches.
    fn copy(&self, from: u64, to: u64, len: usize) -> Result<()>;
    /// Copies the first `len` bytes of `from` to the device, beside running kernels, but not before the moment `after`.
    fn send(&self, from: Pinned, len: usize, to: u64, after: Moment) -> Result<()>;
    /// Lets what is launched from now on wait for what was sent.
    fn await_sent(&self) -> Result<()>;
    /// Waits until everything sent has arrived, so that the pinned memory may change.
    fn finish_sending(&self) -> Result<()>;
    /// The kernel that is called `name`.
    fn kernel(&self, name: &'static str) -> Result<Kernel>;
    /// Launches a kernel, or captures the launch.
    ///
    /// # Safety
    /// `args` point to values of the kernel's parameter types, in order; the kernel stays inside the memory they name.
    unsafe fn launch(&self, kernel: &Kernel, extent: Extent, args: &mut [*mut c_void]) -> Result<()>;
    /// Begins to capture launches instead of running them.
    fn begin_capture(&self) -> Result<()>;
    /// What was captured, ready to be replayed.
    fn end_capture(&self) -> Result<Graph>;
    /// Runs what was captured.
    fn replay(&self, graph: Graph) -> Result<()>;
    /// Marks the present moment on the compute stream.
    fn mark(&self) -> Result<Moment>;
    /// Moves a moment to the present.
    fn mark_again(&self, moment: Moment) -> Result<()>;
    /// Microseconds between two moments, once the second has passed.
    fn microseconds(&self, from: Moment, to: Moment) -> Result<f64>;
    /// Waits until everything launched is done.
    fn synchronise(&self) -> Result<()>;
}

/// The error for a request of `asked` bytes that does not fit.
pub(super) fn out_of_memory(driver: &dyn Driver, asked: usize) -> Error {
    let [free, total] = driver.memory().unwrap_or_default();
    let (purpose, device) = (String::new(), driver.name());
    Error::OutOfMemory { asked, purpose, activations: 0, free, total, device }
}
