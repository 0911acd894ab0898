//! From a recipe to one scan's distortions: everything that is left to chance.
use super::recipe::{Axis, Range, Recipe, Side};
use crate::machine::philox::{Philox, Purpose};
use serde::Serialize;

/// The axes of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Along {
    X,
    Y,
    Z,
}

impl Along {
    pub(super) fn index(self) -> usize {
        match self {
            Along::X => 0,
            Along::Y => 1,
            Along::Z => 2,
        }
    }
}

/// Where the head lies while a part of k-space is acquired.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pose {
    /// The share of k-space, from its first plane on, at whose end the head moves on.
    pub until: f64,
    /// Rotation vector, about the centre of the head's box.
    pub rotation_degrees: [f64; 3],
    /// Shift after the rotation.
    pub translation_mm: [f64; 3],
}

/// One sample of k-space that is too strong.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spike {
    /// As a multiple of the spectrum's greatest sample.
    pub intensity: f64,
    /// Which stripes it makes; moved to the nearest sample of the scan's own k-space.
    pub cycles_per_mm: [f64; 3],
    /// In radians, at the first voxel.
    pub phase: f64,
}

/// One distortion with all that was drawn for it; the terms are those of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the recipe has the terms")]
pub enum Distortion {
    /// Coefficients of the products of Legendre polynomials whose degrees [`TERMS`] lists, each of unit mean square
    /// over the head's box; their norm is `sd`.
    BiasField {
        sd: f64,
        coefficients: Vec<f64>,
    },
    Motion {
        axis: Along,
        poses: Vec<Pose>,
    },
    WrapAround {
        side: Side,
        mm: f64,
    },
    Gibbs {
        axis: Along,
        mm: f64,
    },
    Ghosting {
        axis: Along,
        intensity: f64,
        ghosts: u32,
        restore: f64,
    },
    Spikes {
        spikes: Vec<Spike>,
    },
    Blur {
        fwhm_mm: f64,
    },
    Anisotropy {
        axis: Along,
        factor: f64,
    },
    Noise {
        sigma: f64,
    },
    /// `position` runs from 0, the slab at the head's lower end, to 1, at its upper end.
    SlabLoss {
        axis: Along,
        fraction: f64,
        position: f64,
    },
    Truncation {
        side: Side,
        mm: f64,
    },
}

/// Degrees along x, y and z of the bias field's terms: all products up to the third order but the constant.
pub const TERMS: [[usize; 3]; 19] = [
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1],
    [2, 0, 0],
    [0, 2, 0],
    [0, 0, 2],
    [1, 1, 0],
    [1, 0, 1],
    [0, 1, 1],
    [3, 0, 0],
    [0, 3, 0],
    [0, 0, 3],
    [2, 1, 0],
    [2, 0, 1],
    [1, 2, 0],
    [0, 2, 1],
    [1, 0, 2],
    [0, 1, 2],
    [1, 1, 1],
];

/// What random numbers of a scan are for. Each kind of distortion has a stream of its own, so that its draws do not
/// depend on which others are applied: on the ladder the same scan moves in the same directions, only further.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    BiasField,
    Motion,
    WrapAround,
    Gibbs,
    Ghosting,
    Spikes,
    Blur,
    Anisotropy,
    Noise,
    SlabLoss,
    Truncation,
    /// Voxels of a plane: the stream's number and the plane's are added.
    Voxels,
}

/// Whose distortions they are: a seed, and the scan's name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    seed: u64,
    scan: u64,
}

impl Source {
    pub(super) fn new(seed: u64, scan: &str) -> Source {
        let hash = blake3::hash(scan.as_bytes());
        let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        Source { seed, scan: u64::from_le_bytes(*first) }
    }
    fn stream(self, stream: Stream) -> Philox {
        Philox::new(self.seed, Purpose::Distort, self.scan, stream as u32)
    }
    /// Noise of one plane of voxels.
    pub(super) fn plane(self, plane: u32) -> Philox {
        Philox::new(self.seed, Purpose::Distort, self.scan, (Stream::Voxels as u32).wrapping_add(plane))
    }
}

