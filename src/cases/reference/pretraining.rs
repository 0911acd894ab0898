//! The masked autoencoder's steps: masking, activations of the first, then losses, gradients and updates of all.
use super::folder::{Error, File, Folder, read, weights, write};
use super::{Errors, Gradient};
use crate::machine::Real;
use crate::model::Mae;
use crate::model::mae::{Inputs, Masking, Target, random_masking};
use crate::ops::normalise_patch;
use crate::ops::optimiser::{AdamConstants, Moments, adamw, grad_norm};
use crate::ops::reconstruction_loss::ReconstructionLoss;
use crate::program::{Cpu, Flat, Gradients, backward, flatten};
use crate::tape::{Precision, Role, Tape, Tensor};

pub(super) fn recompute<F: Precision>(folder: &Folder, errors: &mut Errors) -> Result<(), Error> {
    let (mae, input, params) = (folder.model(), folder.arrays("input")?, folder.arrays("params")?);
    let batch = input.batch("volume", mae.encoder.grid)?;
    let tokens = mae.tokens();
    let masks = |step: usize| -> Result<Vec<Masking>, Error> {
        let noise = input.get(&format!("noise.{step}"), &[batch, tokens])?;
        Ok(noise.chunks_exact(tokens).map(|noise| random_masking(noise, mae.kept())).collect())
    };
    masking(&masks(0)?, &input, errors)?;
    position_tables::<F>(&mae, &params, errors)?;

    let mut trainer = Trainer::<F>::new(folder, batch);
    params.load(&mut trainer.cpu, "")?;
    let volumes = input.get("volume", trainer.shape(trainer.inputs.volume))?;
    write(&mut trainer.cpu, trainer.inputs.volume, volumes);
    for (i, step) in folder.meta.steps.iter().enumerate() {
        let masks = masks(i)?;
        trainer.differentiate(&masks);
        if i == 0 {
            Activations { mae: &mae, trainer: &trainer, masks: &masks }.compare(folder, errors)?;
        }
        errors.reals(format!("step {i}: loss"), &read(&trainer.cpu, trainer.loss.loss), &[step.loss]);
        let recorded = folder.arrays(&format!("grads.{i}"))?;
        let gradients = trainer.gradients(&recorded)?;
        errors.gradients(&format!("step {i}: gradient of"), &gradients);
        trainer.measure_norm();
        errors.reals(
            format!("step {i}: gradient norm"),
            &read(&trainer.cpu, trainer.norm),
            &[step.grad_norm],
        );
        if F::NAME == f32::NAME {
            trainer.replace_gradients(&recorded)?;
        }
        trainer.update(step.lr, i as i32 + 1, folder.meta.betas);
        let after = folder.arrays(&format!("params_after.{i}"))?;
        for t in weights(&trainer.cpu) {
            let name = trainer.cpu.tape().info(t).name.as_deref().expect("weights have names");
            let recorded = after.get(name, trainer.shape(t))?;
            errors.reals(format!("step {i}: updated {name}"), &read(&trainer.cpu, t), recorded);
        }
    }
    Ok(())
}

fn masking(masks: &[Masking], input: &File, errors: &mut Errors) -> Result<(), Error> {
    let all = |f: &dyn Fn(&Masking) -> Vec<f64>| -> Vec<f64> { masks.iter().flat_map(f).collect() };
    let reals = |ids: &[u32]| ids.iter().map(|&i| f64::from(i)).collect();
    let removed = |m: &Masking, place: u32| f64::from(place as usize >= m.kept);
    for (name, got) in [
        ("ids_shuffle", all(&|m| reals(&m.ids_shuffle))),
        ("ids_keep", all(&|m| reals(m.ids_keep()))),
        ("ids_restore", all(&|m| reals(&m.ids_restore))),
        ("mask", all(&|m| m.ids_restore.iter().map(|&place| removed(m, place)).collect())),
    ] {
        let recorded = input.get(name, &[masks.len(), got.len() / masks.len()])?;
        errors.exactly(name, &got, recorded);
    }
    Ok(())
}

