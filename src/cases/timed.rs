//! What is timed: one whole training step of a preset, and each kind of operation in it. The command and the
//! benches take their shapes from here, and so from the models themselves.
use crate::machine::cuda::{self, Card};
use crate::machine::philox::{Philox, Purpose};
use crate::model::brain_age::BrainAge;
use crate::model::{Mae, Preset, init, mae::random_masking};
use crate::ops::AgeLoss;
use crate::program::plan::Widths;
use crate::program::{Device, Machine, Optimiser, Recipe};
use crate::tape::{Op, Role, Tape, Tensor};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// What a step trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The masked autoencoder.
    Pretrain,
    /// The brain-age model: every patch through the encoder, L1 loss, no drop path.
    Finetune,
}

/// Which step is timed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Setup {
    /// The model's size.
    pub preset: Preset,
    /// What it trains.
    pub mode: Mode,
    /// Voxels of the volumes along x, y and z.
    pub grid: [usize; 3],
    /// Voxels along a patch's edge.
    pub patch: usize,
    /// Volumes in a step.
    pub batch: usize,
    /// Whether blocks are computed again for their gradients instead of kept.
    pub recompute: bool,
}

impl Setup {
    /// On brains at 2 mm in patches of 16³.
    pub fn new(preset: Preset, mode: Mode, batch: usize) -> Self {
        Setup { preset, mode, grid: [80, 96, 80], patch: 16, batch, recompute: false }
    }
    fn mae(&self) -> Mae {
        self.preset.mae(vec!["T1w".into()], self.grid, self.patch)
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup { preset, mode, grid: [x, y, z], patch, batch, recompute } = self;
        let again = if *recompute { ", recomputing" } else { "" };
        write!(f, "{preset:?} {mode:?}, {x}x{y}x{z} in patches of {patch}³, batch {batch}{again}")
    }
}

/// A training step on random volumes: forward, backward, clipping and AdamW.
#[derive(Clone)]
pub struct TrainingStep {
    /// What is trained on what.
    pub setup: Setup,
    /// The recorded step.
    pub tape: Tape,
    inputs: Inputs,
    loss: Tensor,
    optimiser: Optimiser,
}

