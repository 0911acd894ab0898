//! What is done to a scan, and how strongly: the ladder of four levels, and recipes of one's own.
use super::Error;
use serde::{Deserialize, Serialize};

/// A strength: a number, or the least and the greatest of what is drawn for each scan, evenly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Given", into = "Given")]
pub struct Range {
    /// The least.
    pub low: f64,
    /// The greatest.
    pub high: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, or [least, greatest]")]
enum Given {
    One(f64),
    Two([f64; 2]),
}

impl TryFrom<Given> for Range {
    type Error = &'static str;
    fn try_from(given: Given) -> Result<Range, &'static str> {
        let (low, high) = match given {
            Given::One(value) => (value, value),
            Given::Two([low, high]) => (low, high),
        };
        if low <= high { Ok(Range { low, high }) } else { Err("expected [least, greatest]") }
    }
}

impl From<Range> for Given {
    fn from(range: Range) -> Given {
        if range.low == range.high { Given::One(range.low) } else { Given::Two([range.low, range.high]) }
    }
}

impl From<f64> for Range {
    fn from(value: f64) -> Range {
        Range { low: value, high: value }
    }
}

impl From<[f64; 2]> for Range {
    fn from([low, high]: [f64; 2]) -> Range {
        Range { low, high }
    }
}

/// An axis of the head, or one that is drawn for each scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Left to right.
    X,
    /// Back to front.
    Y,
    /// Bottom to top.
    Z,
    /// Drawn.
    Any,
}

/// A face of the field of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Side {
    Left,
    Right,
    Back,
    Front,
    Bottom,
    Top,
}

impl Side {
    /// The axis that ends there, and whether it is its upper end.
    pub(super) fn end(self) -> (usize, bool) {
        match self {
            Side::Left => (0, false),
            Side::Right => (0, true),
            Side::Back => (1, false),
            Side::Front => (1, true),
            Side::Bottom => (2, false),
            Side::Top => (2, true),
        }
    }
}

/// Brightness that varies slowly over the head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiasField {
    /// Standard deviation of the field's logarithm over the head's box.
    pub sd: Range,
}

/// The head moves while k-space is filled plane after plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Motion {
    /// How many times it moves; in between it keeps still.
    pub moves: u32,
    /// How far it is turned from where it lies when the centre of k-space is acquired.
    pub degrees: Range,
    /// How far it is shifted from there.
    pub mm: Range,
    /// The axis whose frequencies are acquired one after another.
    pub axis: Axis,
}

/// A field of view that is shorter than the head: what lies outside appears at the other end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrapAround {
    /// How much of the head lies outside.
    pub mm: Range,
    /// On which sides it may be.
    pub sides: Vec<Side>,
}

/// Ringing at edges, from k-space that ends early along one axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gibbs {
    /// The resolution at which k-space ends.
    pub mm: Range,
    /// The axis along which it ends.
    pub axis: Axis,
}

/// Copies of the head along one axis, from planes of k-space that are too weak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ghosting {
    /// The share that those planes lose. Each ghost is this share, divided by the number of ghosts, of the head.
    pub intensity: Range,
    /// How many: every such plane of k-space is weak. They lie that part of the field of view apart.
    pub ghosts: Range,
    /// The share of k-space, around its centre, that is not touched.
    pub restore: f64,
    /// The axis along which they lie.
    pub axis: Axis,
}

/// Stripes, from single samples of k-space that are far too strong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spikes {
    /// How many samples.
    pub count: u32,
    /// How strong, as a multiple of the greatest sample of the scan's spectrum.
    pub intensity: Range,
    /// From stripe to stripe.
    pub wavelength_mm: Range,
}

/// Loss of sharpness, the same in all directions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blur {
    /// Full width at half maximum of the Gaussian.
    pub fwhm_mm: Range,
}

