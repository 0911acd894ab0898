//! Separable linear resampling along x, y and z, anti-aliased where it shrinks.
//!
//! Along each axis a new voxel is the weighted mean of old ones under a triangle around its centre, as wide as the
//! larger of the two voxel sizes: plain linear interpolation where voxels do not grow, and close to area averaging
//! where they do. Positions count from the volume's low edge, so a change of voxel size shifts nothing. Sums run in
//! RAS order whatever the order in memory, so every orientation of a scan gives the same bits.
use super::orientation::View;
use std::ops::Range;

/// Weights below this are dropped: they come from voxel sizes that differ in their last digits only.
const LEAST_WEIGHT: f64 = 1e-6;

/// For each new voxel along one axis, which old voxels it is made of, and how much of each.
pub(super) struct Taps {
    /// First old voxel, and the range of `weights` from there on; empty outside the old volume.
    taps: Vec<(usize, Range<usize>)>,
    weights: Vec<f32>,
}

impl Taps {
    /// The new voxels `outputs` of size `step` (in old voxels), counted from `origin` (in old voxels from the low
    /// edge), over an axis of `n` old voxels.
    pub(super) fn new(n: usize, origin: f64, step: f64, outputs: Range<usize>) -> Taps {
        let width = step.max(1.0);
        let mut weights: Vec<f32> = Vec::new();
        let tap = |o: usize| {
            let centre = origin + (o as f64 + 0.5) * step - 0.5;
            let begin = weights.len();
            if centre < -0.5 || centre > n as f64 - 0.5 {
                return (0, begin..begin);
            }
            let weight = |i: usize| 1.0 - (i as f64 - centre).abs() / width;
            let low = (centre - width).ceil().max(0.0) as usize;
            let high = ((centre + width).floor() as usize).min(n - 1);
            let used = || (low..=high).filter(|&i| weight(i) > LEAST_WEIGHT);
            let total: f64 = used().map(weight).sum();
            weights.extend(used().map(|i| (weight(i) / total) as f32));
            (used().next().unwrap_or(0), begin..weights.len())
        };
        Taps { taps: outputs.map(tap).collect(), weights }
    }
    /// The old voxels that take part.
    fn span(&self) -> Range<usize> {
        let used = || self.taps.iter().filter(|(_, w)| !w.is_empty());
        let begin = used().map(|t| t.0).min().unwrap_or(0);
        begin..used().map(|(first, w)| first + w.len()).max().unwrap_or(begin)
    }
    /// New voxels are the span's old ones.
    fn copies(&self) -> bool {
        let begin = self.span().start;
        let copy = |(o, (first, w)): (usize, &(usize, Range<usize>))| *first == begin + o && w.len() == 1;
        self.taps.iter().enumerate().all(copy)
    }
}

/// The share of white noise's standard deviation that is left when voxels along one axis are resampled to voxels
/// `step` times as large: the root of the mean sum of squared weights.
pub(super) fn noise_left(step: f64) -> f64 {
    const OUTPUTS: usize = 64;
    // Two voxels at either end, for the ends have fewer weights.
    let n = ((OUTPUTS + 4) as f64 * step).ceil() as usize + 4;
    let taps = Taps::new(n, 2.0 * step, step, 0..OUTPUTS);
    (taps.weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / OUTPUTS as f64).sqrt()
}

/// Resampled voxels, compact, their axes in the same order and direction in memory as the source's.
struct Block {
    data: Vec<f32>,
    shape: [usize; 3],
    stride: [isize; 3],
    start: usize,
}

impl Block {
    fn view(&self) -> View<'_> {
        View { data: &self.data, shape: self.shape, stride: self.stride, start: self.start }
    }
    /// A block of zeros whose memory is laid out like `like`.
    fn zeros(shape: [usize; 3], like: &View) -> Block {
        let (mut step, mut start) = (1, 0);
        let mut stride = [0; 3];
        for r in like.memory_order() {
            stride[r] = step as isize * like.stride[r].signum();
            if stride[r] < 0 {
                start += step * shape[r].saturating_sub(1);
            }
            step *= shape[r];
        }
        Block { data: vec![0.0; step], shape, stride, start }
    }
}

