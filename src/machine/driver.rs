//! What a CUDA machine asks of whoever runs its kernels: a GPU ([`Gpu`](super::Gpu)), or the emulator that the tests
//! have instead of one.
use super::cuda::{Error, Result};
use std::ffi::c_void;
use std::rc::Rc;

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

/// A matrix of bf16 in memory, or several of them, and the boxes that TMA cuts from one of them for tiles with 128-byte
/// swizzle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boxed {
    /// Where it begins, a multiple of 16.
    pub at: u64,
    /// Matrices if there are several, rows and columns; rows are whole vectors of 8.
    pub shape: Vec<usize>,
    /// Rows and columns of a box: at most 256 and 64.
    pub of_box: [usize; 2],
}

impl Boxed {
    /// As tensor maps have it, columns first: extents, bytes from one to the next of all but columns, and the box.
    pub(super) fn encoded(&self) -> (Vec<u64>, Vec<u64>, Vec<u32>) {
        let extent: Vec<u64> = self.shape.iter().rev().map(|&n| n as u64).collect();
        let mut bytes = 2;
        let strides = extent[..extent.len() - 1].iter().map(|n| {
            bytes *= n;
            bytes
        });
        let strides = strides.collect();
        let of_box = [self.of_box[1], self.of_box[0], 1][..extent.len()].iter().map(|&n| n as u32).collect();
        (extent, strides, of_box)
    }
}

/// What TMA has to know of a matrix, as a kernel's parameter.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C, align(128))]
pub struct TensorMap(pub [u8; 128]);

/// A captured sequence of launches, by its number with the driver that captured it.
#[derive(Clone, Copy, Debug)]
pub struct Graph(pub usize);

/// A moment on the compute stream, by its number with the driver.
#[derive(Clone, Copy, Debug)]
pub struct Moment(pub usize);

/// Memory on a device, freed when it is dropped.
pub struct Memory {
    driver: Rc<dyn Driver>,
    at: u64,
}

impl Memory {
    /// Memory of `bytes` bytes, aligned to 256.
    ///
    /// # Errors
    /// Too little memory, or what the driver says.
    pub fn new(driver: &Rc<dyn Driver>, bytes: usize) -> Result<Memory> {
        Ok(Memory { driver: Rc::clone(driver), at: driver.alloc(bytes)? })
    }
    /// Its address.
    pub fn at(&self) -> u64 {
        self.at
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` had the address from this driver, and this is its end.
        unsafe { self.driver.free(self.at) };
    }
}

/// Host memory that a device reads by itself, while the host goes on; freed when it is dropped.
pub struct Pinned {
    driver: Rc<dyn Driver>,
    at: *mut u8,
    len: usize,
}

impl Pinned {
    /// Memory of `bytes` bytes for [`send`](Driver::send).
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(driver: &Rc<dyn Driver>, bytes: usize) -> Result<Pinned> {
        Ok(Pinned { driver: Rc::clone(driver), at: driver.pin(bytes)?, len: bytes })
    }
    /// The memory, as it is sent.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `at` and `len` are those of a live allocation of the driver, all zero at first.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
    /// The memory, to be filled. What was sent from it has to have [arrived](Driver::finish_sending).
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: `new` had the memory from this driver, and this is its end.
        unsafe { self.driver.unpin(self.at, self.len) };
    }
}

/// Runs kernels on one device: one stream for kernels, one for copies from pinned memory.
///
/// Addresses are the device's. Whoever passes one vouches that it lies, with all bytes that follow from the call, in
/// [`Memory`] that is alive.
pub trait Driver {
    /// What the device is called.
    fn name(&self) -> String;
    /// Its multiprocessors.
    fn processors(&self) -> usize;
    /// Whether kernels for Hopper run on it: it has TMA and wgmma.
    fn hopper(&self) -> bool;
    /// Describes a matrix to TMA.
    fn tensor_map(&self, matrix: &Boxed) -> Result<TensorMap>;
    /// Bytes that are free and that there are.
    fn memory(&self) -> Result<[usize; 2]>;
    /// Memory of `bytes` bytes, aligned to 256, for [`Memory`].
    fn alloc(&self, bytes: usize) -> Result<u64>;
    /// Frees what was allocated at `at`, once nothing that was launched uses it any more.
    ///
    /// # Safety
    /// [`alloc`](Driver::alloc) gave the address, and nobody uses or frees it after this.
    unsafe fn free(&self, at: u64);
    /// Page-locked host memory of `bytes` bytes, all zero, for [`Pinned`].
    fn pin(&self, bytes: usize) -> Result<*mut u8>;
    /// Frees host memory, once nothing is sent from it any more.
    ///
    /// # Safety
    /// [`pin`](Driver::pin) gave it for so many bytes, and nobody uses or frees it after this.
    unsafe fn unpin(&self, at: *mut u8, bytes: usize);
    /// Writes `from` to the device. Returns when `from` may change.
    fn upload(&self, at: u64, from: &[u8]) -> Result<()>;
    /// Reads from the device what all launches before have left.
    fn download(&self, at: u64, to: &mut [u8]) -> Result<()>;
    /// Sets `len` bytes.
    fn fill(&self, at: u64, byte: u8, len: usize) -> Result<()>;
    /// Copies on the device, in order with launches.
    fn copy(&self, from: u64, to: u64, len: usize) -> Result<()>;
    /// Copies the first `len` bytes of `from` to the device, beside running kernels, but not before the moment `after`.
    fn send(&self, from: &Pinned, len: usize, to: u64, after: Moment) -> Result<()>;
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
    /// Gives up what was captured.
    fn release(&self, graph: Graph);
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
