//! What is left of the head, where its brain is and where there is air.
use super::Measures;
use crate::image::{self, Error, HEAD_SPACING, Volume, orientation::to_ras};
use serde::Serialize;
use std::{borrow::Cow, fmt};

/// What is left of the head in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Everything the scanner saw.
    WholeHead,
    /// The face was taken off: the air in front is no air.
    Defaced,
    /// The brain alone, on a constant background.
    SkullStripped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::WholeHead => "whole head",
            State::Defaced => "defaced",
            State::SkullStripped => "skull-stripped",
        })
    }
}

/// Where tissue is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Region {
    /// In the brain mask that came with the scan.
    Mask,
    /// In what skull-stripping left.
    Stripped,
    /// More than 16 mm deep in the upper 120 mm of the head: mostly brain.
    HeadCore,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Region::Mask => "brain mask",
            Region::Stripped => "all but the background",
            Region::HeadCore => "core of the head",
        })
    }
}

/// A scan in RAS, x fastest.
pub(super) struct Scene<'a> {
    pub(super) shape: [usize; 3],
    pub(super) spacing: [f64; 3],
    /// Finite everywhere.
    pub(super) data: Cow<'a, [f32]>,
    /// Where tissue is measured.
    pub(super) brain: Vec<bool>,
    /// The head and its air; `None` when it is stripped.
    pub(super) head: Option<Head>,
    pub(super) state: State,
    pub(super) region: Region,
    /// Planes (axis, place) that hold nothing.
    gone: Vec<(usize, usize)>,
}

/// The head, in cells of 4 mm.
pub(super) struct Head {
    pub(super) shape: [usize; 3],
    pub(super) inside: Vec<bool>,
    /// More than 8 mm from all tissue, and less than 100 mm below the top: the "hat" of air that breathing, blood and
    /// the neck do not reach.
    pub(super) hat: Vec<bool>,
}

/// How far the face lies behind the forehead when it is none, in millimetres.
const RECEDES: f64 = 20.0;
/// Of the head's usual brightness, a cell of 4 mm with more than this share holds tissue.
const TISSUE: f32 = 0.2;
/// Cells that hold together and are no speck: 2 mL.
const SPECK: usize = 32;
/// The most that a skull-stripped image can hold, in millilitres: a whole head has twice that.
const LARGEST_BRAIN: f64 = 2200.0;

impl<'a> Scene<'a> {
    pub(super) fn new(
        volume: &'a Volume,
        mask: Option<Volume>,
        measures: &mut Measures,
    ) -> Result<Scene<'a>, Error> {
        let (shape, spacing) = (volume.shape, volume.spacing());
        let total = volume.data.len();
        let broken = volume.data.iter().filter(|v| !v.is_finite()).count();
        measures.set("not_finite", broken as f64 / total as f64);
        let least = volume.data.iter().copied().filter(|v| v.is_finite()).fold(f32::MAX, f32::min);
        let data: Cow<[f32]> = if broken == 0 {
            Cow::Borrowed(&volume.data)
        } else {
            Cow::Owned(volume.data.iter().map(|v| if v.is_finite() { *v } else { least }).collect())
        };
        let (first, most) = (data[0], data.iter().copied().fold(f32::MIN, f32::max));
        if broken == total || least >= most {
            return Err(Error::Constant(first));
        }
        let seen = Volume { shape, affine: volume.affine, data: Vec::new() };
        let background = if broken == 0 { background(volume) } else { None };
        let mask = mask.map(|mask| image::fit(mask, &seen).map(to_ras)).transpose()?;
        let given = mask.map(|mask| mask.data.iter().map(|&v| v > 0.5).collect::<Vec<bool>>());

