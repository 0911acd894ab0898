//! A synthetic cohort in BIDS form, so that every command runs with no data at hand: heads with skull and scalp,
//! folded cortex, white matter, deep grey and ventricles, whose fluid spaces widen and whose cortex thins with
//! age. People differ more than ageing changes them, files differ in axis order, spacing, obliquity and data
//! type, and everything follows from one seed.
mod anatomy;
mod field;
mod others;
mod render;

pub use render::Tissues;

use super::{Error, Sex};
use crate::{
    error::OnFile,
    file::{write_bytes, write_whole},
    image::{self, Storage},
    machine::philox::{Philox, Purpose},
};
use anatomy::{Anatomy, CEREBRUM};
use rayon::prelude::*;
use render::Grid;
use serde_json::json;
use std::{fs, io::Write, path::Path};

/// One synthetic person.
#[derive(Clone, Debug)]
pub struct Person {
    /// "sub-001" and so on.
    pub subject: String,
    /// Age in years, uniform in 20..80.
    pub age: f32,
    /// Female or male with equal chance.
    pub sex: Sex,
    /// True tissue volumes.
    pub tissues: Tissues,
}

/// The images that a synthetic person can have beside the T1w.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// T2-weighted, of every second person on the voxels of the T1w, of the others a little moved.
    T2w,
    /// Glucose uptake, blurred, and on a grid that has nothing to do with the T1w's.
    PetFdg,
}

/// A synthetic cohort: who is in it, and what is made of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Cohort {
    /// How many people.
    pub subjects: usize,
    /// From which everything follows.
    pub seed: u64,
    /// Typical edge of a T1w's voxel, in millimetres.
    pub spacing: f64,
    /// How much people differ beside their age, as a multiple of the usual, at which they differ by more than decades
    /// of ageing change them. Contrast of tissues and shading by coils vary with
    /// it. At 0 people differ by age, sex and the pattern of their folds alone, and files by gain, noise and grid.
    pub variation: f32,
    /// Images beside the T1w.
    pub others: Vec<Other>,
    /// Share of the people who have no PET; one at least has it.
    pub missing: f64,
}

impl Default for Cohort {
    /// 32 people with a T1w of 2 mm each.
    fn default() -> Self {
        Cohort { subjects: 32, seed: 0, spacing: 2.0, variation: 1.0, others: Vec::new(), missing: 0.0 }
    }
}

