//! The images of a synthetic person beside the T1w: where the head lies in them, and their files.
use super::{Anatomy, Error, Grid, Other, anatomy, file_grid, pretty, render};
use crate::{
    error::OnFile,
    file::write_bytes,
    image::{self, Storage, Volume},
    machine::philox::{Philox, Purpose},
};
use serde_json::json;
use std::{fs, path::Path};

/// One person, and where the T1w is.
pub(super) struct Head<'a> {
    pub anatomy: &'a Anatomy,
    pub seed: u64,
    pub index: u32,
    pub age: f32,
    /// The T1w's, around the head's centre.
    pub grid: &'a Grid,
    /// Where the head's centre is in the T1w's coordinates.
    pub origin: [f64; 3],
}

/// Finest voxels of a PET scanner, in millimetres.
const PET_SPACING: f64 = 2.5;

/// Renders and writes one image.
pub(super) fn write(
    out: &Path,
    subject: &str,
    head: &Head<'_>,
    other: Other,
    spacing: f64,
) -> Result<(), Error> {
    let kind = if other == Other::T2w { "anat" } else { "pet" };
    let folder = out.join(subject).join(kind);
    fs::create_dir_all(&folder).on_file("create", &folder)?;
    let mut volume = render(head, other, spacing);
    match other {
        Other::T2w => Ok(image::write(&folder.join(format!("{subject}_T2w.nii.gz")), &volume, Storage::I16)?),
        Other::PetFdg => {
            // What scanners write after subtracting scatter is never below 0 for long.
            volume.data.iter_mut().for_each(|v| *v = v.max(0.0));
            let name = format!("{subject}_trc-FDG_pet");
            image::write(&folder.join(format!("{name}.nii.gz")), &volume, Storage::F32)?;
            Ok(write_bytes(&folder.join(format!("{name}.json")), pretty(&sidecar()).as_bytes())?)
        }
    }
}

/// The image, in coordinates of its own.
fn render(head: &Head<'_>, other: Other, spacing: f64) -> Volume {
    let &Head { anatomy, seed, index, age, grid, origin } = head;
    let mut r = Philox::new(seed, Purpose::Phantom, 5 + other as u64, index);
    let (mut volume, degrees, mm) = match other {
        Other::T2w if r.below(2) == 0 => (render::render_t2w(anatomy, grid, seed, index), 0.0, 0.0),
        Other::T2w => {
            let own = file_grid(anatomy, spacing, &mut r);
            (render::render_t2w(anatomy, &own, seed, index), 2.0, 3.0)
        }
        Other::PetFdg => {
            let own = file_grid(anatomy, spacing.max(PET_SPACING), &mut r);
            (render::render_pet(anatomy, &own, seed, index, age), 8.0, 15.0)
        }
    };
    let angles = [0; 3].map(|_| (degrees * r.between(-1.0, 1.0)).to_radians());
    let shift = [0, 1, 2].map(|axis| origin[axis] + f64::from(mm * r.between(-1.0, 1.0)));
    volume.affine = moved(&volume.affine, angles, shift);
    volume
}

/// `affine` after the head was turned by `angles` (radians) about its centre and then moved by `shift`.
fn moved(affine: &image::Affine, angles: [f32; 3], shift: [f64; 3]) -> image::Affine {
    let turn = anatomy::rotation(angles);
    let mut out = *affine;
    for (row, to) in out.iter_mut().take(3).enumerate() {
        for (column, to) in to.iter_mut().enumerate() {
            *to = (0..3).map(|i| f64::from(turn[row][i]) * affine[i][column]).sum();
        }
        to[3] += shift[row];
    }
    out
}

/// Who has no PET: the share of the people, rounded, but never all of them.
pub(super) fn without_pet(seed: u64, subjects: usize, share: f64) -> Vec<bool> {
    let count = ((share * subjects as f64).round() as usize).min(subjects.saturating_sub(1));
    let mut order: Vec<usize> = (0..subjects).collect();
    Philox::new(seed, Purpose::Phantom, 7, 0).shuffle(&mut order);
    let mut without = vec![false; subjects];
    order.iter().take(count).for_each(|&i| without[i] = true);
    without
}

