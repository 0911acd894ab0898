//! Whole training steps of the two presets that a processor can train: `cargo bench --bench step`.
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gyrus::cases::timed::Setup;
use gyrus::cases::{Mode, TrainingStep};
use gyrus::model::Preset;
use gyrus::program::Device;

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    group.sample_size(20);
    for preset in [Preset::Tiny, Preset::Small] {
        for mode in [Mode::Pretrain, Mode::Finetune] {
            let step = TrainingStep::new(Setup::new(preset, mode, 4));
            let mut machine = step.machine(&Device::Cpu, false).expect("a host has memory for it");
            group.throughput(Throughput::Elements(step.flops()));
            group.bench_function(format!("{preset:?} {mode:?}"), |b| b.iter(|| machine.run()));
        }
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
