//! What a machine can reach at best, measured before anything is compared with it.
use crate::cases::timed::Kind;
use crate::machine::cuda::{self, Card};
use crate::machine::philox::{Philox, Purpose};
use crate::machine::{Driver, Into, Mat, MatMut, Memory, Threads, gemm};
use crate::ops;
use crate::program::{Cuda, Device, Machine};
use crate::tape::{Dtype, Tape};
use serde::Serialize;
use std::rc::Rc;
use std::time::Instant;

/// Measured limits of a machine.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Ceilings {
    /// GFLOP/s of a large matrix product.
    pub gflops: f64,
    /// GB/s of a large copy, bytes read and written; on a GPU only, since a host's operations are mostly in the cache.
    pub gbs: Option<f64>,
}

impl Ceilings {
    /// Microseconds below which an operation cannot come: its products at the rate of a large product, or its bytes at
    /// that of a large copy, whichever takes longer. Nothing where neither is known.
    pub(super) fn floor(&self, kind: &Kind) -> Option<f64> {
        let products = Some(self.us_products(kind)).filter(|us| *us > 0.0);
        products.into_iter().chain(self.us_memory(kind)).reduce(f64::max)
    }
    /// Microseconds of its products.
    pub(super) fn us_products(&self, kind: &Kind) -> f64 {
        kind.flops as f64 / self.gflops / 1e3
    }
    /// Microseconds of its bytes.
    pub(super) fn us_memory(&self, kind: &Kind) -> Option<f64> {
        self.us_of_bytes(kind.bytes)
    }
    /// Microseconds of so many bytes.
    pub(super) fn us_of_bytes(&self, bytes: u64) -> Option<f64> {
        self.gbs.map(|gbs| bytes as f64 / gbs / 1e3)
    }
    /// The clock at which an H200's tensor cores multiply that fast.
    pub(super) fn mhz(&self) -> f64 {
        1e3 * self.gflops / (Card::H200.processors * Card::FLOP_PER_CYCLE) as f64
    }
    pub(super) fn measure(device: &Device) -> cuda::Result<Ceilings> {
        match device {
            Device::Cpu => {
                let gflops = [1024, 1536, 2048].into_iter().map(host_product).fold(0.0, f64::max);
                Ok(Ceilings { gflops, gbs: None })
            }
            Device::Cuda(driver) => {
                Ok(Ceilings { gflops: device_product(driver)?, gbs: Some(device_copy(driver)?) })
            }
        }
    }
}

/// GFLOP/s of a square f32 product on all threads.
fn host_product(n: usize) -> f64 {
    let (a, b, mut c) = (vec![0.5_f32; n * n], vec![0.25_f32; n * n], vec![0.0_f32; n * n]);
    let mut product = || {
        let (a, b) = (Mat::rows(&a, [n, n]), Mat::rows(&b, [n, n]));
        let start = Instant::now();
        gemm(MatMut::rows(&mut c, [n, n]), a, b, 1.0, Into::Replace, Threads::All);
        start.elapsed().as_secs_f64()
    };
    product();
    let best = (0..5).map(|_| product()).fold(f64::INFINITY, f64::min);
    2.0 * (n as f64).powi(3) / best / 1e9
}

/// Whether a device is large enough for what is measured on GPUs, rather than emulated.
fn large(driver: &dyn Driver) -> cuda::Result<bool> {
    Ok(driver.memory()?[1] > 8 << 30)
}

/// GFLOP/s of a square bf16 product of random numbers.
fn device_product(driver: &Rc<dyn Driver>) -> cuda::Result<f64> {
    let n = if large(&**driver)? { 8192 } else { 256 };
    let mut tape = Tape::default();
    let x = tape.input_as(&[n, n], Dtype::Activation);
    let (w, b) = (tape.param("w", &[n, n]), tape.param("b", &[n]));
    let y = ops::linear(&mut tape, x, w, b);
    let mut machine = Cuda::new(Rc::clone(driver), tape, &[y])?;
    let mut random = Philox::new(1, Purpose::Test, 0, 0);
    let values: Vec<f32> = (0..n * n).map(|_| random.between(-1.0, 1.0)).collect();
    machine.write(x, &values)?;
    machine.write(w, &values)?;
    (0..3).try_for_each(|_| machine.run())?;
    let mut times =
        (0..10).map(|_| Ok(machine.time_ops(0..1)?.as_secs_f64())).collect::<cuda::Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(2.0 * (n as f64).powi(3) / times[times.len() / 2] / 1e9)
}

/// GB/s of a copy on the device.
fn device_copy(driver: &Rc<dyn Driver>) -> cuda::Result<f64> {
    let bytes = if large(&**driver)? { 1 << 30 } else { 1 << 20 };
    let (from, to) = (Memory::new(driver, bytes)?, Memory::new(driver, bytes)?);
    driver.fill(from.at(), 0x3C, bytes)?;
    let once = || {
        let start = driver.mark()?;
        driver.copy(from.at(), to.at(), bytes)?;
        driver.microseconds(start, driver.mark()?)
    };
    once()?;
    let mut times = (0..10).map(|_| once()).collect::<cuda::Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(2.0 * bytes as f64 / times[times.len() / 2].max(1e-3) / 1e3)
}
