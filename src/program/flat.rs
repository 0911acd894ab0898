//! All parameters in one flat range, all gradients in another, in the same order: what lets the optimiser's
//! operations be one pass each.
use super::Gradients;
use crate::ops::copy;
use crate::ops::optimiser::Range;
use crate::tape::{Role, Tape, Tensor};

/// Elements that parameters are aligned to: a cache line of `f32`. The gaps hold zeros and stay zero.
const ALIGN: usize = 16;

/// Where each parameter lies in the flat ranges.
#[derive(Clone, Debug)]
pub struct Flat {
    /// All parameters, `[n]`.
    pub params: Tensor,
    /// All gradients, `[n]`; zero for a parameter that the loss does not depend on.
    pub grads: Tensor,
    /// The parameters that have a gradient, and the element at which each begins.
    pub trained: Vec<(Tensor, usize)>,
}

impl Flat {
    /// Runs of parameters with equal `rule(name, shape) -> (decay, rate)`.
    pub fn ranges(&self, t: &Tape, rule: impl Fn(&str, &[usize]) -> (f64, f64)) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        for &(p, from) in &self.trained {
            let info = t.info(p);
            let name = info.name.as_deref().expect("parameters have names");
            let (decay, rate) = rule(name, &info.shape);
            let to = from + info.len().next_multiple_of(ALIGN);
            match ranges.last_mut() {
                Some(r) if (r.to, r.decay, r.rate) == (from, decay, rate) => r.to = to,
                _ => ranges.push(Range { from, to, decay, rate }),
            }
        }
        ranges
    }
}

/// Whether weight decay is for a parameter: for matrices, not for biases and norms.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    shape.len() > 1 && !name.ends_with(".bias")
}

/// Lays out the parameters of `t`, and their gradients, in the order they were recorded, those that [decay](decays)
/// first: alike ones side by side make few ranges.
pub fn flatten(t: &mut Tape, gradients: &Gradients) -> Flat {
    let mut params: Vec<Tensor> = t.with_role(Role::Param).collect();
    params.sort_by_key(|&p| !decays(t.info(p).name.as_deref().unwrap_or_default(), t.shape(p)));
    let mut len = 0;
    let places: Vec<(Tensor, usize)> = params
        .into_iter()
        .map(|p| {
            let at = len;
            len += t.len(p).next_multiple_of(ALIGN);
            (p, at)
        })
        .collect();
    let flat = Flat {
        params: t.state("params", &[len]),
        grads: t.state("grads", &[len]),
        trained: places.iter().copied().filter(|(p, _)| gradients.contains_key(p)).collect(),
    };
    for (p, at) in places {
        t.place(p, flat.params, at);
        if let Some(&g) = gradients.get(&p) {
            let info = t.info(g);
            // One tensor can be the gradient of two parameters, or an input: such a one is copied into its place.
            let g = if info.role == Role::Temp && info.part.is_none() { g } else { copy(t, g) };
            t.place(g, flat.grads, at);
        }
    }
    flat
}
