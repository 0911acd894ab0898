//! The kernels on the emulator: every case against its definition under several schedules, whole training runs against
//! the `f64` definition, and what the machine itself promises. Runs with `--features emulator`.
#![cfg(feature = "emulator")]
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::cases::{self, Case, parity};
use gyrus::data::{Augment, Cache, Variant, phantom::Cohort, prepare};
use gyrus::image::{BACKGROUND, Preprocessing};
use gyrus::machine::emulator::{Emulator, Schedule};
use gyrus::machine::philox::{Philox, Purpose, STREAM};
use gyrus::machine::{Driver, Real, cuda};
use gyrus::model::{Encoder, Mae, Preset, Shape, init::first_weights, mae::Weight};
use gyrus::ops::{self, augment::SHADING};
use gyrus::program::{Cpu, Cuda, Device, Machine, Optimiser, Recipe, Volumes, trace};
use gyrus::tape::{Dtype, Tape, Tensor};
use gyrus::train::config::{Finetune, Pretrain};
use gyrus::train::{
    Run,
    finetune::{HeldOut, finetune},
    pretrain::{Learn, pretrain},
};
use half::{bf16, f16};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;

mod schedules;

use schedules::SCHEDULES;

/// A sanitizer sees more without guard bytes, and follows one thread.
const SANITIZED: bool = !env!("GYRUS_SANITIZE").is_empty();

fn emulator(schedule: Schedule) -> Rc<dyn Driver> {
    Rc::new(Emulator::new(schedule))
}

