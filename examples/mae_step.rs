//! Training by hand: a small masked autoencoder learns one made-up volume in twenty steps.
//!
//! Run with `cargo run --release --example mae_step`. The four steps of every program are marked below.
use gyrus::machine::cuda::Result;
use gyrus::model::mae::random_masking;
use gyrus::model::{Encoder, Mae, Shape, init::first_weights};
use gyrus::program::{Cpu, Machine, Optimiser, Recipe};
use gyrus::tape::Tape;

fn main() -> Result<()> {
    let mae = Mae {
        encoder: Encoder {
            modalities: vec!["T1w".into()],
            grid: [32, 40, 32],
            patch: 8,
            shape: Shape { dim: 96, depth: 3, heads: 3 },
            cls_token: true,
        },
        decoder: Shape { dim: 48, depth: 1, heads: 3 },
        mask_ratio: 0.75,
        norm_pix: true,
    };
    let removed = mae.tokens() - mae.kept();

    // 1. Record: names for values, a list of operations, nothing computed.
    let mut t = Tape::default();
    let inputs = mae.inputs(&mut t, 1);
    let target = inputs.targets[0];
    let loss = mae.record(&mut t, &inputs).losses[0].loss;

    // 2. Differentiate: the gradient is more operations on the same tape, and so is the optimiser.
    let recipe = Recipe {
        betas: [0.9, 0.95],
        weight_decay: 0.05,
        clip: 1.0,
        ema: 0.0,
        accumulate: 1,
        recompute: false,
    };
    let optimiser = Optimiser::record(&mut t, &[(loss, 1.0)], recipe, |_| 1.0);

    // 3. Plan: every tensor gets its place in one allocation, the last there will be.
    let weights = first_weights(&t, &mae.encoder, 1);
    let mut cpu = Cpu::<f32>::new(t, &[loss]);
    println!("{} operations, {} KiB", cpu.tape().ops().len(), cpu.plan().bytes / 1024);
    cpu.load(&weights)?;
    cpu.view(inputs.volume).copy_from_slice(&phantom(mae.encoder.grid));
    cpu.write(target.weight, &vec![1.0; removed]);

    // 4. Replay: masks, rates and volumes are data, so the same program runs every step.
    for step in 0..20 {
        let noise: Vec<f64> = (0..mae.tokens()).map(|i| ((i as u64 * 37 + step * 11) % 83) as f64).collect();
        let mask = random_masking(&noise, mae.kept());
        cpu.write_indices(inputs.visible.ids, mask.ids_keep());
        cpu.write_indices(inputs.ids_shuffle, &mask.ids_shuffle);
        cpu.write_indices(target.ids, mask.ids_removed());
        optimiser.update(&mut cpu, step, 2e-3)?;
        println!("step {step:2}: loss {:.4}", cpu.read(loss)[0]);
    }
    Ok(())
}

/// An ellipsoid head with folds in it.
fn phantom([x, y, z]: [usize; 3]) -> Vec<f32> {
    let centred = |i: usize, n: usize| (2 * i + 1) as f32 / n as f32 - 1.0;
    let voxel = |i: usize| {
        let at = [centred(i / (y * z), x), centred(i / z % y, y), centred(i % z, z)];
        let radius = at.iter().map(|c| c * c).sum::<f32>().sqrt();
        if radius > 0.9 { 0.0 } else { 1.0 - radius + 0.3 * (9.0 * at[0]).sin() * (7.0 * at[1]).cos() }
    };
    (0..x * y * z).map(voxel).collect()
}
