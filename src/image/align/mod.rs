//! Lays another image of the same head onto a scan that is prepared already: the rigid motion with the greatest mutual
//! information.
//!
//! The scan is sampled at some 40,000 places in and closely around the brain, so neither neck and jaw, which move, nor
//! the moving image's field of view decides. Both images are smoothed to 8, then 4, then 2 mm. At 8 mm the search
//! begins where the files' own coordinates put the images and where their centres of mass coincide, each as it is and
//! turned both ways about each axis and each pair and all three; the best beginnings are followed. Where that
//! fails, the search begins anew at 4 mm from all of them. All of it is free of chance: the same files give
//! the same bits.
mod information;
mod powell;

use super::{
    BACKGROUND, Error, Prepared, Volume,
    affine::{Affine, apply, rigid},
    mask,
    orientation::{Axes, View, ras_affine},
    preprocess::grid_affine,
    resample::{Taps, resample},
};
use information::Information;
use powell::{Point, maximise};
use serde::{Deserialize, Serialize};

/// How another image lies to the scan it was aligned with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alignment {
    /// Takes millimetres of the fixed scan to millimetres of the moving image.
    pub affine: Affine,
    /// By how much the centre of the brain moves along x, y and z, in millimetres.
    pub translation: [f64; 3],
    /// Turns about x, then y, then z, in degrees.
    pub rotation: [f64; 3],
    /// What one image says about the other at 2 mm, in nats.
    pub mutual_information: f64,
}

/// One resolution of the search.
struct Level {
    /// Millimetres between voxels.
    mm: f64,
    /// The precision asked for, in millimetres.
    tolerance: f64,
    /// Every how many-th of the places is looked at.
    every: usize,
    /// How many of the best points found before are followed.
    followed: usize,
}

const LEVELS: [Level; 3] = [
    Level { mm: 8.0, tolerance: 0.3, every: 4, followed: 12 },
    Level { mm: 4.0, tolerance: 0.1, every: 2, followed: 5 },
    Level { mm: 2.0, tolerance: 0.02, every: 1, followed: 1 },
];
/// Where that has failed: at 8 mm grey matter and fluid may be one, and only finer images tell the right pose.
const AGAIN: [Level; 2] = [
    Level { mm: 4.0, tolerance: 0.2, every: 4, followed: 54 },
    Level { mm: 2.0, tolerance: 0.02, every: 1, followed: 2 },
];
/// Places at which the fixed scan is sampled.
const SAMPLES: usize = 40_000;
/// How far around the brain samples lie, in millimetres.
const RIM: f64 = 8.0;
/// Millimetres that a radian counts as: about what it moves the brain's surface.
const RADIUS: f64 = 60.0;
/// First turns that are tried, in radians.
const TURN: f64 = 0.17;
/// Two images share less information than this, in nats, where they were not brought together: of synthetic heads a wrong
/// pose has 0.06 to 0.1, the right one 0.4 to 0.8. It does not tell whose head it is: another person's T2w or PET reaches
/// 0.2 to 0.4.
const LEAST_INFORMATION: f64 = 0.12;
/// No head moves further between two scans of one visit whose coordinates mean anything.
const MOST_DEGREES: f64 = 45.0;

impl Alignment {
    /// Why this alignment should not be trusted, if so.
    pub fn doubt(&self) -> Option<String> {
        let turned = self.rotation.into_iter().fold(0.0_f64, |most, angle| most.max(angle.abs()));
        let what = if self.mutual_information < LEAST_INFORMATION {
            format!("the images share {:.2} nats of information", self.mutual_information)
        } else if turned > MOST_DEGREES {
            format!("it would turn the head by {turned:.0} degrees")
        } else {
            return None;
        };
        Some(format!("aligning it with the T1w has probably failed: {what}; look at it before it is used"))
    }
}

/// Aligns `moving` with the scan `fixed`, which was prepared as `prepared`.
///
/// Errors: a constant image.
pub fn align(moving: &Volume, fixed: &Volume, prepared: &Prepared) -> Result<Alignment, Error> {
    let places = places(prepared);
    let centre = centre(&places);
    let pose = |p: &Point| {
        let [a, b, c, x, y, z] = *p;
        rigid([a, b, c].map(|v| v / RADIUS), [x, y, z], centre)
    };
    let search = |levels: &[Level]| search(moving, fixed, &places, &pose, levels);
    let (mut point, mut mutual_information) = search(&LEVELS)?;
    if mutual_information < LEAST_INFORMATION {
        let again = search(&AGAIN)?;
        if again.1 > mutual_information {
            (point, mutual_information) = again;
        }
    }
    let [a, b, c, x, y, z] = point;
    Ok(Alignment {
        affine: pose(&point),
        translation: [x, y, z],
        rotation: [a, b, c].map(|v| (v / RADIUS).to_degrees()),
        mutual_information,
    })
}