fn uniform(r: &mut Philox) -> f64 {
    f64::from(r.uniform())
}

fn draw(range: Range, r: &mut Philox) -> f64 {
    range.low + (range.high - range.low) * uniform(r)
}

/// A whole number of the range, both ends included.
fn draw_whole(range: Range, r: &mut Philox) -> u32 {
    let choices = (range.high - range.low) as usize + 1;
    range.low as u32 + r.below(choices) as u32
}

fn draw_axis(axis: Axis, r: &mut Philox) -> Along {
    let drawn = [Along::X, Along::Y, Along::Z][r.below(3)];
    match axis {
        Axis::X => Along::X,
        Axis::Y => Along::Y,
        Axis::Z => Along::Z,
        Axis::Any => drawn,
    }
}

/// Evenly distributed on the unit sphere.
fn direction(r: &mut Philox) -> [f64; 3] {
    loop {
        let v = [0; 3].map(|_| f64::from(r.normal()));
        let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length > 1e-3 {
            return v.map(|x| x / length);
        }
    }
}

/// The distortions of `recipe` for one scan, in the order in which they are applied; those without strength are left
/// out.
pub(super) fn distortions(recipe: &Recipe, source: Source) -> Vec<Distortion> {
    let mut all = Vec::new();
    let has = |range: Range| range.high > 0.0;
    if has(recipe.bias_field.sd) {
        let r = &mut source.stream(Stream::BiasField);
        let sd = draw(recipe.bias_field.sd, r);
        let normals = TERMS.map(|_| f64::from(r.normal()));
        let norm = normals.iter().map(|c| c * c).sum::<f64>().sqrt();
        all.push(Distortion::BiasField { sd, coefficients: normals.map(|c| c * sd / norm).to_vec() });
    }
    let motion = &recipe.motion;
    if motion.moves > 0 && (has(motion.degrees) || has(motion.mm)) {
        let r = &mut source.stream(Stream::Motion);
        let axis = draw_axis(motion.axis, r);
        all.push(Distortion::Motion { axis, poses: poses(recipe, r) });
    }
    if has(recipe.wrap_around.mm) {
        let r = &mut source.stream(Stream::WrapAround);
        let sides = &recipe.wrap_around.sides;
        all.push(Distortion::WrapAround {
            side: sides[r.below(sides.len())],
            mm: draw(recipe.wrap_around.mm, r),
        });
    }
    if has(recipe.gibbs.mm) {
        let r = &mut source.stream(Stream::Gibbs);
        all.push(Distortion::Gibbs { axis: draw_axis(recipe.gibbs.axis, r), mm: draw(recipe.gibbs.mm, r) });
    }
    let ghosting = &recipe.ghosting;
    if has(ghosting.intensity) {
        let r = &mut source.stream(Stream::Ghosting);
        all.push(Distortion::Ghosting {
            axis: draw_axis(ghosting.axis, r),
            intensity: draw(ghosting.intensity, r),
            ghosts: draw_whole(ghosting.ghosts, r),
            restore: ghosting.restore,
        });
    }
    if recipe.spikes.count > 0 && has(recipe.spikes.intensity) {
        let r = &mut source.stream(Stream::Spikes);
        let spike = |_| {
            let intensity = draw(recipe.spikes.intensity, r);
            let wavelength = draw(recipe.spikes.wavelength_mm, r);
            let cycles_per_mm = direction(r).map(|d| d / wavelength);
            Spike { intensity, cycles_per_mm, phase: std::f64::consts::TAU * uniform(r) }
        };
        all.push(Distortion::Spikes { spikes: (0..recipe.spikes.count).map(spike).collect() });
    }
    if has(recipe.blur.fwhm_mm) {
        let r = &mut source.stream(Stream::Blur);
        all.push(Distortion::Blur { fwhm_mm: draw(recipe.blur.fwhm_mm, r) });
    }
    if recipe.anisotropy.factor.high > 1.0 {
        let r = &mut source.stream(Stream::Anisotropy);
        let axis = draw_axis(recipe.anisotropy.axis, r);
        all.push(Distortion::Anisotropy { axis, factor: draw(recipe.anisotropy.factor, r) });
    }
    if has(recipe.noise.sigma) {
        let r = &mut source.stream(Stream::Noise);
        all.push(Distortion::Noise { sigma: draw(recipe.noise.sigma, r) });
    }
    if has(recipe.slab_loss.fraction) {
        let r = &mut source.stream(Stream::SlabLoss);
        all.push(Distortion::SlabLoss {
            axis: draw_axis(recipe.slab_loss.axis, r),
            fraction: draw(recipe.slab_loss.fraction, r),
            position: uniform(r),
        });
    }
    if has(recipe.truncation.mm) {
        let r = &mut source.stream(Stream::Truncation);
        let sides = &recipe.truncation.sides;
        all.push(Distortion::Truncation {
            side: sides[r.below(sides.len())],
            mm: draw(recipe.truncation.mm, r),
        });
    }
    all
}

