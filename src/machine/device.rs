//! Which CUDA devices this machine offers, asked without loading a kernel or creating a context.
use cudarc::driver::{CudaContext, DriverError, result::device, sys};

/// The CUDA driver and the devices it sees.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Cuda {
    /// The newest CUDA version that the driver serves, e.g. "13.0".
    pub version: String,
    /// The devices, in the driver's order.
    pub devices: Vec<Device>,
}

/// One CUDA device.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Device {
    /// The marketing name.
    pub name: String,
    /// Compute capability, e.g. "9.0".
    pub compute_capability: String,
    /// Its memory in bytes.
    pub memory: u64,
}

/// Why no CUDA device can be used.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// libcuda is not installed.
    #[error("no NVIDIA driver library (libcuda) was found")]
    NoDriverLibrary,
    /// There are fewer devices.
    #[error("there is no CUDA device {ordinal}: the driver sees {devices}, counted from 0")]
    NoSuchDevice {
        /// The device asked for.
        ordinal: usize,
        /// How many there are.
        devices: usize,
    },
    /// The driver is there and says no.
    #[error("the NVIDIA driver answers: {0}")]
    Driver(#[from] DriverError),
}

/// Asks the CUDA driver for its version and devices.
///
/// # Errors
/// [`Unavailable`] without a driver library or when the driver fails; a driver without a device is one such failure.
pub fn cuda() -> Result<Cuda, Unavailable> {
    // Asked first, because cudarc panics when a driver call cannot load the library.
    // SAFETY: the call only tries to open the library by its names; the driver's initialisers are sound to run.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unavailable::NoDriverLibrary);
    }
    let count = CudaContext::device_count()?;
    let mut version = 0;
    // SAFETY: the pointer is to a live c_int, all that the call writes.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    let devices = (0..count).map(describe).collect::<Result<_, _>>()?;
    Ok(Cuda { version: format!("{}.{}", version / 1000, version % 1000 / 10), devices })
}

fn describe(ordinal: i32) -> Result<Device, DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let handle = device::get(ordinal)?;
    let name = device::get_name(handle)?;
    // SAFETY: `handle` came from `device::get`, which is what the three calls require.
    let (major, minor, memory) = unsafe {
        (
            device::get_attribute(handle, MAJOR)?,
            device::get_attribute(handle, MINOR)?,
            device::total_mem(handle)?,
        )
    };
    Ok(Device { name, compute_capability: format!("{major}.{minor}"), memory: memory as u64 })
}
