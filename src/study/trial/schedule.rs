//! All units of a study, some at a time.
use super::setup::{Setup, Unit};
use super::unit;
use crate::error::{FileError, OnFile, chain};
use crate::file::write_bytes;
use crate::program::Device;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

/// Why a unit failed, in its folder.
pub const FAILED: &str = "failed.txt";

/// Computes `units`, `jobs` at a time with an equal share of the processor's cores each. A unit that fails leaves its
/// reason behind, and does not end the others. `finished` is called after each, from any thread, with what went wrong.
///
/// # Errors
/// Folders that cannot be written.
pub fn run(
    setup: &Setup,
    units: &[Unit],
    jobs: usize,
    open: impl Fn() -> Result<Device, String> + Sync,
    finished: impl Fn(&Unit, Option<&str>) + Sync,
) -> Result<(), FileError> {
    let next = AtomicUsize::new(0);
    let threads = (rayon::current_num_threads() / jobs.max(1)).max(1);
    let work = || -> Result<(), FileError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(std::io::Error::other).on_file("start threads for", &setup.folder)?;
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            note(&setup.folder_of(unit), None)?;
            // The device is opened by the thread that uses it.
            let outcome = pool.install(|| {
                catch_unwind(AssertUnwindSafe(|| {
                    unit::compute(setup, unit, &open()?).map_err(|error| chain(&error))
                }))
            });
            let failure = outcome.unwrap_or_else(|panic| Err(said(&*panic))).err();
            note(&setup.folder_of(unit), failure.as_deref())?;
            finished(unit, failure.as_deref());
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker catches what its units say"))
    })
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a fault of gyrus: {}", text.unwrap_or("it does not say which"))
}

/// Leaves `failure` in a unit's folder, or takes away an earlier one.
fn note(folder: &Path, failure: Option<&str>) -> Result<(), FileError> {
    let path = folder.join(FAILED);
    match failure {
        Some(reason) => {
            fs::create_dir_all(folder).on_file("create", folder)?;
            write_bytes(&path, reason.as_bytes())
        }
        None if path.exists() => fs::remove_file(&path).on_file("remove", &path),
        None => Ok(()),
    }
}