/// k-space in `moves` + 1 nearly equal parts. The part that holds its centre, which shows most of the image, has the
/// head in its own place, so that the image stays where it was; in every other part the head lies elsewhere.
fn poses(recipe: &Recipe, r: &mut Philox) -> Vec<Pose> {
    let moves = recipe.motion.moves;
    let parts = f64::from(moves) + 1.0;
    let mut poses = Vec::new();
    let mut from = 0.0;
    for part in 1..=moves + 1 {
        let jitter = 0.5 * (uniform(r) - 0.5);
        let until = if part > moves { 1.0 } else { (f64::from(part) + jitter) / parts };
        let (turn, angle) = (direction(r), draw(recipe.motion.degrees, r));
        let (shift, mm) = (direction(r), draw(recipe.motion.mm, r));
        // The middle plane is acquired at 1/2.
        let still = from <= 0.5 && 0.5 < until;
        let [angle, mm] = if still { [0.0; 2] } else { [angle, mm] };
        poses.push(Pose {
            until,
            rotation_degrees: turn.map(|d| d * angle),
            translation_mm: shift.map(|d| d * mm),
        });
        from = until;
    }
    poses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::distort::recipe::LEVELS;

    fn drawn(level: u8, seed: u64, scan: &str) -> Vec<Distortion> {
        distortions(&Recipe::level(level), Source::new(seed, scan))
    }

    fn length(v: [f64; 3]) -> f64 {
        v.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// A distortion's kind and its strengths, each growing with severity.
    fn strengths(distortion: &Distortion) -> (&'static str, Vec<f64>) {
        match distortion {
            Distortion::BiasField { sd, .. } => ("bias", vec![*sd]),
            Distortion::Motion { poses, .. } => {
                let moved = poses.iter().map(|p| length(p.rotation_degrees));
                let shifted = poses.iter().map(|p| length(p.translation_mm));
                ("motion", vec![poses.len() as f64, moved.fold(0.0, f64::max), shifted.fold(0.0, f64::max)])
            }
            Distortion::WrapAround { mm, .. } => ("wrap", vec![*mm]),
            Distortion::Gibbs { mm, .. } => ("gibbs", vec![*mm]),
            Distortion::Ghosting { intensity, .. } => ("ghosting", vec![*intensity]),
            Distortion::Spikes { spikes } => ("spikes", spikes.iter().map(|s| s.intensity).collect()),
            Distortion::Blur { fwhm_mm } => ("blur", vec![*fwhm_mm]),
            Distortion::Anisotropy { factor, .. } => ("anisotropy", vec![*factor]),
            Distortion::Noise { sigma } => ("noise", vec![*sigma]),
            Distortion::SlabLoss { fraction, .. } => ("slab", vec![*fraction]),
            Distortion::Truncation { mm, .. } => ("truncation", vec![*mm]),
        }
    }

    #[test]
    fn draws_follow_from_seed_scan_and_level() {
        for level in 1..=LEVELS {
            assert_eq!(drawn(level, 1, "sub-01_T1w"), drawn(level, 1, "sub-01_T1w"));
            assert_ne!(drawn(level, 1, "sub-01_T1w"), drawn(level, 1, "sub-02_T1w"));
            assert_ne!(drawn(level, 1, "sub-01_T1w"), drawn(level, 2, "sub-01_T1w"));
        }
        assert!(drawn(0, 1, "sub-01_T1w").is_empty());
    }

    #[test]
    fn a_more_severe_level_does_all_that_a_less_severe_one_does() {
        for seed in 0..50 {
            for level in 0..LEVELS {
                let (less, more) = (drawn(level, seed, "a"), drawn(level + 1, seed, "a"));
                let more: Vec<_> = more.iter().map(strengths).collect();
                for (kind, least) in less.iter().map(strengths) {
                    let (_, strength) = more.iter().find(|(k, _)| *k == kind).unwrap();
                    let at_least = strength.iter().zip(&least).all(|(s, l)| *s >= l - 1e-12);
                    assert!(at_least, "{kind} at level {level}: {least:?}, then {strength:?}");
                }
            }
        }
    }

    #[test]
    fn the_ladder_is_the_one_that_is_documented() {
        let kinds = |level| drawn(level, 5, "a").iter().map(|d| strengths(d).0).collect::<Vec<_>>();
        assert_eq!(kinds(1), ["bias", "noise"]);
        assert_eq!(kinds(2), ["bias", "motion", "ghosting", "noise"]);
        assert_eq!(kinds(3), ["bias", "motion", "ghosting", "anisotropy", "noise"]);
        let all = ["bias", "motion", "ghosting", "spikes", "anisotropy", "noise", "slab", "truncation"];
        assert_eq!(kinds(4), all);
    }

    #[test]
    fn every_part_of_k_space_but_the_centre_is_of_a_head_moved_as_asked() {
        for seed in 0..100 {
            for (level, moves, size) in [(2, 1, 3.0), (3, 3, 6.0), (4, 5, 10.0)] {
                let drawn = drawn(level, seed, "a");
                let Some(Distortion::Motion { poses, .. }) = drawn.get(1) else { panic!("{drawn:?}") };
                assert_eq!(poses.len(), moves + 1);
                let mut from = 0.0;
                for pose in poses {
                    assert!(pose.until > from, "the parts come one after another");
                    let size = if from <= 0.5 && 0.5 < pose.until { 0.0 } else { size };
                    for v in [pose.rotation_degrees, pose.translation_mm] {
                        assert!((length(v) - size).abs() < 1e-9);
                    }
                    from = pose.until;
                }
                assert_eq!(from, 1.0);
            }
        }
    }

    #[test]
    fn ranges_are_drawn_evenly_and_ghosts_are_whole() {
        let mut recipe = Recipe::none();
        recipe.blur.fwhm_mm = [2.0, 4.0].into();
        recipe.ghosting.intensity = 0.5.into();
        let mut widths = Vec::new();
        let mut counts = [0; 11];
        for seed in 0..2000 {
            let drawn = distortions(&recipe, Source::new(seed, "a"));
            let [Distortion::Ghosting { ghosts, .. }, Distortion::Blur { fwhm_mm }] = drawn[..] else {
                panic!("{drawn:?}")
            };
            counts[ghosts as usize] += 1;
            widths.push(fwhm_mm);
        }
        assert!(counts[..4].iter().all(|&n| n == 0) && counts[4..].iter().all(|&n| n > 200), "{counts:?}");
        let mean = widths.iter().sum::<f64>() / 2000.0;
        assert!((mean - 3.0).abs() < 0.05 && widths.iter().all(|w| (2.0..=4.0).contains(w)));
    }
}