        let (state, head) = if background.is_some() {
            (State::SkullStripped, None)
        } else {
            let repaired;
            let image = if broken == 0 {
                volume
            } else {
                repaired = Volume { data: data.to_vec(), ..seen };
                &repaired
            };
            let head = Head::of(image, &image::head_mask(image)?);
            (if head.recedes() { State::Defaced } else { State::WholeHead }, Some(head))
        };
        let (region, brain) = match (given, background, &head) {
            (Some(brain), _, _) => (Region::Mask, brain),
            (None, Some(value), _) => (Region::Stripped, data.iter().map(|&v| v != value).collect()),
            (None, None, Some(head)) => (Region::HeadCore, head.look_up(&head.core(), shape, spacing)),
            (None, None, None) => unreachable!("without a background there is a head"),
        };
        if !brain.iter().any(|&b| b) {
            return Err(Error::NoBrain("the head is too small to have one"));
        }
        Ok(Scene { shape, spacing, data, brain, head, state, region, gone: Vec::new() })
    }

    /// Planes that hold nothing are no tissue and no air, unless nothing else is left.
    pub(super) fn leave_out(&mut self, gone: Vec<(usize, usize)>) {
        self.gone = gone;
        let kept = self.present(self.brain.clone());
        if kept.iter().any(|&k| k) {
            self.brain = kept;
        }
    }

    /// `voxels` without those in planes that hold nothing.
    pub(super) fn present(&self, mut voxels: Vec<bool>) -> Vec<bool> {
        let steps = self.steps();
        for &(r, place) in &self.gone {
            for block in voxels.chunks_mut(steps[r] * self.shape[r]) {
                block[place * steps[r]..(place + 1) * steps[r]].fill(false);
            }
        }
        voxels
    }

    /// The brain's voxels, in order.
    pub(super) fn inside(&self) -> Vec<f32> {
        self.data.iter().zip(&self.brain).filter(|(_, b)| **b).map(|(v, _)| *v).collect()
    }

    /// Steps in memory along x, y and z.
    pub(super) fn steps(&self) -> [usize; 3] {
        [1, self.shape[0], self.shape[0] * self.shape[1]]
    }
}

/// The background's value of a skull-stripped image: as preprocessing finds it, or, where the field of view cuts the
/// brain, the value of all corners. What is left must be small enough for a brain: a defaced head on blank air is not.
fn background(volume: &Volume) -> Option<f32> {
    let [nx, ny, nz] = volume.shape;
    let value = volume.data[0];
    let corners = (0..8).all(|c| {
        let at = |bit: usize, n: usize| if c >> bit & 1 == 1 { n - 1 } else { 0 };
        volume.data[at(0, nx) + nx * (at(1, ny) + ny * at(2, nz))] == value
    });
    let other = volume.data.iter().filter(|&&v| v != value).count();
    let ml = other as f64 * volume.spacing().iter().product::<f64>() / 1000.0;
    let blank = corners && other * 10 <= volume.data.len() * 7;
    (ml <= LARGEST_BRAIN && (blank || image::background(volume).is_some())).then_some(value)
}

impl Head {
    /// `mask` is what is brightest and holds together. The scalp may stand apart from it, or be too dark: all cells of
    /// a fifth of its brightness are tissue, but for specks.
    fn of(image: &Volume, mask: &Volume) -> Head {
        let shape = mask.shape;
        let mean = cells(image, shape);
        let mut bright: Vec<f32> =
            mean.iter().zip(&mask.data).filter(|(_, m)| **m > 0.5).map(|(v, _)| *v).collect();
        let least = image.data.iter().copied().fold(f32::MAX, f32::min);
        let usual = super::percentile(&mut bright, 0.5) as f32 - least;
        let tissue: Vec<bool> = mean.iter().map(|v| v - least > TISSUE * usual).collect();
        let (labels, parts) = image::components(&tissue, shape);
        let tissue: Vec<bool> = labels.iter().map(|l| l.is_some_and(|l| parts[l].voxels >= SPECK)).collect();
        let air: Vec<bool> = tissue.iter().map(|t| !t).collect();
        let (labels, parts) = image::components(&air, shape);
        let inside: Vec<bool> = labels.iter().map(|l| l.is_none_or(|l| !parts[l].touches_face)).collect();
        let mut near = inside.clone();
        (0..2).for_each(|_| near = spread(&near, shape, true));
        let top = inside.iter().rposition(|&h| h).map_or(0, |i| i / (shape[0] * shape[1]));
        let lowest = top.saturating_sub((100.0 / HEAD_SPACING) as usize);
        let hat = near.iter().enumerate().map(|(i, n)| !n && i / (shape[0] * shape[1]) > lowest).collect();
        Head { shape, inside, hat }
    }

    fn at(&self, x: usize, y: usize, z: usize) -> bool {
        self.inside[x + self.shape[0] * (y + self.shape[1] * z)]
    }

    fn top(&self) -> usize {
        self.inside.iter().rposition(|&h| h).map_or(0, |i| i / (self.shape[0] * self.shape[1]))
    }

    /// The foremost cell of the head's middle third at height `z`.
    fn front(&self, z: usize) -> Option<usize> {
        let middle = self.shape[0] / 3..self.shape[0] - self.shape[0] / 3;
        (0..self.shape[1]).rev().find(|&y| middle.clone().any(|x| self.at(x, y, z)))
    }