impl Cohort {
    /// Writes the cohort to the folder `out` as a BIDS dataset with brain masks. The T1w are the same bytes whatever is
    /// beside them. `advance` is called after each person, from any thread. `participants.tsv` comes last, so a folder
    /// that has it is complete.
    ///
    /// # Errors
    /// `out` already holds a dataset; files that cannot be written.
    pub fn write(&self, out: &Path, advance: impl Fn() + Sync) -> Result<Vec<Person>, Error> {
        let table = out.join("participants.tsv");
        if table.exists() {
            return Err(Error::Exists { path: out.to_owned() });
        }
        let without = others::without_pet(self.seed, self.subjects, self.missing);
        let people = (0..self.subjects)
            .into_par_iter()
            .map(|index| {
                let has = |o: &&Other| **o != Other::PetFdg || !without[index];
                let others: Vec<Other> = self.others.iter().filter(has).copied().collect();
                let person = self.write_person(out, index as u32, &others);
                advance();
                person
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.describe(out, &people)?;
        write_whole(&table, |file| {
            writeln!(file, "participant_id\tage\tsex")?;
            people.iter().try_for_each(|p| writeln!(file, "{}\t{:.2}\t{}", p.subject, p.age, p.sex))
        })?;
        Ok(people)
    }

    /// What BIDS wants to know of the dataset and of its masks, and the volumes of the tissues.
    fn describe(&self, out: &Path, people: &[Person]) -> Result<(), Error> {
        let about = |name: &str, kind| {
            json!({ "Name": name, "BIDSVersion": "1.10.0", "DatasetType": kind,
                    "GeneratedBy": [{ "Name": "gyrus phantom", "Version": env!("CARGO_PKG_VERSION") }],
                    "Seed": self.seed })
        };
        let masks = out.join("derivatives/phantom");
        let raw = pretty(&about("Synthetic heads", "raw"));
        write_bytes(&out.join("dataset_description.json"), raw.as_bytes())?;
        let derived = pretty(&about("Brain masks and tissue volumes of synthetic heads", "derivative"));
        write_bytes(&masks.join("dataset_description.json"), derived.as_bytes())?;
        write_whole(&masks.join("volumes.tsv"), |file| {
            writeln!(file, "participant_id\tgrey_ml\twhite_ml\tsulci_ml\tventricles_ml")?;
            people.iter().try_for_each(|Person { subject, tissues: t, .. }| {
                let [grey, white, sulci, ventricles] = [t.grey_ml, t.white_ml, t.sulci_ml, t.ventricles_ml];
                writeln!(file, "{subject}\t{grey:.2}\t{white:.2}\t{sulci:.2}\t{ventricles:.2}")
            })
        })?;
        Ok(())
    }

    /// Draws, renders and writes one person.
    fn write_person(&self, out: &Path, index: u32, others: &[Other]) -> Result<Person, Error> {
        let Cohort { seed, spacing, .. } = *self;
        let digits = self.subjects.to_string().len().max(3);
        let subject = format!("sub-{:0digits$}", index + 1);
        let mut r = Philox::new(seed, Purpose::Phantom, 0, index);
        let age = r.between(20.0, 80.0);
        let sex = if r.uniform() < 0.5 { Sex::Female } else { Sex::Male };
        let storage = [Storage::I16, Storage::I16, Storage::U8, Storage::F32][r.below(4)];
        let anatomy = Anatomy::new(seed, index, (age, sex == Sex::Male), self.variation);
        let grid = file_grid(&anatomy, spacing, &mut r);
        let (mut head, mut mask, tissues) = render::render(&anatomy, &grid, seed, index);
        // The scanner's origin is not the head's centre.
        let origin = [0; 3].map(|_| f64::from(r.between(-20.0, 20.0)));
        for (axis, shift) in origin.into_iter().enumerate() {
            head.affine[axis][3] += shift;
            mask.affine[axis][3] += shift;
        }

        let raw = out.join(&subject).join("anat");
        let derived = out.join("derivatives/phantom").join(&subject).join("anat");
        for folder in [&raw, &derived] {
            fs::create_dir_all(folder).on_file("create", folder)?;
        }
        image::write(&raw.join(format!("{subject}_T1w.nii.gz")), &head, storage)?;
        image::write(&derived.join(format!("{subject}_desc-brain_mask.nii.gz")), &mask, Storage::U8)?;
        let head = others::Head { anatomy: &anatomy, seed, index, age, grid: &grid, origin };
        others.iter().try_for_each(|&other| others::write(out, &subject, &head, other, spacing))?;
        Ok(Person { subject, age, sex, tissues })
    }
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// A grid that holds the head: random axis order and directions, voxel edges up to a tenth from `spacing`
/// millimetres, every fourth with slices 1.4 times as thick, every third turned by up to 8 degrees.
fn file_grid(anatomy: &Anatomy, spacing: f64, r: &mut Philox) -> Grid {
    let [x, y, z] = [0, 1, 2].map(|axis| f64::from(CEREBRUM[axis] * anatomy.size[axis]));
    // From 92 mm below the centre of the brain, so that the neck is cut off, to 24 mm above the vertex.
    let (low, high) = (-92.0, z + 12.0 + 24.0);
    let extent = [2.0 * (x + 22.0), 2.0 * (y + 26.0), high - low];
    let mut order = [0, 1, 2];
    r.shuffle(&mut order);
    let mut edges = [0; 3].map(|_| spacing * f64::from(r.between(0.92, 1.1)));
    if r.below(4) == 0 {
        edges[2] *= 1.4;
    }
    let oblique = r.below(3) == 0;
    let turn = anatomy::rotation([0; 3].map(|_| if oblique { r.between(-0.14, 0.14) } else { 0.0 }));

    let mut grid = Grid { shape: [0; 3], affine: [[0.0; 4]; 4] };
    grid.affine[2][3] = 0.5 * (low + high);
    grid.affine[3][3] = 1.0;
    for (column, axis) in order.into_iter().enumerate() {
        let edge = if r.below(2) == 0 { edges[column] } else { -edges[column] };
        grid.shape[column] = (extent[axis] / edges[column]).ceil() as usize;
        for (row, turned) in turn.iter().enumerate() {
            let step = f64::from(turned[axis]) * edge;
            grid.affine[row][column] = step;
            grid.affine[row][3] -= 0.5 * step * (grid.shape[column] - 1) as f64;
        }
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tissue volumes of `count` people of all ages on a coarse grid, with their ages.
    fn volumes(count: u32, variation: f32) -> Vec<(f32, Tissues)> {
        let person = |index| {
            let mut r = Philox::new(5, Purpose::Phantom, 0, index);
            let age = r.between(20.0, 80.0);
            let anatomy = Anatomy::new(5, index, (age, index % 2 == 0), variation);
            let grid = file_grid(&anatomy, 3.0, &mut r);
            (age, render::render(&anatomy, &grid, 5, index).2)
        };
        (0..count).into_par_iter().map(person).collect()
    }

    pub(super) fn correlation(x: &[f64], y: &[f64]) -> f64 {
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        let (mx, my) = (mean(x), mean(y));
        let sum = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(a, b)| f(a - mx, b - my)).sum::<f64>();
        sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
    }

    /// Correlation with age of the ventricles' and the grey matter's share of the brain.
    fn follow_age(people: &[(f32, Tissues)]) -> (f64, f64) {
        let ages: Vec<f64> = people.iter().map(|(age, _)| f64::from(*age)).collect();
        let share = |f: fn(&Tissues) -> f64| -> Vec<f64> {
            people.iter().map(|(_, t)| f(t) / t.brain_ml()).collect()
        };
        (correlation(&ages, &share(|t| t.ventricles_ml)), correlation(&ages, &share(|t| t.grey_ml)))
    }

    #[test]
    fn people_who_vary_little_differ_by_their_age() {
        let (ventricles, grey) = follow_age(&volumes(20, 0.1));
        assert!(ventricles > 0.97, "ventricles {ventricles}");
        assert!(grey < -0.85, "grey {grey}");
    }

    #[test]
    fn volumes_are_those_of_adults_and_follow_age() {
        let people = volumes(60, 1.0);
        let (ventricles, grey) = follow_age(&people);
        assert!((0.4..0.9).contains(&ventricles), "ventricles {ventricles}");
        assert!((-0.9..-0.3).contains(&grey), "grey {grey}");
        for (age, t) in &people {
            assert!((800.0..2000.0).contains(&t.brain_ml()), "{} ml at {age} years", t.brain_ml());
            assert!((0.45..2.0).contains(&(t.grey_ml / t.white_ml)), "{t:?}");
        }
    }

    #[test]
    fn a_head_is_the_same_on_every_grid() {
        let anatomy = Anatomy::new(1, 3, (50.0, true), 1.0);
        let volume = |order: u32| {
            let grid = file_grid(&anatomy, 3.0, &mut Philox::new(1, Purpose::Test, 0, order));
            render::render(&anatomy, &grid, 1, 3).2
        };
        let (a, b) = (volume(0), volume(1));
        assert!((a.brain_ml() / b.brain_ml() - 1.0).abs() < 0.01, "{a:?} {b:?}");
        assert!((a.ventricles_ml / b.ventricles_ml - 1.0).abs() < 0.06, "{a:?} {b:?}");
    }

    #[test]
    fn the_same_seed_writes_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let out = folder.path().join(name);
            let cohort = Cohort { subjects: 2, seed: 9, spacing: 6.0, ..Cohort::default() };
            cohort.write(&out, || ()).unwrap();
            assert!(matches!(cohort.write(&out, || ()), Err(Error::Exists { .. })));
            ["participants.tsv", "sub-002/anat/sub-002_T1w.nii.gz"].map(|f| fs::read(out.join(f)).unwrap())
        };
        assert_eq!(write("a"), write("b"));
    }
}