/// The view's voxels after `load`, resampled along all axes (the one that shrinks most goes first, the ones that stay
/// as they are not at all), in an array whose axes, fastest first, are `order`.
pub(super) fn resample(
    view: &View,
    taps: &[Taps; 3],
    order: [usize; 3],
    load: impl Fn(f32) -> f32 + Copy,
) -> Vec<f32> {
    let spans = [0, 1, 2].map(|r| taps[r].span());
    let growth = |r: usize| taps[r].taps.len() as f64 / spans[r].len().max(1) as f64;
    let mut passes: Vec<usize> = [2, 1, 0].into_iter().filter(|&r| !taps[r].copies()).collect();
    passes.sort_by(|&a, &b| growth(a).total_cmp(&growth(b)));
    let view = view.crop(&spans);
    let mut block: Option<Block> = None;
    for axis in passes {
        block = Some(match block {
            None => along(&view, axis, &taps[axis], load),
            Some(block) => along(&block.view(), axis, &taps[axis], |v| v),
        });
    }
    match block {
        None => view.copy(order, load),
        Some(block) => block.view().copy(order, |v| v),
    }
}

/// Resamples along `axis`, on which the view begins where the taps' span does.
fn along(view: &View, axis: usize, taps: &Taps, load: impl Fn(f32) -> f32 + Copy) -> Block {
    let offset = taps.span().start;
    let mut shape = view.shape;
    shape[axis] = taps.taps.len();
    let mut block = Block::zeros(shape, view);
    if block.data.is_empty() {
        return block;
    }
    let [near, middle, far] = view.memory_order();
    let n = shape[near];
    // Rows of the block in memory order; a flipped axis is passed from its high end.
    let forwards = |r: usize, i: usize| if view.stride[r] < 0 { shape[r] - 1 - i } else { i };
    for (index, row) in block.data.chunks_exact_mut(n).enumerate() {
        let mut voxel = [0; 3];
        voxel[middle] = forwards(middle, index % shape[middle]);
        voxel[far] = forwards(far, index / shape[middle]);
        let mut source = voxel;
        if axis == near {
            let from = view.at(source);
            for (i, to) in row.iter_mut().enumerate() {
                let (first, weights) = &taps.taps[forwards(near, i)];
                let (weights, behind) = (&taps.weights[weights.clone()], first.saturating_sub(offset));
                *to = if view.stride[near] < 0 {
                    let old = &view.data[from + 1 - behind - weights.len()..=from - behind];
                    weighted_sum(weights, old.iter().rev(), load)
                } else {
                    weighted_sum(weights, &view.data[from + behind..][..weights.len()], load)
                };
            }
        } else {
            let (first, weights) = &taps.taps[voxel[axis]];
            // The row's first voxel in memory.
            source[near] = if view.stride[near] < 0 { n - 1 } else { 0 };
            for (k, w) in taps.weights[weights.clone()].iter().enumerate() {
                source[axis] = first + k - offset;
                let from = view.at(source);
                add_scaled(row, &view.data[from..from + n], *w, load);
            }
        }
    }
    block
}

/// Σ weight · load(old)
#[inline(always)]
fn weighted_sum<'a>(
    weights: &[f32],
    old: impl IntoIterator<Item = &'a f32>,
    load: impl Fn(f32) -> f32,
) -> f32 {
    weights.iter().zip(old).fold(0.0, |sum, (w, &v)| sum + w * load(v))
}