impl TrainingStep {
    /// Records a step.
    pub fn new(setup: Setup) -> Self {
        let (mut tape, mut inputs) = (Tape::default(), Inputs::default());
        let record = match setup.mode {
            Mode::Pretrain => pretraining,
            Mode::Finetune => finetuning,
        };
        let loss = record(&mut tape, &mut inputs, &setup);
        let recompute = setup.recompute;
        let recipe =
            Recipe { betas: [0.9, 0.95], weight_decay: 0.05, clip: 1.0, ema: 0.0, accumulate: 1, recompute };
        let optimiser = Optimiser::record(&mut tape, &[(loss, 1.0)], recipe, |_| 1.0);
        TrainingStep { setup, tape, inputs, loss, optimiser }
    }
    /// A machine that holds the step, its first weights and its inputs, after one step. With `keep_all`, every
    /// temporary has memory of its own, so that after one run each operation can be run again by itself, on the values it had.
    ///
    /// # Errors
    /// Too little memory on the device, or what it says.
    pub fn machine(&self, device: &Device, keep_all: bool) -> cuda::Result<Box<dyn Machine<Real = f32>>> {
        let keep: Vec<Tensor> =
            if keep_all { self.tape.with_role(Role::Temp).collect() } else { vec![self.loss] };
        let mut machine = device.machine(self.tape.clone(), &keep)?;
        let weights = init::first_weights(&self.tape, &self.setup.mae().encoder, 1);
        machine.load(&weights)?;
        self.inputs.reals.iter().try_for_each(|(t, values)| machine.write(*t, values))?;
        self.inputs.indices.iter().try_for_each(|(t, values)| machine.write_indices(*t, values))?;
        // One step sets what the optimiser reads; at a low rate the weights stay near their first values.
        self.optimiser.update(&mut *machine, 0, 1e-5)?;
        Ok(machine)
    }
    /// The loss of the last run.
    ///
    /// # Errors
    /// What the device says.
    pub fn loss(&self, machine: &dyn Machine<Real = f32>) -> cuda::Result<f32> {
        Ok(machine.read(self.loss)?[0])
    }
    /// Multiplications and additions in the matrix products that the model needs: what is computed again counts once.
    pub fn flops(&self) -> u64 {
        let mut seen = HashSet::new();
        let first = |op: &&Arc<dyn Op>| seen.insert(Arc::as_ptr(op).cast::<()>());
        self.tape.ops().iter().filter(first).map(|op| op.flops()).sum()
    }
    /// Each kind of operation, by name and the shapes of all it touches, in order of first use.
    /// Bytes are those of elements as wide as `widths` says; matrices of weights count as activations, which is how
    /// products read them.
    pub fn kinds(&self, widths: Widths) -> Vec<Kind> {
        let bytes = |&t: &Tensor| {
            let info = self.tape.info(t);
            let matrix = info.role == Role::Param && info.shape.len() > 1;
            info.len() * if matrix { widths.activation } else { widths.of(info.dtype) }
        };
        let mut kinds: Vec<Kind> = Vec::new();
        let mut seen: HashMap<_, usize> = HashMap::new();
        for (i, op) in self.tape.ops().iter().enumerate() {
            let io = op.io();
            let shapes = |ts: &[Tensor]| ts.iter().map(|&t| self.tape.shape(t).to_vec()).collect::<Vec<_>>();
            let (reads, writes) = (shapes(&io.reads), shapes(&io.writes));
            let next = kinds.len();
            let at = *seen.entry((op.name(), reads.clone(), writes.clone())).or_insert(next);
            if at == next {
                kinds.push(Kind {
                    name: op.name(),
                    reads,
                    writes,
                    first: i,
                    times: 0,
                    flops: op.flops(),
                    cycles: op.cycles(Card::H200),
                    bytes: io.reads.iter().chain(&io.writes).map(bytes).sum::<usize>() as u64,
                    folded: op.folded().iter().map(bytes).sum::<usize>() as u64,
                });
            }
            kinds[at].times += 1;
        }
        kinds
    }
}

/// Values for what the host fills.
#[derive(Clone, Debug, Default)]
struct Inputs {
    reals: Vec<(Tensor, Vec<f32>)>,
    indices: Vec<(Tensor, Vec<u32>)>,
}

impl Inputs {
    fn normal(&mut self, tape: &Tape, t: Tensor) {
        let mut random = Philox::new(1, Purpose::Test, 0, t.index() as u32);
        self.reals.push((t, (0..tape.len(t)).map(|_| random.normal()).collect()));
    }
}

/// Records the masked autoencoder; returns the loss.
fn pretraining(t: &mut Tape, inputs: &mut Inputs, setup: &Setup) -> Tensor {
    let (mae, batch) = (setup.mae(), setup.batch);
    let (tokens, kept) = (mae.tokens(), mae.kept());
    let m = mae.inputs(t, batch);
    let target = m.targets[0];
    inputs.normal(t, m.volume);
    inputs.reals.push((target.weight, vec![1.0; batch * (tokens - kept)]));
    let [mut keep, mut shuffle, mut predict] = [const { Vec::new() }; 3];
    for sample in 0..batch {
        let mut random = Philox::new(1, Purpose::Mask, 0, sample as u32);
        let noise: Vec<f64> = (0..tokens).map(|_| random.uniform().into()).collect();
        let masking = random_masking(&noise, kept);
        keep.extend_from_slice(masking.ids_keep());
        shuffle.extend_from_slice(&masking.ids_shuffle);
        predict.extend_from_slice(masking.ids_removed());
    }
    inputs.indices.extend([(m.visible.ids, keep), (m.ids_shuffle, shuffle), (target.ids, predict)]);
    mae.record(t, &m).losses[0].loss
}

