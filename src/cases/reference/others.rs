//! The parts of a recording beside pretraining: a fine-tuning step, and attention over padded keys.
use super::folder::{Error, Folder, read, write};
use super::{Errors, Gradient};
use crate::model::brain_age::BrainAge;
use crate::ops::{self, AgeLoss};
use crate::program::{Cpu, backward};
use crate::tape::{Dtype, Precision, Tape, Tensor};

/// Forward and backward of the brain-age model under L1, nothing dropped.
pub(super) fn fine_tuning<F: Precision>(folder: &Folder, errors: &mut Errors) -> Result<(), Error> {
    let file = folder.arrays("finetune")?;
    let encoder = folder.model().encoder;
    let batch = file.batch("volume", encoder.grid)?;
    let mut t = Tape::default();
    let volume = encoder.volume(&mut t, batch);
    let tokens = encoder.patches().tokens() as u32;
    let model = BrainAge { encoder, loss: AgeLoss::L1 }.record(&mut t, volume, false);
    let one = t.input(&[]);
    let gradients = backward(&mut t, &[(model.loss.loss, one)]);
    let keep: Vec<Tensor> = gradients.values().copied().chain([model.pred, model.loss.loss]).collect();
    let mut cpu = Cpu::<F>::new(t, &keep);
    file.load(&mut cpu, "param.")?;
    let shape = cpu.tape().shape(volume).to_vec();
    write(&mut cpu, volume, file.get("volume", &shape)?);
    write(&mut cpu, model.age, file.get("y", &[batch, 1])?);
    write(&mut cpu, one, &[1.0]);
    cpu.write_indices(model.ids, &(0..batch).flat_map(|_| 0..tokens).collect::<Vec<u32>>());
    cpu.run();

    errors.reals("fine-tuning: pred", &read(&cpu, model.pred), file.get("pred", &[batch, 1])?);
    errors.reals("fine-tuning: loss", &read(&cpu, model.loss.loss), file.get("loss", &[])?);
    let mut compared = Vec::new();
    for (&p, &g) in &gradients {
        let info = cpu.tape().info(p);
        let name = info.name.clone().expect("parameters have names");
        let recorded = file.get(&format!("grad.{name}"), &info.shape)?;
        compared.push(Gradient { name, ours: read(&cpu, g), recorded });
    }
    errors.gradients("fine-tuning: gradient of", &compared);
    Ok(())
}

/// Attention in which each sequence has its own number of keys: output and gradients.
pub(super) fn attention_over_padded_keys<F: Precision>(
    folder: &Folder,
    errors: &mut Errors,
) -> Result<(), Error> {
    let file = folder.arrays("sdpa_key_padding")?;
    // Recorded as [B, H, L, width]; ours is packed, [B, L, 3, H, width].
    let shape = match *file.shape("q")? {
        [batch, heads, length, width] => [batch, heads, length, width],
        ref other => [other.iter().product(), 1, 1, 1],
    };
    let [batch, heads, length, width] = shape;
    let tensor = |name: &str| file.get(name, &shape);
    let heads_first = |of: &[f64], parts: usize, part: usize| -> Vec<f64> {
        let place = |i: usize| {
            let (b, h, l, c) =
                (i / (heads * length * width), i / (length * width) % heads, i / width % length, i % width);
            (((b * length + l) * parts + part) * heads + h) * width + c
        };
        (0..batch * heads * length * width).map(|i| of[place(i)]).collect()
    };
    let packed = |parts: &[&[f64]]| -> Vec<f64> {
        let value = |i: usize| {
            let (c, h, part) = (i % width, i / width % heads, i / (width * heads) % parts.len());
            let (l, b) =
                (i / (width * heads * parts.len()) % length, i / (width * heads * parts.len() * length));
            parts[part][((b * heads + h) * length + l) * width + c]
        };
        (0..parts.len() * batch * heads * length * width).map(value).collect()
    };

    let mut t = Tape::default();
    let qkv = t.param("qkv", &[batch, length, 3 * heads * width]);
    let lengths = t.indices(&[batch]);
    let y = ops::attention(&mut t, qkv, heads, Some(lengths));
    let dy = t.input_as(&[batch, length, heads * width], Dtype::Activation);
    let gradients = backward(&mut t, &[(y, dy)]);
    let dqkv = gradients[&qkv];
    let mut cpu = Cpu::<F>::new(t, &[y, dqkv]);
    write(&mut cpu, qkv, &packed(&[tensor("q")?, tensor("k")?, tensor("v")?]));
    write(&mut cpu, dy, &packed(&[tensor("grad_out")?]));
    let keys = file.get("valid_keys", &[batch])?;
    cpu.write_indices(lengths, &keys.iter().map(|&n| (n as u32).min(length as u32)).collect::<Vec<u32>>());
    cpu.run();

    errors.reals("padded attention: out", &heads_first(&read(&cpu, y), 1, 0), tensor("out")?);
    let dqkv = read(&cpu, dqkv);
    for (part, name) in ["grad_q", "grad_k", "grad_v"].into_iter().enumerate() {
        errors.reals(format!("padded attention: {name}"), &heads_first(&dqkv, 3, part), tensor(name)?);
    }
    Ok(())
}