fn position_tables<F: Real>(mae: &Mae, params: &File, errors: &mut Errors) -> Result<(), Error> {
    for (name, dim) in [("pos_embed", mae.encoder.shape.dim), ("decoder_pos_embed", mae.decoder.dim)] {
        let table: Vec<f64> = mae.encoder.positions(dim).into_iter().map(|x| F::of(x).f64()).collect();
        errors.reals(name, &table, params.get(name, &[1, 1 + mae.tokens(), dim])?);
    }
    Ok(())
}

/// The recorded model with its gradients and optimiser.
struct Trainer<F> {
    cpu: Cpu<F>,
    inputs: Inputs,
    /// Where each patch stands in the decoder's sequence.
    places: Tensor,
    pred: Tensor,
    loss: ReconstructionLoss,
    gradients: Gradients,
    flat: Flat,
    norm: Tensor,
    schedule: Tensor,
    /// How many operations compute the gradients; then one measures their norm, one updates.
    differentiation: usize,
}

impl<F: Precision> Trainer<F> {
    fn new(folder: &Folder, batch: usize) -> Self {
        let (mae, meta) = (folder.model(), &folder.meta);
        let mut t = Tape::default();
        let mut inputs = mae.inputs(&mut t, batch);
        // Every patch is predicted, as it is in the recording.
        let all = [batch, mae.tokens()];
        let places = t.indices(&all);
        let target = Target { ids: t.indices(&all), places: Some(places), weight: t.input(&all) };
        inputs.targets = vec![target];
        let model = mae.record(&mut t, &inputs);
        let (pred, loss) = (model.preds[0], model.losses[0]);
        let one = t.input(&[]);
        let gradients = backward(&mut t, &[(loss.loss, one)]);
        let flat = flatten(&mut t, &gradients);
        let differentiation = t.ops().len();
        let clip = grad_norm(&mut t, flat.grads, meta.clip_norm);
        let schedule = t.input(&[3]);
        let shape = t.shape(flat.params).to_vec();
        let [m, v] = ["m", "v"].map(|name| t.state(name, &shape));
        let ranges = flat.ranges(&t, |name, _| {
            let decays = meta.decayed.iter().any(|d| d == name);
            (if decays { meta.weight_decay } else { 0.0 }, 1.0)
        });
        let moments = Moments { params: flat.params, grads: flat.grads, m, v };
        let constants = AdamConstants { betas: meta.betas, eps: meta.adam_eps };
        adamw(&mut t, moments, clip.factor, schedule, constants, ranges);

        let named = t.with_role(Role::Temp).filter(|&x| t.info(x).name.is_some());
        let keep: Vec<Tensor> = named.chain([loss.loss, loss.per_patch, pred, clip.norm]).collect();
        let mut cpu = Cpu::new(t, &keep);
        write(&mut cpu, one, &[1.0]);
        let all = (0..batch).flat_map(|_| 0..mae.tokens() as u32).collect::<Vec<u32>>();
        cpu.write_indices(target.ids, &all);
        Trainer {
            cpu,
            inputs,
            places,
            pred,
            loss,
            gradients,
            flat,
            norm: clip.norm,
            schedule,
            differentiation,
        }
    }
    fn shape(&self, t: Tensor) -> &[usize] {
        self.cpu.tape().shape(t)
    }
    /// Forward and backward with these masks.
    fn differentiate(&mut self, masks: &[Masking]) {
        let ids = |f: fn(&Masking) -> &[u32]| masks.iter().flat_map(f).copied().collect::<Vec<u32>>();
        let restore = ids(|m| &m.ids_restore);
        let kept = masks[0].kept;
        let weight: Vec<f64> = restore.iter().map(|&place| f64::from(place as usize >= kept)).collect();
        self.cpu.write_indices(self.inputs.visible.ids, &ids(Masking::ids_keep));
        self.cpu.write_indices(self.inputs.ids_shuffle, &ids(|m| &m.ids_shuffle));
        self.cpu.write_indices(self.places, &restore);
        write(&mut self.cpu, self.inputs.targets[0].weight, &weight);
        self.cpu.run_ops(0..self.differentiation);
    }
    /// Every parameter's gradient.
    fn gradients<'a>(&self, recorded: &'a File) -> Result<Vec<Gradient<'a>>, Error> {
        let one = |(&p, &g): (&Tensor, &Tensor)| {
            let info = self.cpu.tape().info(p);
            let name = info.name.clone().expect("parameters have names");
            let recorded = recorded.get(&name, &info.shape)?;
            Ok(Gradient { name, ours: read(&self.cpu, g), recorded })
        };
        self.gradients.iter().map(one).collect()
    }
    fn replace_gradients(&mut self, recorded: &File) -> Result<(), Error> {
        let mut flat = vec![F::ZERO; self.cpu.read(self.flat.grads).len()];
        for &(p, at) in &self.flat.trained {
            let info = self.cpu.tape().info(p);
            let values = recorded.get(info.name.as_deref().expect("parameters have names"), &info.shape)?;
            flat[at..].iter_mut().zip(values).for_each(|(g, v)| *g = F::of(*v));
        }
        self.cpu.write(self.flat.grads, &flat);
        Ok(())
    }
    fn measure_norm(&mut self) {
        self.cpu.run_ops(self.differentiation..self.differentiation + 1);
    }
    /// Clips and updates; `t` counts updates from 1.
    fn update(&mut self, lr: f64, t: i32, betas: [f64; 2]) {
        write(&mut self.cpu, self.schedule, &[lr, 1.0 - betas[0].powi(t), 1.0 - betas[1].powi(t)]);
        self.cpu.run_ops(self.differentiation..self.cpu.tape().ops().len());
    }
}

