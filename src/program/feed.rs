//! How stored volumes reach a device: kept there when all of them fit, or else sent through page-locked memory, the next
//! batch while the present one is computed.
use crate::machine::cuda::{Error, Result};
use crate::machine::driver::{Moment, Pinned};
use crate::machine::{Driver, Memory};
use bytemuck::cast_slice;
use half::f16;
use rayon::prelude::*;
use std::rc::Rc;

/// Volumes by number, as a cache keeps them: equal in length, and the same for as long as a machine reads them.
pub trait Volumes: Sync {
    /// How many there are.
    fn count(&self) -> usize;
    /// The voxels of one.
    fn volume(&self, number: usize) -> &[f16];
}

/// The share of the free memory that volumes may fill: the rest is for what else a run may need.
const SHARE: f64 = 0.8;

/// Where a machine's stored volumes come from.
pub(super) enum Feed {
    /// All volumes have room on the device; each is uploaded when it is first asked for.
    Resident { memory: Memory, uploaded: Vec<bool> },
    /// Two batches have room on the device, and in page-locked memory.
    Streamed([Batch; 2]),
}

/// A batch on its way.
pub(super) struct Batch {
    pinned: Pinned,
    memory: Memory,
    numbers: Vec<usize>,
    /// When it was last copied from, and so may be written over.
    free: Moment,
}

impl Feed {
    /// For volumes `from`, asked for `batch` at a time.
    pub(super) fn new(driver: &Rc<dyn Driver>, from: &dyn Volumes, batch: usize) -> Result<Feed> {
        let each = size_of_val(from.volume(0));
        let all = each * from.count();
        if (all as f64) < SHARE * driver.memory()?[0] as f64 {
            match Memory::new(driver, all) {
                Ok(memory) => return Ok(Feed::Resident { memory, uploaded: vec![false; from.count()] }),
                Err(Error::OutOfMemory { .. }) => {} // no piece is that large
                Err(error) => return Err(error),
            }
        }
        let room = || -> Result<Batch> {
            let (pinned, memory) = (Pinned::new(driver, each * batch)?, Memory::new(driver, each * batch)?);
            Ok(Batch { pinned, memory, numbers: Vec::new(), free: driver.mark()? })
        };
        Ok(Feed::Streamed([room()?, room()?]))
    }
    /// Begins to send volumes `numbers`, if they are not on the device yet.
    pub(super) fn prefetch(
        &mut self,
        driver: &dyn Driver,
        from: &dyn Volumes,
        numbers: &[usize],
    ) -> Result<()> {
        let Feed::Streamed(batches) = self else { return Ok(()) };
        if batches.iter().any(|batch| batch.numbers == numbers) {
            return Ok(());
        }
        // The batch that was copied from last may still be read; the other is free, or will be first.
        batches.rotate_left(1);
        let batch = &mut batches[1];
        driver.finish_sending()?;
        let each = size_of_val(from.volume(0));
        let len = each * numbers.len();
        batch.pinned.bytes_mut()[..len].par_chunks_exact_mut(each).zip(numbers).for_each(|(to, &number)| {
            to.copy_from_slice(cast_slice(from.volume(number)));
        });
        driver.send(&batch.pinned, len, batch.memory.at(), batch.free)?;
        batch.numbers = numbers.to_vec();
        Ok(())
    }
    /// Copies volumes `numbers` one after the other to `to`.
    pub(super) fn fill(
        &mut self,
        driver: &dyn Driver,
        from: &dyn Volumes,
        numbers: &[usize],
        to: u64,
    ) -> Result<()> {
        self.prefetch(driver, from, numbers)?;
        let each = size_of_val(from.volume(0));
        match self {
            Feed::Resident { memory, uploaded } => {
                for (place, &number) in numbers.iter().enumerate() {
                    let at = memory.at() + (number * each) as u64;
                    if !uploaded[number] {
                        driver.upload(at, cast_slice(from.volume(number)))?;
                        uploaded[number] = true;
                    }
                    driver.copy(at, to + (place * each) as u64, each)?;
                }
                Ok(())
            }
            Feed::Streamed(batches) => {
                let batch = batches.iter_mut().find(|batch| batch.numbers == numbers);
                let batch = batch.expect("it was sent above");
                driver.await_sent()?;
                driver.copy(batch.memory.at(), to, each * numbers.len())?;
                driver.mark_again(batch.free)
            }
        }
    }
}