/// Every `of`-th case from case `part` on: each of these tests takes its share, so that they can run side by side.
fn share(part: usize, of: usize) {
    let cases: Vec<Case> = cases::table().into_iter().skip(part).step_by(of).collect();
    let mut failed = Vec::new();
    for case in &cases {
        // Products and attention have kernels of their own for Hopper.
        let both = ["linear", "patch_embed", "attention"].iter().any(|name| case.name.contains(name));
        let devices: &[fn(Emulator) -> Emulator] =
            if both { &[|e| e, Emulator::before_hopper] } else { &[|e| e] };
        for device in devices {
            let runs = SCHEDULES.map(|schedule| {
                let driver: Rc<dyn Driver> = Rc::new(device(Emulator::new(schedule)));
                // A second run and a graph under the first schedule; the others are compared with it by their digests.
                let repeats = usize::from(schedule.seed == 0);
                parity::compare(case, &driver, repeats, !SANITIZED)
            });
            let first = &runs[0];
            println!("{case:?}: error {:.1e} of {:.1e}, norm {:.1e}", first.error, first.bound, first.norm);
            for (run, schedule) in runs.iter().zip(SCHEDULES) {
                if !run.passed() || run.digest != first.digest {
                    failed.push(format!("{schedule:?}: {run:?}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn cases_agree_with_their_definitions_0() {
    share(0, 4);
}
#[test]
fn cases_agree_with_their_definitions_1() {
    share(1, 4);
}
#[test]
fn cases_agree_with_their_definitions_2() {
    share(2, 4);
}
#[test]
fn cases_agree_with_their_definitions_3() {
    share(3, 4);
}

/// A kernel that no case comes to is compared with nothing.
#[test]
fn every_kernel_belongs_to_a_case() {
    let mut launched = BTreeSet::new();
    let devices: [fn(Emulator) -> Emulator; 2] = [|emulator| emulator, Emulator::before_hopper];
    for device in devices {
        let emulator = Rc::new(device(Emulator::new(Schedule::default())));
        for case in cases::table() {
            Cuda::new(emulator.clone(), cases::gradcheck::program(&case), &[]).unwrap();
        }
        launched.extend(emulator.kernels());
    }
    let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels")).unwrap();
    let sources =
        sources.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "cu"));
    let text: String = sources.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let there = text.lines().filter_map(|line| line.strip_prefix("EMU_KERNEL"));
    let names = there.map(|line| line.split(['(', ',', ')']).nth(1).unwrap());
    let alone: Vec<&str> = names.filter(|n| !n.starts_with("conform_") && !launched.contains(*n)).collect();
    assert!(alone.is_empty(), "{alone:?}");
}

/// A masked autoencoder in training, on any machine.
struct Training<M> {
    machine: M,
    mae: Mae,
    inputs: Inputs,
    loss: Tensor,
    optimiser: Optimiser,
    batch: usize,
}

/// What the host fills in a program that trains on variants of stored volumes.
#[derive(Clone, Copy)]
struct Inputs {
    stored: Tensor,
    affine: Tensor,
    shading: Tensor,
    noise: Tensor,
    streams: Tensor,
}

/// The whole of a training step, from stored volumes to updated weights: its inputs, its loss, what to keep.
type Program = (Tape, Inputs, Tensor, Optimiser, Vec<Tensor>);

fn program(mae: &Mae, batch: usize, recompute: bool) -> Program {
    let (mut t, [x, y, z]) = (Tape::default(), mae.encoder.grid);
    let inputs = Inputs {
        stored: t.input_as(&[batch, 1, x, y, z], Dtype::Stored),
        affine: t.input(&[batch, 3, 4]),
        shading: t.input(&[batch, SHADING]),
        noise: t.indices(&[batch, STREAM]),
        streams: t.indices(&[batch, STREAM]),
    };
    let volume = ops::augment(&mut t, inputs.stored, inputs.affine, inputs.shading, inputs.noise);
    let seen = mae.masked(&mut t, volume, inputs.streams, None, Weight::Foreground);
    let loss = mae.record(&mut t, &seen).losses[0].loss;
    let recipe =
        Recipe { betas: [0.9, 0.95], weight_decay: 0.05, clip: 1.0, ema: 0.0, accumulate: 1, recompute };
    let optimiser = Optimiser::record(&mut t, &[(loss, 1.0)], recipe, |_| 1.0);
    let kept = [optimiser.kept(), vec![loss]].concat();
    (t, inputs, loss, optimiser, kept)
}

impl<M: Machine> Training<M> {
    fn new(mae: Mae, batch: usize, machine: impl FnOnce(Tape, &[Tensor]) -> M) -> Self {
        Self::of(program(&mae, batch, false), mae, batch, machine)
    }
    fn of(
        (tape, inputs, loss, optimiser, kept): Program,
        mae: Mae,
        batch: usize,
        machine: impl FnOnce(Tape, &[Tensor]) -> M,
    ) -> Self {
        let weights = first_weights(&tape, &mae.encoder, 1);
        let mut machine = machine(tape, &kept);
        for (name, array) in weights {
            let t = machine.tape().named(&name).unwrap();
            let values: Vec<M::Real> = array.data.iter().map(|&v| M::Real::of(f64::from(v))).collect();
            machine.write(t, &values).unwrap();
        }
        let [x, y, z] = mae.encoder.grid;
        let voxel = |i: usize| {
            let at = |i: usize, n: usize| 6.0 * i as f32 / n as f32;
            let (s, i) = (i / (x * y * z), i % (x * y * z));
            let (px, py, pz) = (at(i / (y * z), x), at(i / z % y, y), at(i % z, z));
            f16::from_f32((px + s as f32).sin() * (py * 1.7).cos() + 0.5 * (pz * 2.3 + s as f32).sin())
        };
        let volumes: Vec<f16> = (0..batch * x * y * z).map(voxel).collect();
        machine.write_stored(inputs.stored, &[&volumes]).unwrap();
        Training { machine, mae, inputs, loss, optimiser, batch }
    }
    /// One update; returns its loss.
    fn step(&mut self, step: u64) -> f64 {
        let how = Augment { rotate_deg: 4.0, ..Augment::default() };
        let samples = 0..self.batch as u32;
        let drawn: Vec<Variant> =
            samples.clone().map(|i| how.draw(self.mae.encoder.grid, 4.0, 1, step, i)).collect();
        let reals = |values: &[f32]| values.iter().map(|&v| M::Real::of(v.into())).collect::<Vec<M::Real>>();
        let affine: Vec<f32> = drawn.iter().flat_map(|v| v.affine).flatten().collect();
        let shading: Vec<f32> = drawn.iter().flat_map(|v| v.shading.row()).collect();
        let noise: Vec<u32> = drawn.iter().flat_map(|v| v.noise).collect();
        let streams: Vec<u32> =
            samples.flat_map(|i| Philox::new(1, Purpose::Mask, step, i).start()).collect();
        let m = &mut self.machine;
        m.write(self.inputs.affine, &reals(&affine)).unwrap();
        m.write(self.inputs.shading, &reals(&shading)).unwrap();
        m.write_indices(self.inputs.noise, &noise).unwrap();
        m.write_indices(self.inputs.streams, &streams).unwrap();
        self.optimiser.update(m, step, 1e-3).unwrap();
        m.read(self.loss).unwrap()[0].f64()
    }
}

fn t1w() -> Vec<String> {
    vec!["T1w".to_owned()]
}

/// Twenty steps of the smallest preset: the same loss as the definition in `f64`, and falling.
#[test]
fn a_training_run_follows_the_definition() {
    let mae = Preset::Tiny.mae(t1w(), [32, 48, 32], 16);
    let mut reference = Training::new(mae.clone(), 2, Cpu::<f64>::new);
    let driver = || emulator(SCHEDULES[0]);
    let mut kernels = Training::new(mae, 2, |tape, keep| Cuda::new(driver(), tape, keep).unwrap());
    let losses: Vec<[f64; 2]> = (0..20).map(|i| [reference.step(i), kernels.step(i)]).collect();
    println!("{losses:.4?}");
    for [reference, kernels] in &losses {
        assert!((kernels / reference - 1.0).abs() < 0.02, "{losses:?}");
    }
    assert!(losses[19][1] < 0.9 * losses[0][1], "{losses:?}");
}

/// A model that a sanitizer can follow in a minute.
fn small() -> Mae {
    let shape = Shape { dim: 64, depth: 1, heads: 1 };
    let encoder = Encoder { modalities: t1w(), grid: [16, 24, 16], patch: 8, shape, cls_token: true };
    Mae { encoder, decoder: shape, mask_ratio: 0.75, norm_pix: true }
}

/// The same bits under every schedule.
#[test]
fn a_small_training_run_gives_the_same_bits_under_any_schedule() {
    let losses = SCHEDULES.map(|schedule| {
        let mut training =
            Training::new(small(), 2, |tape, keep| Cuda::new(emulator(schedule), tape, keep).unwrap());
        let losses: Vec<f64> = (0..3).map(|i| training.step(i)).collect();
        (losses, training.machine.weights().unwrap())
    });
    assert!(losses.iter().all(|l| *l == losses[0]));
}

/// What kernels compute again has the bits it had before.
#[test]
fn recomputing_gives_the_same_bits() {
    let [kept, recomputed] = [false, true].map(|recompute| {
        let program = program(&small(), 2, recompute);
        let machine = |tape, keep: &[Tensor]| Cuda::new(emulator(SCHEDULES[0]), tape, keep).unwrap();
        let mut training = Training::of(program, small(), 2, machine);
        let losses: Vec<f64> = (0..3).map(|i| training.step(i)).collect();
        (losses, training.machine.weights().unwrap())
    });
    assert!(kept == recomputed);
}

#[test]
fn a_trace_shows_what_every_operation_wrote() {
    let mut training =
        Training::new(small(), 2, |tape, keep| Cuda::new(emulator(SCHEDULES[0]), tape, keep).unwrap());
    training.step(0);
    let traced = trace(&mut training.machine).unwrap();
    let (tape, last) = (training.machine.tape(), traced.last().unwrap());
    assert_eq!(last.number, tape.ops().len() - 1);
    assert!(traced.iter().all(|t| t.us > 0.0 && t.nan == 0 && t.mean.is_finite()));
    assert!(traced.iter().any(|t| t.tensor.as_deref() == Some("blocks.0.attn.qkv")));
}

#[test]
fn too_large_a_program_is_refused_with_numbers() {
    let mae = Preset::Large.mae(t1w(), [160, 192, 160], 16);
    let (tape, .., kept) = program(&mae, 8, false);
    let error = Cuda::new(emulator(SCHEDULES[0]), tape, &kept).err().unwrap();
    let cuda::Error::OutOfMemory { asked, free, .. } = error else { panic!("{error}") };
    assert!(asked > free);
    let text = error.to_string();
    assert!(text.contains("for activations") && text.contains("MiB"), "{text}");
}

/// A variant has the bits on a device that it has on the host, rounded once; but for the bent grey scale, whose powers
/// are the machine's own.
#[test]
fn variants_have_the_bits_of_the_host() {
    let grid = [20, 22, 18];
    let mut random = Philox::new(4, Purpose::Test, 0, 0);
    let mut voxel = |i: usize| {
        let at = [i / (grid[1] * grid[2]), i / grid[2] % grid[1], i % grid[2]];
        let square = |axis: usize| (at[axis] as f32 / grid[axis] as f32 - 0.5).powi(2);
        let brain = (0..3).map(square).sum::<f32>() < 0.18;
        f16::from_f32(if brain { random.normal().clamp(-3.5, 3.5) } else { BACKGROUND })
    };
    let volume: Vec<f16> = (0..grid.iter().product()).map(&mut voxel).collect();
    for (seed, gamma) in [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.3), (4, 0.3)] {
        let mut t = Tape::default();
        let stored = t.input_as(&[1, 1, grid[0], grid[1], grid[2]], Dtype::Stored);
        let (affine, shading) = (t.input(&[1, 3, 4]), t.input(&[1, SHADING]));
        let noise = t.indices(&[1, STREAM]);
        let out = ops::augment(&mut t, stored, affine, shading, noise);
        let drawn = Augment { gamma, ..Augment::default() }.draw(grid, 4.0, seed, 0, 0);
        let run = |machine: &mut dyn Machine<Real = f32>| {
            machine.write_stored(stored, &[&volume]).unwrap();
            machine.write(affine, drawn.affine.as_flattened()).unwrap();
            machine.write(shading, &drawn.shading.row()).unwrap();
            machine.write_indices(noise, &drawn.noise).unwrap();
            machine.run().unwrap();
            machine.read(out).unwrap()
        };
        let host = run(&mut Cpu::<f32>::new(t.clone(), &[out]));
        let device = run(&mut Cuda::new(emulator(SCHEDULES[0]), t, &[out]).unwrap());
        let different = host.iter().zip(&device).filter(|&(&h, &d)| bf16::from_f32(h) != bf16::from_f32(d));
        let different: Vec<_> = different.collect();
        assert!(host.iter().zip(&device).all(|(&h, &d)| (h > BACKGROUND) == (d > BACKGROUND)));
        assert!(different.len() <= if gamma == 0.0 { 0 } else { 5 }, "seed {seed}: {different:?}");
        assert!(different.iter().all(|(h, d)| (*h - *d).abs() < 0.02), "{different:?}");
    }
}

/// Pretraining and fine-tuning from a cache see the same volumes and masks on both machines, so that losses agree.
#[test]
fn training_from_a_cache_is_the_same_on_both_machines() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    Cohort { subjects: 6, seed: 1, spacing: 8.0, ..Cohort::default() }.write(&path("heads"), || ()).unwrap();
    let preparation = Preprocessing { grid: [16; 3], spacing: Some(12.0), ..Preprocessing::default() };
    prepare(&path("heads"), &path("cache"), &preparation, |_| (), || ()).unwrap();
    let cache = Cache::open(&path("cache")).unwrap();
    let devices = [("cpu", Device::Cpu), ("cuda", Device::Cuda(emulator(SCHEDULES[0])))];
    let losses = devices.map(|(name, device)| {
        let (mut pretraining, mut tuning) = (Pretrain::default(), Finetune::default());
        for model in [&mut pretraining.model, &mut tuning.model] {
            (model.preset, model.patch) = (Preset::Tiny, 8);
        }
        for (train, how) in
            [(&mut pretraining.train, &mut pretraining.augment), (&mut tuning.train, &mut tuning.augment)]
        {
            (train.epochs, train.batch, train.validation) = (2, 2, 0.2);
            *how = Augment::default();
        }
        let out = ["pretrained", "tuned"].map(|run| path(&format!("{name}-{run}")));
        out.iter().for_each(|out| std::fs::create_dir(out).unwrap());
        let run = |folder| Run { device: &device, folder, resume: false, shown: true };
        pretrain(&cache, &pretraining, Learn::All, run(&out[0])).unwrap();
        finetune(&cache, None, &tuning, HeldOut::Validation, run(&out[1])).unwrap();
        let losses = |out: &PathBuf| -> Vec<f64> {
            let log = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            let lines = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
            lines.filter_map(|l| l.get("loss").or(l.get("watched_loss"))?.as_f64()).collect()
        };
        out.each_ref().map(losses)
    });
    println!("{losses:?}");
    for (host, device) in losses[0].iter().flatten().zip(losses[1].iter().flatten()) {
        assert!((device / host - 1.0).abs() < 0.02, "{losses:?}");
    }
    assert!(losses[0].iter().all(|run| run.len() >= 6) && losses[0][0].len() == losses[1][0].len());
}

/// Else the folds of a cross-validation would fill a device one by one.
#[test]
fn a_program_that_is_dropped_leaves_its_memory() {
    let driver = emulator(SCHEDULES[0]);
    let [free, _] = driver.memory().unwrap();
    let mut training =
        Training::new(small(), 2, |tape, keep| Cuda::new(Rc::clone(&driver), tape, keep).unwrap());
    training.step(0);
    assert!(driver.memory().unwrap()[0] < free);
    drop(training);
    assert_eq!(driver.memory().unwrap()[0], free);
}

/// Ten volumes of 64 voxels, each filled with its number.
struct Numbered(Vec<[f16; 64]>);

impl Volumes for Numbered {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn volume(&self, number: usize) -> &[f16] {
        &self.0[number]
    }
}

/// Volumes that fit stay on the device, others are sent batch by batch, announced or not.
#[test]
fn stored_volumes_reach_the_device_either_way() {
    let volumes = Numbered((0..10).map(|i| [f16::from_f32(i as f32); 64]).collect());
    // Beside a batch of 256 bytes: all 1280, or two batches more.
    for (memory, taken) in [(1 << 20, 256 + 1280), (1600, 256 + 2 * 256)] {
        let mut tape = Tape::default();
        let stored = tape.input_as(&[2, 64], Dtype::Stored);
        let driver: Rc<dyn Driver> = Rc::new(Emulator::new(Schedule::default()).with_memory(memory));
        let mut cuda = Cuda::new(Rc::clone(&driver), tape, &[]).unwrap();
        for (now, next) in [([3, 4], Some([9, 0])), ([9, 0], Some([1, 1])), ([5, 6], None), ([1, 1], None)] {
            cuda.fill_stored(stored, &volumes, &now).unwrap();
            if let Some(next) = next {
                cuda.prefetch_stored(&volumes, &next).unwrap();
            }
            let bytes = cuda.raw(stored).unwrap();
            let got: Vec<f32> =
                bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect();
            assert!(got[..64].iter().all(|v| *v == now[0] as f32), "{got:?}");
            assert!(got[64..].iter().all(|v| *v == now[1] as f32), "{got:?}");
        }
        assert_eq!(driver.memory().unwrap(), [memory - taken, memory]);
    }
}