/// Records the brain-age model; returns the loss.
fn finetuning(t: &mut Tape, inputs: &mut Inputs, setup: &Setup) -> Tensor {
    let batch = setup.batch;
    let model = BrainAge { encoder: setup.mae().encoder, loss: AgeLoss::L1 };
    let volume = model.encoder.volume(t, batch);
    let m = model.record(t, volume, false);
    inputs.normal(t, volume);
    inputs.normal(t, m.age);
    let tokens = model.encoder.patches().tokens() as u32;
    inputs.indices.push((m.ids, (0..batch).flat_map(|_| 0..tokens).collect()));
    m.loss.loss
}

/// A kind of operation, and how often a step does it.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    /// The operation's name.
    pub name: &'static str,
    /// The shapes of the tensors it reads, in the operation's order.
    pub reads: Vec<Vec<usize>>,
    /// Of those it writes.
    pub writes: Vec<Vec<usize>>,
    /// The first operation of this kind on the tape.
    #[serde(skip)]
    pub first: usize,
    /// How often a step does it.
    pub times: usize,
    /// Multiplications and additions in its matrix products.
    pub flops: u64,
    /// Cycles that its kernels take on an H200 by their model; nothing where there is none.
    pub cycles: Option<usize>,
    /// Bytes of all tensors it reads and writes.
    pub bytes: u64,
    /// Bytes that would be read and written besides if what is folded into a product had kernels of its own.
    pub folded: u64,
}

impl Kind {
    /// The shapes of the largest tensors it reads and writes.
    pub fn shape(&self) -> String {
        format!("{} -> {}", largest(&self.reads), largest(&self.writes))
    }
}

fn largest(shapes: &[Vec<usize>]) -> String {
    let shape = shapes.iter().max_by_key(|s| s.iter().product::<usize>()).cloned().unwrap_or_default();
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GELU would read its argument; its gradient would be written and read, and that of a bias read once more.
    #[test]
    fn what_is_folded_into_products_is_counted() {
        let kinds =
            TrainingStep::new(Setup::new(Preset::Tiny, Mode::Finetune, 1)).kinds(Widths::host::<f32>());
        let of = |name: &str, reads: usize, writes: usize| {
            let is = |k: &&Kind| k.name == name && k.reads.len() == reads && k.writes.len() == writes;
            kinds.iter().find(is).unwrap()
        };
        let bytes = |shape: &[usize]| 4 * shape.iter().product::<usize>() as u64;
        let gelu = of("Linear", 3, 2);
        assert_eq!(gelu.folded, bytes(&gelu.writes[1]));
        let gelu_grad = of("LinearInputGrad", 3, 1);
        assert_eq!(gelu_grad.folded, 2 * bytes(&gelu_grad.writes[0]));
        let weight_grad = of("LinearWeightGrad", 2, 2);
        assert_eq!(weight_grad.folded, bytes(&weight_grad.reads[0]));
        assert_eq!(of("LinearInputGrad", 2, 1).folded + of("LayerNorm", 3, 3).folded, 0);
    }

    #[test]
    fn kinds_cover_every_operation_and_run_again_by_themselves() {
        for mode in [Mode::Pretrain, Mode::Finetune] {
            let step = TrainingStep::new(Setup::new(Preset::Tiny, mode, 1));
            let kinds = step.kinds(Widths::host::<f32>());
            assert_eq!(kinds.iter().map(|k| k.times).sum::<usize>(), step.tape.ops().len());
            assert_eq!(kinds.iter().map(|k| k.times as u64 * k.flops).sum::<u64>(), step.flops());
            let mut machine = step.machine(&Device::Cpu, true).unwrap();
            machine.run().unwrap();
            kinds.iter().for_each(|k| machine.run_ops(k.first..k.first + 1).unwrap());
            assert!(step.loss(&*machine).unwrap().is_finite(), "{mode:?}");
        }
    }

    #[test]
    fn what_is_computed_again_counts_once() {
        let setup = Setup::new(Preset::Tiny, Mode::Pretrain, 1);
        let [kept, again] = [false, true].map(|recompute| TrainingStep::new(Setup { recompute, ..setup }));
        assert!(again.tape.ops().len() > kept.tape.ops().len());
        assert_eq!(again.flops(), kept.flops());
    }
}
