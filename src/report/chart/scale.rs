//! From values to places in a picture, and the round numbers along an axis.
use crate::report::html::fixed;

/// An axis: the values from `low` to `high` lie between two places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

/// A round number on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

impl Scale {
    /// An axis for values from `low` to `high`, widened to round numbers. Values that are all the same stand in its
    /// middle.
    pub(super) fn round(values: impl IntoIterator<Item = f64>, [from, to]: [f64; 2]) -> Scale {
        let [low, high] = extremes(values);
        let step = step(low, high, [from, to]);
        Scale { low: (low / step).floor() * step, high: (high / step).ceil() * step, from, to, log: false }
    }

    /// An axis for exactly the values from `low` to `high`.
    pub(super) fn exact(values: impl IntoIterator<Item = f64>, [from, to]: [f64; 2]) -> Scale {
        let [low, high] = extremes(values);
        Scale { low, high, from, to, log: false }
    }

    /// A logarithmic axis for the positive ones of the values, a little widened.
    pub(super) fn log(values: impl IntoIterator<Item = f64>, [from, to]: [f64; 2]) -> Scale {
        let positive = values.into_iter().filter(|v| *v > 0.0).map(f64::log10);
        let [low, high] = extremes(positive);
        let air = 0.03 * (high - low);
        Scale { low: low - air, high: high + air, from, to, log: true }
    }

    /// Where `value` lies. What is not positive has no place on a logarithmic axis: NaN.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = match self.log {
            true if value > 0.0 => value.log10(),
            true => f64::NAN,
            false => value,
        };
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Whether `value` is on the axis.
    pub(super) fn holds(&self, value: f64) -> bool {
        let at = self.at(value);
        at >= self.from.min(self.to) - 1e-6 && at <= self.from.max(self.to) + 1e-6
    }

    /// Round numbers along it.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        if self.log {
            return self.log_ticks();
        }
        let step = step(self.low, self.high, [self.from, self.to]);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        let tick = |i: i64| {
            let value = i as f64 * step;
            Tick { value, label: fixed(value, digits) }
        };
        (first..=last).map(tick).collect()
    }

    /// 1, 2 and 5 of each power of ten; powers alone where they are many, plain steps where there would be one.
    fn log_ticks(&self) -> Vec<Tick> {
        let powers = self.low.floor() as i32..=self.high.ceil() as i32;
        let lead: &[f64] = if self.high - self.low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let values = powers.flat_map(|p| lead.iter().map(move |l| l * 10f64.powi(p)));
        let mut values: Vec<f64> = values.filter(|v| self.holds(*v)).collect();
        if values.len() < 3 {
            let (low, high) = (10f64.powf(self.low), 10f64.powf(self.high));
            let step = step(low, high, [self.from, self.to]);
            let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
            values = (first..=last).map(|i| i as f64 * step).collect();
        }
        values.into_iter().map(|value| Tick { value, label: short(value) }).collect()
    }
}

/// As few digits as tell a tick.
fn short(value: f64) -> String {
    if value != 0.0 && !(1e-4..1e6).contains(&value.abs()) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').replace('-', "\u{2212}")
}

/// The least and the greatest of the finite values, apart: around a single value there is some room.
fn extremes(values: impl IntoIterator<Item = f64>) -> [f64; 2] {
    let values = values.into_iter().filter(|v| v.is_finite());
    let [low, high] = values.fold([f64::INFINITY, f64::NEG_INFINITY], |[l, h], v| [l.min(v), h.max(v)]);
    if low > high {
        return [0.0, 1.0];
    }
    if low == high {
        let room = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
        return [low - room, low + room];
    }
    [low, high]
}

/// The step between ticks: 1, 2 or 5 of a power of ten, with 30 to 80 units of the picture between ticks.
fn step(low: f64, high: f64, [from, to]: [f64; 2]) -> f64 {
    let want = ((to - from).abs() / 42.0).max(2.0);
    let rough = (high - low) / want;
    let power = 10f64.powf(rough.log10().floor());
    let lead = rough / power;
    power
        * if lead <= 1.0 {
            1.0
        } else if lead <= 2.0 {
            2.0
        } else if lead <= 5.0 {
            5.0
        } else {
            10.0
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<String> {
        scale.ticks().into_iter().map(|t| t.label).collect()
    }

    #[test]
    fn ends_and_middle_land_where_they_should() {
        let scale = Scale::exact([20.0, 80.0], [400.0, 40.0]);
        assert_eq!([20.0, 50.0, 80.0].map(|v| scale.at(v)), [400.0, 220.0, 40.0]);
        assert!(scale.holds(20.0) && !scale.holds(81.0));
    }

    #[test]
    fn a_round_axis_ends_at_ticks() {
        let scale = Scale::round([3.2, 9.7], [0.0, 300.0]);
        assert_eq!(labels(scale), ["3", "4", "5", "6", "7", "8", "9", "10"]);
        assert_eq!((scale.at(3.0), scale.at(10.0)), (0.0, 300.0));
        assert_eq!(
            labels(Scale::round([-0.25, 0.1], [0.0, 200.0])),
            ["\u{2212}0.3", "\u{2212}0.2", "\u{2212}0.1", "0.0", "0.1"]
        );
    }

    #[test]
    fn a_decade_is_as_long_as_the_next_on_a_logarithmic_axis() {
        let scale = Scale::log([0.01, 10.0, f64::NAN, 0.0], [0.0, 300.0]);
        let gaps = [scale.at(0.1) - scale.at(0.01), scale.at(10.0) - scale.at(1.0)];
        assert!((gaps[0] - gaps[1]).abs() < 1e-9, "{gaps:?}");
        assert!(scale.at(-1.0).is_nan());
        assert_eq!(labels(scale), ["0.01", "0.1", "1", "10"]);
        assert!(labels(Scale::log([0.31, 0.38], [0.0, 200.0])).len() > 2);
    }

    #[test]
    fn one_value_and_none_have_an_axis() {
        assert_eq!(Scale::exact([5.0], [0.0, 100.0]).at(5.0), 50.0);
        assert_eq!(Scale::exact([], [0.0, 100.0]).at(0.5), 50.0);
        assert!(!Scale::round([0.0, f64::NAN], [0.0, 100.0]).ticks().is_empty());
    }
}
