//! First weights, by what each parameter is called and shaped: the rules of facebookresearch/mae.
use super::Encoder;
use crate::machine::philox::{Philox, Purpose};
use crate::program::{Array, Arrays};
use crate::tape::{Role, Tape};

/// First values for every parameter and frozen tensor of `t`, a model with this encoder: linear layers Xavier-uniform, biases 0, norm weights 1, class and mask token N(0, 0.02²), the age head
/// N(0, 2e-5²), positions from their formula. Each depends on `seed` and its name alone.
pub fn first_weights(t: &Tape, encoder: &Encoder, seed: u64) -> Arrays<f32> {
    let tensors = t.with_role(Role::Param).chain(t.with_role(Role::Frozen));
    tensors
        .map(|tensor| {
            let info = t.info(tensor);
            let name = info.name.clone().expect("parameters have names");
            let data = first_values(&name, &info.shape, encoder, seed);
            (name, Array { shape: info.shape.clone(), data })
        })
        .collect()
}

fn first_values(name: &str, shape: &[usize], encoder: &Encoder, seed: u64) -> Vec<f32> {
    let len: usize = shape.iter().product();
    let mut random = Philox::new(seed, Purpose::Init, fnv1a(name), 0);
    if name.ends_with("pos_embed") {
        return encoder.positions(shape[2]).into_iter().map(|x| x as f32).collect();
    }
    let mut fill = |mut f: Box<dyn FnMut(&mut Philox) -> f32>| (0..len).map(|_| f(&mut random)).collect();
    match (name, shape) {
        ("cls_token" | "mask_token", _) => fill(Box::new(|r| 0.02 * r.normal())),
        ("head.weight", _) => fill(Box::new(|r| 2e-5 * r.normal())),
        (_, [_]) if name.ends_with(".weight") => vec![1.0; len],
        (_, [_]) => vec![0.0; len],
        (_, [outputs, ..]) => {
            let reach = (6.0 / (outputs + len / outputs) as f64).sqrt() as f32;
            fill(Box::new(move |r| r.between(-reach, reach)))
        }
        (_, []) => vec![0.0],
    }
}

/// FNV-1a: a number for a name.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