/// What the first step computed on the way, by the names of the other implementation's modules.
struct Activations<'a, F> {
    mae: &'a Mae,
    trainer: &'a Trainer<F>,
    masks: &'a [Masking],
}

impl<F: Precision> Activations<'_, F> {
    fn compare(&self, folder: &Folder, errors: &mut Errors) -> Result<(), Error> {
        let recorded = folder.arrays("activations")?;
        for name in recorded.names() {
            match self.pair(name, &recorded)? {
                Some((got, recorded)) => errors.reals(format!("activation {name}"), &got, &recorded),
                None => errors.not_compared.push(name.to_owned()),
            }
        }
        for name in ["pred", "loss", "loss_per_patch"] {
            recorded.shape(name)?;
        }
        Ok(())
    }
    /// Our activation and the recorded one, both at the tokens that we compute.
    fn pair(&self, name: &str, recorded: &File) -> Result<Option<Pair>, Error> {
        let (batch, tokens, kept) = (self.masks.len(), self.mae.tokens(), self.mae.kept());
        let (dim, values) = (self.mae.encoder.shape.dim, self.mae.encoder.patches().values());
        let at_kept = |x: &[f64]| {
            let ids = |b: usize| self.masks[b].ids_keep().iter().map(|&i| i as usize).collect();
            rows(x, tokens, dim, ids)
        };
        let at_patches = |x: &[f64], length, dim| rows(x, 1 + length, dim, |_| (1..=length).collect());
        let Trainer { pred, loss, .. } = *self.trainer;
        let pair = match name {
            "patches" => (self.patches(false), recorded.get(name, &[batch, tokens, values])?.to_vec()),
            "target" => (self.patches(true), recorded.get(name, &[batch, tokens, values])?.to_vec()),
            "loss" => (self.read(loss.loss), recorded.get(name, &[])?.to_vec()),
            "loss_per_patch" => (self.read(loss.per_patch), recorded.get(name, &[batch, tokens])?.to_vec()),
            "pred" => (self.read(pred), recorded.get(name, &[batch, tokens, values])?.to_vec()),
            "decoder_pred" | "decoder_norm" => {
                let (got, dim) = match name {
                    "decoder_pred" => (self.read(pred), values),
                    _ => (self.named(name).expect("the decoder has a norm"), self.mae.decoder.dim),
                };
                (got, at_patches(recorded.get(name, &[batch, 1 + tokens, dim])?, tokens, dim))
            }
            "patch_embed" => {
                let got = self.named(name).expect("the encoder embeds patches");
                (got, at_kept(recorded.get(name, &[batch, tokens, dim])?))
            }
            "patch_embed.proj" => {
                let [x, y, z] = self.mae.encoder.patches().grid();
                let convolved = recorded.get(name, &[batch, dim, x, y, z])?;
                let channels_last: Vec<f64> = (0..batch * tokens * dim)
                    .map(|i| (i / (tokens * dim), i / dim % tokens, i % dim))
                    .map(|(b, token, channel)| convolved[(b * dim + channel) * tokens + token])
                    .collect();
                (self.named("patch_embed").expect("the encoder embeds patches"), at_kept(&channels_last))
            }
            "embed_plus_pos" => {
                let input = self.named("blocks.0.input").expect("the encoder has a block");
                (at_patches(&input, kept, dim), at_kept(recorded.get(name, &[batch, tokens, dim])?))
            }
            _ => {
                let Some((got, shape)) = self.of_module(name) else { return Ok(None) };
                let recorded = recorded.get(name, &shape)?;
                if name.starts_with("decoder_blocks") {
                    // Ours are in shuffled order.
                    let ids = |b: usize| {
                        let ids = self.masks[b].ids_shuffle.iter().map(|&id| 1 + id as usize);
                        std::iter::once(0).chain(ids).collect()
                    };
                    (got, rows(recorded, shape[1], shape[2], ids))
                } else {
                    (got, recorded.to_vec())
                }
            }
        };
        Ok(Some(pair))
    }
    /// A module's output: a temporary of that name, or, as the residual connection is part of the layer before it,
    /// what a branch has added.
    fn of_module(&self, name: &str) -> Option<(Vec<f64>, Vec<usize>)> {
        let tape = self.trainer.cpu.tape();
        let shape = |name: &str| Some(tape.shape(tape.named(name)?).to_vec());
        let branch = |block: &str, after: &str, before: &str| {
            let (after, before) = (self.named(after)?, self.named(before)?);
            let added = after.iter().zip(before).map(|(a, b)| a - b).collect();
            Some((added, shape(block)?))
        };
        let block_of = |ends: [&str; 2]| ends.iter().find_map(|end| name.strip_suffix(end));
        if let Some(block) = block_of([".attn.proj", ".attn"]) {
            let (stack, i) = block.rsplit_once('.')?;
            let before = match i.parse::<usize>().ok()? {
                0 => format!("{block}.input"),
                i => format!("{stack}.{}", i - 1),
            };
            branch(block, &format!("{block}.between"), &before)
        } else if let Some(block) = block_of([".mlp.fc2", ".mlp"]) {
            branch(block, block, &format!("{block}.between"))
        } else {
            Some((self.named(name)?, shape(name)?))
        }
    }
    fn named(&self, name: &str) -> Option<Vec<f64>> {
        let tape = self.trainer.cpu.tape();
        tape.named(name).filter(|&t| tape.info(t).role == Role::Temp).map(|t| self.read(t))
    }
    fn read(&self, t: Tensor) -> Vec<f64> {
        read(&self.trainer.cpu, t)
    }
    /// Every patch of every volume, `[B, L, P]`.
    fn patches(&self, normalised: bool) -> Vec<f64> {
        let geometry = self.mae.encoder.patches();
        let volumes = self.trainer.cpu.read(self.trainer.inputs.volume);
        let mut patch = vec![F::ZERO; geometry.values()];
        let mut all = Vec::new();
        for volume in volumes.chunks_exact(geometry.volume_len()) {
            for token in 0..geometry.tokens() {
                geometry.patchify(volume, token, &mut patch);
                if normalised {
                    normalise_patch(&mut patch);
                }
                all.extend(patch.iter().map(|v| v.f64()));
            }
        }
        all
    }
}

/// Our values and the recorded ones.
type Pair = (Vec<f64>, Vec<f64>);

/// Rows `ids(b)` of sample `b` of `x: [B, length, dim]`.
fn rows(x: &[f64], length: usize, dim: usize, ids: impl Fn(usize) -> Vec<usize>) -> Vec<f64> {
    let samples = x.chunks_exact(length * dim).enumerate();
    samples
        .flat_map(|(b, x)| ids(b).into_iter().flat_map(|i| x[i * dim..][..dim].to_vec()).collect::<Vec<_>>())
        .collect()
}
