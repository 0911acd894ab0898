//! Recomputing blocks: the same bits in less memory, since their activations are computed again and not kept.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::machine::philox::{Philox, Purpose};
use gyrus::model::brain_age::BrainAge;
use gyrus::model::mae::random_masking;
use gyrus::model::{Encoder, Mae, Shape, init::first_weights};
use gyrus::ops::AgeLoss;
use gyrus::program::plan::{Widths, lifetimes, lifetimes_without_scratch, plan};
use gyrus::program::{Cpu, Machine, Optimiser, Recipe, cuda};
use gyrus::tape::{Dtype, Role, Tape, Tensor};
use std::sync::Arc;

const BATCH: usize = 2;

/// A training step, and what its inputs of indices hold.
struct Program {
    tape: Tape,
    encoder: Encoder,
    optimiser: Optimiser,
    loss: Tensor,
    indices: Vec<(Tensor, Vec<u32>)>,
}

fn encoder(modalities: &[&str], depth: usize) -> Encoder {
    let modalities = modalities.iter().map(|&m| m.to_owned()).collect();
    let shape = Shape { dim: 48, depth, heads: 3 };
    Encoder { modalities, grid: [32, 32, 32], patch: 8, shape, cls_token: true }
}

fn program(
    mut tape: Tape,
    encoder: Encoder,
    loss: Tensor,
    indices: Vec<(Tensor, Vec<u32>)>,
    recompute: bool,
) -> Program {
    let recipe =
        Recipe { betas: [0.9, 0.95], weight_decay: 0.05, clip: 1.0, ema: 0.0, accumulate: 1, recompute };
    let optimiser = Optimiser::record(&mut tape, &[(loss, 1.0)], recipe, |_| 1.0);
    Program { tape, encoder, optimiser, loss, indices }
}

/// A masked autoencoder of this many blocks in the encoder and half as many in the decoder.
fn mae(depth: usize, recompute: bool) -> Program {
    let decoder = Shape { dim: 32, depth: depth / 2, heads: 2 };
    let mae = Mae { encoder: encoder(&["T1w"], depth), decoder, mask_ratio: 0.5, norm_pix: true };
    let mut t = Tape::default();
    let inputs = mae.inputs(&mut t, BATCH);
    let noise: Vec<f64> = (0..mae.tokens()).map(|i| ((i * 37) % 83) as f64).collect();
    let masking = random_masking(&noise, mae.kept());
    let indices = vec![
        (inputs.visible.ids, masking.ids_keep().repeat(BATCH)),
        (inputs.ids_shuffle, masking.ids_shuffle.repeat(BATCH)),
        (inputs.targets[0].ids, masking.ids_removed().repeat(BATCH)),
    ];
    let loss = mae.record(&mut t, &inputs).losses[0].loss;
    program(t, mae.encoder, loss, indices, recompute)
}

/// A brain-age model with everything that a block can have: drop path, and sequences that differ in length.
fn brain_age(depth: usize, recompute: bool) -> Program {
    let model = BrainAge { encoder: encoder(&["T1w", "T2w"], depth), loss: AgeLoss::L1 };
    let mut t = Tape::default();
    let volume = model.encoder.volume(&mut t, BATCH);
    let recorded = model.record(&mut t, volume, true);
    let all = [[true, true], [true, false]].map(|present| model.encoder.all_patches(&present));
    let (ids, lengths): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    let indices = vec![(recorded.ids, ids.concat()), (recorded.length.unwrap(), lengths)];
    program(t, model.encoder, recorded.loss.loss, indices, recompute)
}

impl Program {
    fn keep(&self) -> Vec<Tensor> {
        [self.optimiser.kept(), vec![self.loss]].concat()
    }
    /// A host that fills temporaries with NaN between their lives.
    fn poisoned(&self) -> Cpu<f32> {
        let mut cpu = Cpu::poisoned(self.tape.clone(), &lifetimes(&self.tape, &self.keep()));
        cpu.load(&first_weights(&self.tape, &self.encoder, 1)).unwrap();
        for t in self.tape.with_role(Role::Input).filter(|&t| self.tape.info(t).dtype != Dtype::Index) {
            let mut random = Philox::new(1, Purpose::Test, 0, t.index() as u32);
            cpu.view(t).iter_mut().for_each(|x| *x = random.uniform());
        }
        self.indices.iter().for_each(|(t, values)| cpu.write_indices(*t, values));
        cpu
    }
    /// The bits of the loss, of all gradients and of all parameters.
    fn bits(&self, cpu: &Cpu<f32>) -> [Vec<u32>; 3] {
        let [grads, params] = ["grads", "params"].map(|name| self.tape.named(name).unwrap());
        [self.loss, grads, params].map(|t| cpu.read(t).iter().map(|x| x.to_bits()).collect())
    }
    /// Bytes of temporaries on a host and on a device.
    fn arenas(&self) -> [usize; 2] {
        let arena = |lives, widths| {
            let plan = plan(&self.tape, lives, widths);
            plan.bytes - plan.kept
        };
        let device = lifetimes_without_scratch(&self.tape, &self.keep());
        [arena(&lifetimes(&self.tape, &self.keep()), Widths::host::<f32>()), arena(&device, cuda::WIDTHS)]
    }
    /// The operations that are on the tape a second time.
    fn again(&self) -> Vec<usize> {
        let ops = self.tape.ops();
        (0..ops.len()).filter(|&i| ops[..i].iter().any(|op| Arc::ptr_eq(op, &ops[i]))).collect()
    }
}

#[test]
fn three_steps_have_the_same_bits() {
    for record in [mae, brain_age] {
        let programs = [false, true].map(|recompute| record(4, recompute));
        let mut cpus = programs.each_ref().map(Program::poisoned);
        for step in 0..3 {
            for (program, cpu) in programs.iter().zip(&mut cpus) {
                program.optimiser.update(cpu, step, 1e-3).unwrap();
            }
            let [kept, recomputed] = [0, 1].map(|i| programs[i].bits(&cpus[i]));
            assert!(kept.iter().flatten().all(|&b| f32::from_bits(b).is_finite()));
            assert!(kept[1].iter().any(|&b| f32::from_bits(b) != 0.0));
            assert!(kept == recomputed, "step {step}");
        }
    }
}

/// Of a block no more is kept than its output.
#[test]
fn activations_take_less_than_a_quarter_of_the_memory() {
    for record in [mae, brain_age] {
        let [kept, recomputed] = [false, true].map(|recompute| record(12, recompute).arenas());
        for (kept, recomputed) in kept.into_iter().zip(recomputed) {
            println!("arena {kept} bytes, {recomputed} when blocks are computed again");
            assert!(4 * recomputed < kept);
        }
    }
}

/// Everything in a block but its last operation, whose output is kept for the next block.
#[test]
fn what_is_computed_again_is_all_of_it_needed() {
    assert!(mae(2, false).again().is_empty());
    let program = mae(2, true);
    let again = program.again();
    assert_eq!(again.len(), 6 * 3);
    let run_without = |left_out: Option<usize>| {
        let mut cpu = program.poisoned();
        program.optimiser.evaluate(&mut cpu).unwrap();
        (0..program.tape.ops().len()).filter(|&i| Some(i) != left_out).for_each(|i| cpu.run_ops(i..i + 1));
        let [_, grads, _] = program.bits(&cpu);
        grads
    };
    let right = run_without(None);
    assert!(right.iter().all(|&b| f32::from_bits(b).is_finite()));
    for i in again {
        assert!(run_without(Some(i)) != right, "{} at {i}", program.tape.ops()[i].name());
    }
}
