//! Each kind of operation of the smallest preset's training step, by itself: `cargo bench --bench ops`.
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gyrus::cases::timed::Setup;
use gyrus::cases::{Mode, TrainingStep};
use gyrus::model::Preset;
use gyrus::program::{Device, plan::Widths};

fn ops(c: &mut Criterion) {
    let step = TrainingStep::new(Setup::new(Preset::Tiny, Mode::Pretrain, 4));
    let mut machine = step.machine(&Device::Cpu, true).expect("a host has memory for it");
    machine.run().expect("a host does not fail");
    for (number, kind) in step.kinds(Widths::host::<f32>()).into_iter().enumerate() {
        let mut group = c.benchmark_group(kind.name);
        group.throughput(match kind.flops {
            0 => Throughput::Bytes(kind.bytes),
            flops => Throughput::Elements(flops),
        });
        // Kinds can differ in a shape that the name does not show, and criterion wants names that differ.
        let name = format!("{number:02} {}", kind.shape());
        group.bench_function(name, |b| b.iter(|| machine.run_ops(kind.first..kind.first + 1)));
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