    /// Whether the face lies far behind the forehead: 120 to 150 mm below the top, where nose and mouth are, against 40
    /// to 90 mm. A field of view that ends above the nose cannot tell.
    fn recedes(&self) -> bool {
        let top = self.top();
        let foremost = |mm: [f64; 2]| {
            let [high, low] = mm.map(|mm| top.checked_sub((mm / HEAD_SPACING) as usize));
            let (Some(high), Some(low)) = (high, low) else { return None };
            (low..=high).filter_map(|z| self.front(z)).max()
        };
        match (foremost([40.0, 90.0]), foremost([120.0, 150.0])) {
            (Some(forehead), Some(face)) => (forehead as f64 - face as f64) * HEAD_SPACING >= RECEDES,
            _ => false,
        }
    }

    /// More than 16 mm deep, and at most 120 mm below the top.
    fn core(&self) -> Vec<bool> {
        let mut core = self.inside.clone();
        (0..4).for_each(|_| core = spread(&core, self.shape, false));
        let lowest = self.top().saturating_sub((120.0 / HEAD_SPACING) as usize);
        let plane = self.shape[0] * self.shape[1];
        core.iter_mut().take(lowest * plane).for_each(|c| *c = false);
        core
    }

    /// Cells as seen from the voxels of the scan.
    pub(super) fn look_up(&self, cells: &[bool], shape: [usize; 3], spacing: [f64; 3]) -> Vec<bool> {
        let cell = [0, 1, 2].map(|r| {
            let at = |i: usize| ((i as f64 + 0.5) * spacing[r] / HEAD_SPACING) as usize;
            (0..shape[r]).map(|i| at(i).min(self.shape[r] - 1)).collect::<Vec<usize>>()
        });
        let mut seen = Vec::with_capacity(shape.iter().product());
        for z in &cell[2] {
            for y in &cell[1] {
                let row = self.shape[0] * (y + self.shape[1] * z);
                seen.extend(cell[0].iter().map(|x| cells[row + x]));
            }
        }
        seen
    }
}

/// The mean of the voxels whose centres lie in each cell; the voxel at its centre where there are none.
fn cells(image: &Volume, shape: [usize; 3]) -> Vec<f32> {
    let spacing = image.spacing();
    let cell = [0, 1, 2].map(|r| {
        let at = |i: usize| ((i as f64 + 0.5) * spacing[r] / HEAD_SPACING) as usize;
        (0..image.shape[r]).map(|i| at(i).min(shape[r] - 1)).collect::<Vec<usize>>()
    });
    let [nx, ny, _] = image.shape;
    let mut sums = vec![(0.0_f32, 0.0_f32); shape.iter().product()];
    for (row, values) in image.data.chunks_exact(nx).enumerate() {
        let from = shape[0] * (cell[1][row % ny] + shape[1] * cell[2][row / ny]);
        for (v, x) in values.iter().zip(&cell[0]) {
            let (sum, n) = &mut sums[from + x];
            *sum += v;
            *n += 1.0;
        }
    }
    let centre = |r: usize, i: usize| {
        (((i as f64 + 0.5) * HEAD_SPACING / spacing[r]) as usize).min(image.shape[r] - 1)
    };
    let mean = |(i, (sum, n)): (usize, &(f32, f32))| {
        if *n > 0.0 {
            return sum / n;
        }
        let (x, y, z) = (i % shape[0], i / shape[0] % shape[1], i / (shape[0] * shape[1]));
        image.data[centre(0, x) + nx * (centre(1, y) + ny * centre(2, z))]
    };
    sums.iter().enumerate().map(mean).collect()
}

/// One step through faces: `cells` and what touches them (`grow`), or what touches nothing else. Beyond the volume all
/// is as at its face.
fn spread(cells: &[bool], shape: [usize; 3], grow: bool) -> Vec<bool> {
    let steps = [1, shape[0], shape[0] * shape[1]];
    let mut out = cells.to_vec();
    for (i, out) in out.iter_mut().enumerate() {
        for r in 0..3 {
            let at = i / steps[r] % shape[r];
            let near = [(at > 0).then(|| i - steps[r]), (at + 1 < shape[r]).then(|| i + steps[r])];
            if near.into_iter().flatten().any(|j| cells[j] == grow) {
                *out = grow;
            }
        }
    }
    out
}
