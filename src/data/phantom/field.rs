//! Smooth random fields: sums of plane waves with random directions and phases.
use crate::machine::philox::Philox;

/// f(p) = Σ sin(k·p + φ) · √(2/n): zero mean, unit variance, with wavelengths drawn from a band.
#[derive(Clone, Debug)]
pub(super) struct Field {
    /// (k in radians per mm, φ in radians) of each wave.
    waves: Vec<([f32; 3], f32)>,
}

impl Field {
    /// `count` waves with wavelengths between `band[0]` and `band[1]` millimetres.
    pub(super) fn new(r: &mut Philox, count: usize, band: [f32; 2]) -> Field {
        let wave = |_| {
            let direction = [r.normal(), r.normal(), r.normal()];
            let length = direction.iter().map(|d| d * d).sum::<f32>().sqrt().max(1e-3);
            let k = std::f32::consts::TAU / r.between(band[0], band[1]);
            (direction.map(|d| d / length * k), r.between(0.0, std::f32::consts::TAU))
        };
        Field { waves: (0..count).map(wave).collect() }
    }

    /// f(p) and its gradient per millimetre.
    pub(super) fn at(&self, p: [f32; 3]) -> (f32, [f32; 3]) {
        let (mut value, mut gradient) = (0.0, [0.0; 3]);
        for (k, phase) in &self.waves {
            let (s, c) = (k[0] * p[0] + k[1] * p[1] + k[2] * p[2] + phase).sin_cos();
            value += s;
            for axis in 0..3 {
                gradient[axis] += k[axis] * c;
            }
        }
        let scale = (2.0 / self.waves.len() as f32).sqrt();
        (value * scale, gradient.map(|g| g * scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::philox::Purpose;

    #[test]
    fn has_unit_variance_and_the_gradient_is_the_derivative() {
        let mut r = Philox::new(1, Purpose::Test, 0, 0);
        let field = Field::new(&mut r, 24, [20.0, 30.0]);
        let points: Vec<[f32; 3]> = (0..4000).map(|_| [0; 3].map(|_| r.between(-500.0, 500.0))).collect();
        let mean_square = points.iter().map(|&p| field.at(p).0.powi(2)).sum::<f32>() / points.len() as f32;
        assert!((mean_square - 1.0).abs() < 0.15, "variance {mean_square}");
        for &p in &points[..20] {
            let (_, gradient) = field.at(p);
            for axis in 0..3 {
                let shifted = |h: f32| {
                    let mut q = p;
                    q[axis] += h;
                    field.at(q).0
                };
                let slope = (shifted(0.05) - shifted(-0.05)) / 0.1;
                assert!((slope - gradient[axis]).abs() < 5e-3, "{slope} against {}", gradient[axis]);
            }
        }
    }
}