/// Thick slices along one axis, interpolated to the grid the scan had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anisotropy {
    /// Thickness of a slice, in voxels of the scan; 1 is none.
    pub factor: Range,
    /// The axis across the slices.
    pub axis: Axis,
}

/// Noise of a magnitude image: white in both channels of the receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// Standard deviation of a channel, as a share of the head's bright tissue (99th percentile in its box).
    pub sigma: Range,
}

/// Slices that are missing: set to the scan's least value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlabLoss {
    /// The share of the head's extent along the axis.
    pub fraction: Range,
    /// The axis across the slices.
    pub axis: Axis,
}

/// A field of view that ends inside the head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truncation {
    /// How much of the head is cut off.
    pub mm: Range,
    /// On which sides it may be.
    pub sides: Vec<Side>,
}

/// What is done to scans, in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "each is described where it is defined")]
pub struct Recipe {
    pub bias_field: BiasField,
    pub motion: Motion,
    pub wrap_around: WrapAround,
    pub gibbs: Gibbs,
    pub ghosting: Ghosting,
    pub spikes: Spikes,
    pub blur: Blur,
    pub anisotropy: Anisotropy,
    pub noise: Noise,
    pub slab_loss: SlabLoss,
    pub truncation: Truncation,
}

/// The greatest level of the ladder.
pub const LEVELS: u8 = 4;

impl Recipe {
    /// Nothing at all: every distortion is there with no strength.
    pub fn none() -> Recipe {
        use Axis::Any;
        use Side::{Back, Left, Right, Top};
        // Not the front, of which defacing has taken a part, nor the bottom, where the neck goes on anyway.
        let sides = vec![Left, Right, Back, Top];
        Recipe {
            bias_field: BiasField { sd: 0.0.into() },
            motion: Motion { moves: 0, degrees: 0.0.into(), mm: 0.0.into(), axis: Any },
            wrap_around: WrapAround { mm: 0.0.into(), sides: sides.clone() },
            gibbs: Gibbs { mm: 0.0.into(), axis: Any },
            ghosting: Ghosting {
                intensity: 0.0.into(),
                ghosts: [4.0, 10.0].into(),
                restore: 0.02,
                axis: Any,
            },
            spikes: Spikes { count: 0, intensity: 0.0.into(), wavelength_mm: [6.0, 40.0].into() },
            blur: Blur { fwhm_mm: 0.0.into() },
            anisotropy: Anisotropy { factor: 1.0.into(), axis: Any },
            noise: Noise { sigma: 0.0.into() },
            slab_loss: SlabLoss { fraction: 0.0.into(), axis: Any },
            truncation: Truncation { mm: 0.0.into(), sides },
        }
    }

    /// Level 0 (nothing) to [`LEVELS`]; each level does all that the one before does, at least as strongly.
    ///
    /// # Panics
    /// For a level above [`LEVELS`].
    pub fn level(level: u8) -> Recipe {
        assert!(level <= LEVELS, "level {level} of {LEVELS}");
        let mut recipe = Recipe::none();
        if level >= 1 {
            recipe.noise.sigma = 0.03.into();
            recipe.bias_field.sd = 0.2.into();
        }
        let (moves, size) = [(0, 0.0), (0, 0.0), (1, 3.0), (3, 6.0), (5, 10.0)][usize::from(level)];
        recipe.motion = Motion { moves, degrees: size.into(), mm: size.into(), ..recipe.motion };
        recipe.ghosting.intensity = [0.0, 0.0, 0.3, 0.6, 0.6][usize::from(level)].into();
        if level >= 3 {
            recipe.anisotropy.factor = [2.0, 3.0].into();
        }
        if level >= 4 {
            recipe.spikes.count = 1;
            recipe.spikes.intensity = [1.0, 3.0].into();
            recipe.slab_loss.fraction = [0.15, 0.3].into();
            recipe.truncation.mm = [15.0, 30.0].into();
        }
        recipe
    }

