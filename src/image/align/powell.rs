//! The greatest value of a function of six numbers, without derivatives: Powell's method with Brent's search along
//! each line (Press et al., Numerical Recipes, 10.3 and 10.7).

/// A point of the search.
pub(super) type Point = [f64; 6];

/// Searches upwards from `start` in steps of about `step`, until a round moves less than `tolerance`. Returns the best
/// point and its value.
pub(super) fn maximise(
    value: impl Fn(&Point) -> f64,
    start: Point,
    step: f64,
    tolerance: f64,
) -> (Point, f64) {
    const ROUNDS: usize = 12;
    let mut directions: [Point; 6] =
        std::array::from_fn(|i| std::array::from_fn(|j| f64::from(u8::from(i == j))));
    let (mut at, mut best) = (start, value(&start));
    for round in 0..ROUNDS {
        let (begin, begin_value) = (at, best);
        let (mut largest, mut gain) = (0, 0.0);
        // Later rounds stay near.
        let step = step / (1 + round) as f64;
        for (i, direction) in directions.iter().enumerate() {
            let before = best;
            (at, best) = along(&value, at, best, direction, step, tolerance);
            if best - before > gain {
                (largest, gain) = (i, best - before);
            }
        }
        let moved: Point = std::array::from_fn(|j| at[j] - begin[j]);
        let length = moved.iter().map(|m| m * m).sum::<f64>().sqrt();
        if length < tolerance {
            break;
        }
        // The way of the whole round replaces the direction that gained most, where that keeps the six independent.
        let ahead: Point = std::array::from_fn(|j| at[j] + moved[j]);
        let beyond = value(&ahead);
        if beyond > begin_value {
            let bend = 2.0 * (2.0 * best - begin_value - beyond) * (best - begin_value - gain).powi(2);
            if bend < gain * (beyond - begin_value).powi(2) {
                let direction = moved.map(|m| m / length);
                (at, best) = along(&value, at, best, &direction, step.min(length), tolerance);
                directions[largest] = directions[5];
                directions[5] = direction;
            }
        }
    }
    (at, best)
}

/// The best point on the line through `at` along `direction`, and its value; never worse than `at`.
fn along(
    value: &impl Fn(&Point) -> f64,
    at: Point,
    here: f64,
    direction: &Point,
    step: f64,
    tolerance: f64,
) -> (Point, f64) {
    let point = |t: f64| -> Point { std::array::from_fn(|j| at[j] + t * direction[j]) };
    let f = |t: f64| -value(&point(t));
    let (low, middle, high) = bracket(&f, -here, step);
    let (t, least) = brent(&f, low, middle, high, tolerance);
    if -least > here { (point(t), -least) } else { (at, here) }
}

/// (t, f(t)).
type Probe = (f64, f64);

/// Three places around a minimum of `f` near 0, where it is `here`: the middle one is the lowest.
fn bracket(f: &impl Fn(f64) -> f64, here: f64, step: f64) -> (f64, Probe, f64) {
    const GOLDEN: f64 = 1.618_034;
    const MOST: usize = 6;
    let (mut behind, mut low) = (0.0, (step, f(step)));
    if low.1 >= here {
        let back = f(-step);
        if back >= here {
            return (-step, (0.0, here), step);
        }
        low = (-step, back);
    }
    for _ in 0..MOST {
        let next = low.0 + GOLDEN * (low.0 - behind);
        let there = f(next);
        if there >= low.1 {
            return (behind.min(next), low, behind.max(next));
        }
        (behind, low) = (low.0, (next, there));
    }
    (behind.min(low.0), low, behind.max(low.0))
}

/// Brent's minimum of `f` between `a` and `b`, from the lowest place known.
fn brent(f: &impl Fn(f64) -> f64, mut a: f64, start: Probe, mut b: f64, tolerance: f64) -> Probe {
    const CUT: f64 = 0.381_966;
    let (mut x, mut w, mut v) = (start, start, start);
    let (mut d, mut e) = (0.0_f64, 0.0_f64);
    for _ in 0..20 {
        let middle = 0.5 * (a + b);
        if (x.0 - middle).abs() <= 2.0 * tolerance - 0.5 * (b - a) {
            break;
        }
        let mut parabola = None;
        if e.abs() > tolerance {
            let r = (x.0 - w.0) * (x.1 - v.1);
            let q = (x.0 - v.0) * (x.1 - w.1);
            let p = (x.0 - v.0) * q - (x.0 - w.0) * r;
            let q = 2.0 * (q - r);
            let (p, q) = if q > 0.0 { (-p, q) } else { (p, -q) };
            if p.abs() < (0.5 * q * e).abs() && p > q * (a - x.0) && p < q * (b - x.0) {
                parabola = Some(p / q);
            }
        }
        match parabola {
            Some(step) => (e, d) = (d, step),
            None => {
                e = if x.0 >= middle { a - x.0 } else { b - x.0 };
                d = CUT * e;
            }
        }
        let t = if d.abs() >= tolerance { x.0 + d } else { x.0 + tolerance.copysign(d) };
        let u = (t, f(t));
        if u.1 <= x.1 {
            if u.0 >= x.0 {
                a = x.0
            } else {
                b = x.0
            }
            (v, w, x) = (w, x, u);
        } else {
            if u.0 < x.0 {
                a = u.0
            } else {
                b = u.0
            }
            if u.1 <= w.1 || w.0 == x.0 {
                (v, w) = (w, u);
            } else if u.1 <= v.1 || v.0 == x.0 || v.0 == w.0 {
                v = u;
            }
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_top_of_a_tilted_hill() {
        let top = [3.0, -7.0, 0.5, 12.0, -2.0, 4.0];
        let value = |p: &Point| {
            let d: Point = std::array::from_fn(|i| p[i] - top[i]);
            let valley: f64 = (0..5).map(|i| (d[i] + 0.8 * d[i + 1]).powi(2)).sum();
            -(valley + d.iter().map(|v| v * v).sum::<f64>() * 0.05).sqrt()
        };
        let (found, best) = maximise(value, [0.0; 6], 4.0, 1e-3);
        assert!(best > -0.05, "{best}");
        for i in 0..6 {
            assert!((found[i] - top[i]).abs() < 0.1, "{found:?}");
        }
    }
}