/// What BIDS requires beside a PET image: one static frame from 30 to 60 minutes after injection.
fn sidecar() -> serde_json::Value {
    json!({
        "Manufacturer": "gyrus phantom", "ManufacturersModelName": "synthetic", "Units": "Bq/mL",
        "TracerName": "FDG", "TracerRadionuclide": "F18",
        "InjectedRadioactivity": 185, "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": "n/a", "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a", "SpecificRadioactivityUnits": "n/a",
        "ModeOfAdministration": "bolus", "TimeZero": "10:00:00", "ScanStart": 1800, "InjectionStart": 0,
        "FrameTimesStart": [1800], "FrameDuration": [1800],
        "AcquisitionMode": "list mode", "ImageDecayCorrected": true, "ImageDecayCorrectionTime": 0,
        "ReconMethodName": "none, synthetic", "ReconMethodParameterLabels": ["none"],
        "ReconMethodParameterUnits": ["none"], "ReconMethodParameterValues": [0],
        "ReconFilterType": "none", "ReconFilterSize": 0, "AttenuationCorrection": "none, synthetic"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Preprocessing, align, preprocess};

    const IDENTITY: image::Affine =
        [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];

    /// Millimetres and degrees by which an alignment misses the truth: the motion of the head's centre, and the angle
    /// of the turn that is left.
    fn miss(found: &image::Affine, angles: [f32; 3], shift: [f64; 3]) -> (f64, f64) {
        let truth = moved(&IDENTITY, angles, shift);
        let at = (0..3).map(|r| (found[r][3] - truth[r][3]).powi(2)).sum::<f64>().sqrt();
        let trace: f64 =
            (0..3).flat_map(|r| (0..3).map(move |c| (r, c))).map(|(r, c)| found[r][c] * truth[r][c]).sum();
        (at, (((trace - 1.0) / 2.0).clamp(-1.0, 1.0)).acos().to_degrees())
    }

    /// Of heads that lie up to 20 mm apart and turned by up to 15 degrees, T2w and PET come to within 1 mm and 1 degree.
    #[test]
    fn others_are_brought_back_to_a_millimetre_and_a_degree() {
        let people = std::env::var("GYRUS_ALIGN_PEOPLE").map_or(4, |n| n.parse().unwrap());
        let mut worst = (0.0_f64, 0.0_f64);
        for index in 0..people {
            let mut r = Philox::new(11, Purpose::Test, 0, index);
            let (age, male) = (r.between(20.0, 80.0), u32::is_multiple_of(index, 2));
            let anatomy = Anatomy::new(11, index, (age, male), 1.0);
            let grid = file_grid(&anatomy, 2.0, &mut r);
            let (head, mask, _) = super::super::render::render(&anatomy, &grid, 11, index);
            let prepared = preprocess(head.clone(), Some(mask), &Preprocessing::default()).unwrap();
            for other in [Other::T2w, Other::PetFdg] {
                let own = file_grid(&anatomy, 2.5, &mut r);
                let mut volume = match other {
                    Other::T2w => render::render_t2w(&anatomy, &own, 11, index),
                    Other::PetFdg => render::render_pet(&anatomy, &own, 11, index, age),
                };
                // Up to 15 degrees about an axis of any direction, up to 20 mm in any direction.
                let mut ball = |most: f32| loop {
                    let v = [0; 3].map(|_| r.between(-1.0, 1.0));
                    if v.iter().map(|x| x * x).sum::<f32>() <= 1.0 {
                        break v.map(|x| most * x);
                    }
                };
                let (angles, shift) = (ball(15.0).map(f32::to_radians), ball(20.0).map(f64::from));
                volume.affine = moved(&volume.affine, angles, shift);
                let start = std::time::Instant::now();
                let found = align(&volume, &head, &prepared).unwrap();
                let seconds = start.elapsed().as_secs_f64();
                let (mm, degrees) = miss(&found.affine, angles, shift);
                println!(
                    "{other:?} {index}: {mm:.2} mm, {degrees:.2} degrees, {:.3} nats, {seconds:.1} s",
                    found.mutual_information
                );
                assert_eq!(found.doubt(), None);
                worst = (worst.0.max(mm), worst.1.max(degrees));
            }
        }
        println!("worst of {people} people: {:.2} mm, {:.2} degrees", worst.0, worst.1);
        assert!(worst.0 < 1.0 && worst.1 < 1.0, "{worst:?}");
    }

    /// Uptake in front, as a multiple of that in the cerebellum's cortex and deep nuclei, tells the age better than the
    /// ventricles do.
    #[test]
    fn uptake_tells_age_better_than_volumes() {
        let person = |index: u32| {
            let mut r = Philox::new(21, Purpose::Test, 0, index);
            let age = r.between(20.0, 80.0);
            let anatomy = Anatomy::new(21, index, (age, index.is_multiple_of(2)), 1.0);
            let grid = file_grid(&anatomy, 5.0, &mut r);
            let pet = render::render_pet(&anatomy, &grid, 21, index, age);
            let tissues = super::super::render::render(&anatomy, &grid, 21, index).2;
            let template = anatomy.to_template();
            let (mut front, mut other) = ((0.0, 0.0), (0.0, 0.0));
            for (i, &v) in pet.data.iter().enumerate() {
                let [nx, ny, _] = pet.shape;
                let voxel = [i % nx, i / nx % ny, i / (nx * ny)].map(|v| v as f64);
                let mm = [0, 1, 2].map(|r| {
                    (pet.affine[r][3] + (0..3).map(|c| pet.affine[r][c] * voxel[c]).sum::<f64>()) as f32
                });
                let p = template.map(|row| row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2]);
                let depths = anatomy.depths(p);
                if depths.cerebrum > 0.0 && p[1] > 40.0 {
                    front = (front.0 + f64::from(v), front.1 + 1.0);
                } else if depths.cerebrum > 0.0 && p[2] < 0.0 && p[1] < 10.0 {
                    other = (other.0 + f64::from(v), other.1 + 1.0);
                }
            }
            let uptake = front.0 / front.1 / (other.0 / other.1);
            [f64::from(age), uptake, tissues.ventricles_ml / tissues.brain_ml()]
        };
        let people: Vec<[f64; 3]> = (0..40).map(person).collect();
        let column = |c: usize| -> Vec<f64> { people.iter().map(|p| p[c]).collect() };
        let r = |c: usize| super::super::tests::correlation(&column(0), &column(c));
        println!("age against uptake in front {:.3}, against ventricles {:.3}", r(1), r(2));
        assert!(r(1) < -0.85 && -r(1) > r(2), "{} {}", r(1), r(2));
    }

    #[test]
    fn a_share_of_the_people_misses_pet_but_never_all() {
        for (share, expected) in [(0.0, 0), (0.3, 3), (1.0, 9)] {
            assert_eq!(without_pet(4, 10, share).into_iter().filter(|m| *m).count(), expected);
        }
        assert_ne!(without_pet(1, 10, 0.5), without_pet(2, 10, 0.5));
        assert_eq!(without_pet(1, 1, 1.0), [false]);
    }
}