    /// Refuses strengths that make no sense, naming the first.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<(), Error> {
        let count = |n: u32| Range::from(f64::from(n));
        for (key, range, least, greatest) in [
            ("bias_field.sd", self.bias_field.sd, 0.0, 2.0),
            ("motion.moves", count(self.motion.moves), 0.0, 100.0),
            ("motion.degrees", self.motion.degrees, 0.0, 90.0),
            ("motion.mm", self.motion.mm, 0.0, 200.0),
            ("wrap_around.mm", self.wrap_around.mm, 0.0, 200.0),
            ("gibbs.mm", self.gibbs.mm, 0.0, 40.0),
            ("ghosting.intensity", self.ghosting.intensity, 0.0, 1.0),
            ("ghosting.ghosts", self.ghosting.ghosts, 2.0, 64.0),
            ("ghosting.restore", self.ghosting.restore.into(), 0.0, 1.0),
            ("spikes.count", count(self.spikes.count), 0.0, 100.0),
            ("spikes.intensity", self.spikes.intensity, 0.0, 100.0),
            ("spikes.wavelength_mm", self.spikes.wavelength_mm, 1.0, 200.0),
            ("blur.fwhm_mm", self.blur.fwhm_mm, 0.0, 40.0),
            ("anisotropy.factor", self.anisotropy.factor, 1.0, 40.0),
            ("noise.sigma", self.noise.sigma, 0.0, 2.0),
            ("slab_loss.fraction", self.slab_loss.fraction, 0.0, 0.9),
            ("truncation.mm", self.truncation.mm, 0.0, 200.0),
        ] {
            if !(least <= range.low && range.high <= greatest) {
                return Err(Error::Setting { key, reason: format!("must be from {least} to {greatest}") });
            }
        }
        let whole = |range: Range| range.low.fract() == 0.0 && range.high.fract() == 0.0;
        if !whole(self.ghosting.ghosts) {
            return Err(Error::Setting { key: "ghosting.ghosts", reason: "must be whole numbers".into() });
        }
        for (key, sides) in
            [("wrap_around.sides", &self.wrap_around.sides), ("truncation.sides", &self.truncation.sides)]
        {
            if sides.is_empty() {
                return Err(Error::Setting { key, reason: "must name a side".into() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_go_through_toml_and_ranges_are_numbers_or_pairs() {
        for level in 0..=LEVELS {
            let recipe = Recipe::level(level);
            recipe.check().unwrap();
            let text = toml::to_string(&recipe).unwrap();
            assert_eq!(toml::from_str::<Recipe>(&text).unwrap(), recipe);
        }
        let text = toml::to_string(&Recipe::level(4)).unwrap();
        assert!(text.contains("factor = [2.0, 3.0]") && text.contains("sigma = 0.03"), "{text}");
        let error = toml::from_str::<Noise>("sigma = [2, 1]").unwrap_err();
        assert_eq!(error.message(), "expected [least, greatest]");
        assert!(
            toml::from_str::<Noise>("sigma = 'a'").unwrap_err().message().starts_with("expected a number")
        );
    }

    #[test]
    fn strengths_out_of_bounds_are_named() {
        let refusal = |change: &dyn Fn(&mut Recipe)| {
            let mut recipe = Recipe::none();
            change(&mut recipe);
            recipe.check().unwrap_err().to_string()
        };
        assert_eq!(refusal(&|r| r.noise.sigma = (-1.0).into()), "noise.sigma must be from 0 to 2");
        assert_eq!(refusal(&|r| r.noise.sigma = f64::NAN.into()), "noise.sigma must be from 0 to 2");
        assert_eq!(
            refusal(&|r| r.ghosting.ghosts = [2.0, 4.5].into()),
            "ghosting.ghosts must be whole numbers"
        );
        assert_eq!(refusal(&|r| r.truncation.sides.clear()), "truncation.sides must name a side");
    }
}