/// The best point, and its mutual information at the last level.
fn search(
    moving: &Volume,
    fixed: &Volume,
    places: &[[f64; 3]],
    pose: &impl Fn(&Point) -> Affine,
    levels: &[Level],
) -> Result<(Point, f64), Error> {
    // The best points so far, best first.
    let mut found: Vec<(Point, f64)> = Vec::new();
    for &Level { mm, tolerance, every, followed } in levels {
        let places: Vec<[f64; 3]> = places.iter().step_by(every).copied().collect();
        let (fixed, moving) = (smoothed(fixed, mm), smoothed(moving, mm));
        let masses = [mask::centre_of_mass(&fixed), mask::centre_of_mass(&moving)];
        let information = Information::new(&fixed, moving, &places).ok_or(Error::Constant(fixed.data[0]))?;
        let value = |p: &Point| information.at(&pose(p));
        if found.is_empty() {
            found = beginnings(masses).into_iter().map(|p| (p, value(&p))).collect();
            found.sort_by(|a, b| b.1.total_cmp(&a.1));
        }
        let followed = found.iter().take(followed).map(|(p, _)| maximise(value, *p, mm, tolerance));
        found = distinct(followed.collect(), mm);
    }
    Ok(found[0])
}

/// The best first, without those that lie less than `mm` from a better one: many ways lead up the same hill, and the
/// highest at 8 mm need not be the highest at 2.
fn distinct(mut points: Vec<(Point, f64)>, mm: f64) -> Vec<(Point, f64)> {
    points.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut kept: Vec<(Point, f64)> = Vec::new();
    for (point, value) in points {
        let near =
            |other: &(Point, f64)| (0..6).map(|i| (other.0[i] - point[i]).powi(2)).sum::<f64>().sqrt() < mm;
        if !kept.iter().any(near) {
            kept.push((point, value));
        }
    }
    kept
}

/// Where the search begins: the files' coordinates, and centre on centre, each with every combination of turns.
fn beginnings([fixed, moving]: [[f64; 3]; 2]) -> Vec<Point> {
    let apart = [0, 1, 2].map(|r| moving[r] - fixed[r]);
    let turn = |n: usize| [0.0, -TURN * RADIUS, TURN * RADIUS][n % 3];
    let turned = |[x, y, z]: [f64; 3]| (0..27).map(move |n| [turn(n), turn(n / 3), turn(n / 9), x, y, z]);
    [[0.0; 3], apart].into_iter().flat_map(turned).collect()
}

/// Millimetres at which the scan is sampled: evenly many in each voxel of the grid that lies in the brain or less than
/// [`RIM`] from it, moved within the voxel by a sequence that fills it evenly, so that no lattice shows.
fn places(prepared: &Prepared) -> Vec<[f64; 3]> {
    let rim = prepared.spacing.map(|mm| (RIM / mm).ceil() as usize);
    let shape = [0, 1, 2].map(|r| prepared.grid[r] + 2 * rim[r]);
    let at = |[x, y, z]: [usize; 3]| (x * shape[1] + y) * shape[2] + z;
    let mut near = vec![false; shape.iter().product()];
    for (i, _) in prepared.data.iter().enumerate().filter(|(_, v)| **v > BACKGROUND) {
        let [_, ny, nz] = prepared.grid;
        near[at([i / (ny * nz) + rim[0], i / nz % ny + rim[1], i % nz + rim[2]])] = true;
    }
    // A box around each voxel, one axis after the other.
    let steps = [shape[1] * shape[2], shape[2], 1];
    for r in 0..3 {
        let before = near.clone();
        for (i, _) in before.iter().enumerate().filter(|(_, brain)| **brain) {
            let here = i / steps[r] % shape[r];
            for there in here.saturating_sub(rim[r])..(here + rim[r] + 1).min(shape[r]) {
                near[i - here * steps[r] + there * steps[r]] = true;
            }
        }
    }
    let near: Vec<usize> = (0..near.len()).filter(|&i| near[i]).collect();
    // Steps of the additive recurrence with the plastic number, which fills the unit cube evenly (Roberts 2018).
    const STEPS: [f64; 3] = [0.819_172_513_396_164_4, 0.671_043_606_703_789_2, 0.549_700_477_901_970_3];
    let place = |n: usize| {
        let i = near[n * near.len() / SAMPLES];
        let voxel = [0, 1, 2].map(|r| {
            let inside = (0.5 + n as f64 * STEPS[r]).fract() - 0.5;
            (i / steps[r] % shape[r]) as f64 - rim[r] as f64 + inside
        });
        apply(&prepared.affine, voxel)
    };
    if near.is_empty() { Vec::new() } else { (0..SAMPLES).map(place).collect() }
}

fn centre(places: &[[f64; 3]]) -> [f64; 3] {
    [0, 1, 2].map(|r| places.iter().map(|p| p[r]).sum::<f64>() / places.len().max(1) as f64)
}

/// The volume in voxels of `mm` millimetres, or its own where those are larger; RAS.
fn smoothed(volume: &Volume, mm: f64) -> Volume {
    let axes = Axes::of(&volume.affine);
    let view = View::of(volume);
    let spacing = axes.from.map(|a| volume.spacing()[a]);
    let step = spacing.map(|s| s.max(mm));
    let shape = [0, 1, 2].map(|r| (view.shape[r] as f64 * spacing[r] / step[r]).round().max(1.0) as usize);
    let taps = [0, 1, 2].map(|r| Taps::new(view.shape[r], 0.0, step[r] / spacing[r], 0..shape[r]));
    let ras = ras_affine(&volume.affine, volume.shape, axes);
    Volume {
        shape,
        affine: grid_affine(&ras, spacing, [0.0; 3], step),
        data: resample(&view, &taps, [0, 1, 2], |v| v),
    }
}