/// row += weight · load(from)
#[inline(always)]
fn add_scaled(row: &mut [f32], from: &[f32], weight: f32, load: impl Fn(f32) -> f32) {
    for (to, &v) in row.iter_mut().zip(from) {
        *to += weight * load(v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::orientation::Axes;

    fn weights(taps: &Taps, o: usize) -> (usize, &[f32]) {
        (taps.taps[o].0, &taps.weights[taps.taps[o].1.clone()])
    }

    #[test]
    fn equal_voxels_are_copied() {
        let taps = Taps::new(5, 1.0, 1.0 + 1e-8, 0..4);
        for o in 0..4 {
            assert_eq!(weights(&taps, o), (o + 1, [1.0_f32].as_slice()));
        }
    }

    #[test]
    fn growing_is_linear_interpolation() {
        let taps = Taps::new(4, 0.0, 0.5, 0..8);
        assert_eq!(
            weights(&taps, 0),
            (0, [1.0].as_slice()),
            "beyond the outermost centres, the outermost voxel"
        );
        assert_eq!(weights(&taps, 1), (0, [0.75, 0.25].as_slice()));
        assert_eq!(weights(&taps, 2), (0, [0.25, 0.75].as_slice()));
    }

    #[test]
    fn halving_weighs_four_voxels() {
        let taps = Taps::new(8, 0.0, 2.0, 0..4);
        assert_eq!(weights(&taps, 1), (1, [0.125, 0.375, 0.375, 0.125].as_slice()));
    }

    #[test]
    fn noise_is_averaged_as_the_weights_say() {
        assert_eq!(noise_left(1.0), 1.0);
        let halved = 2.0 * (0.375_f64.powi(2) + 0.125_f64.powi(2));
        assert!((noise_left(2.0) - halved.sqrt()).abs() < 1e-6);
        // A wide triangle's: the square root of 2 / (3 step).
        assert!((noise_left(7.3) - (2.0 / 21.9_f64).sqrt()).abs() < 0.01);
    }

    #[test]
    fn outside_there_is_nothing() {
        let taps = Taps::new(3, -2.0, 1.0, 0..7);
        let full: Vec<bool> = (0..7).map(|o| !weights(&taps, o).1.is_empty()).collect();
        assert_eq!(full, [false, false, true, true, true, false, false]);
    }

    /// A ramp stays a ramp, whichever way the axes lie in memory; all orientations agree bit for bit.
    #[test]
    fn ramps_and_orientations() {
        let shape = [9, 12, 11];
        let value = |x: usize, y: usize, z: usize| (3 * x + 5 * y) as f32 - 7.0 * z as f32;
        let mut first: Option<Vec<f32>> = None;
        for flip in [[false; 3], [true, false, true], [false, true, false]] {
            for from in [[0, 1, 2], [2, 0, 1], [1, 0, 2], [2, 1, 0]] {
                let axes = Axes { from, flip };
                let mut own = [0; 3];
                (0..3).for_each(|r| own[from[r]] = shape[r]);
                let mut data = vec![0.0; shape.iter().product()];
                let empty = View::new(&[], own, axes);
                for x in 0..shape[0] {
                    for y in 0..shape[1] {
                        for z in 0..shape[2] {
                            data[empty.at([x, y, z])] = value(x, y, z);
                        }
                    }
                }
                let steps = [1.5, 2.0, 0.7];
                let taps = [0, 1, 2].map(|r| Taps::new(shape[r], 2.0, steps[r], 0..3));
                let out = resample(&View::new(&data, own, axes), &taps, [0, 1, 2], |v| v + 1.0);
                let first = first.get_or_insert_with(|| out.clone());
                assert!(*first == out, "{axes:?}");
            }
        }
        let at = |r: usize, o: usize| 2.0 + (o as f32 + 0.5) * [1.5, 2.0, 0.7][r] - 0.5;
        for (i, v) in first.unwrap().into_iter().enumerate() {
            let expected = 3.0 * at(0, i % 3) + 5.0 * at(1, i / 3 % 3) - 7.0 * at(2, i / 9) + 1.0;
            assert!((v - expected).abs() < 0.2, "{i}: {v} {expected}");
        }
    }
}
