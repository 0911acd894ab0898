//! A small masked autoencoder in training, for the tests that run whole steps.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::data::Augment;
use gyrus::machine::philox::{Philox, Purpose, STREAM};
use gyrus::model::{Encoder, Mae, Shape, init::first_weights, mae::Weight};
use gyrus::ops;
use gyrus::ops::augment::SHADING;
use gyrus::ops::optimiser::{AdamConstants, Moments, adamw, grad_norm};
use gyrus::program::{Cpu, backward, flatten};
use gyrus::tape::{Dtype, Role, Tape, Tensor};
use half::f16;

/// A program that updates its parameters by one step, and where things are in it.
pub(crate) struct Training {
    pub(crate) cpu: Cpu<f32>,
    pub(crate) params: Tensor,
    pub(crate) loss: Tensor,
    schedule: Tensor,
    steps: i32,
}

impl Training {
    /// 64 patches of 8³ voxels in 3 samples, blocks wide enough that products are split between threads.
    pub(crate) fn new() -> Self {
        let mae = Mae {
            encoder: Encoder {
                modalities: vec!["T1w".into()],
                grid: [32, 32, 32],
                patch: 8,
                shape: Shape { dim: 96, depth: 2, heads: 3 },
                cls_token: true,
            },
            decoder: Shape { dim: 48, depth: 1, heads: 3 },
            mask_ratio: 0.75,
            norm_pix: true,
        };
        let batch = 3;
        let mut t = Tape::default();
        let stored = t.input_as(&[batch, 1, 32, 32, 32], Dtype::Stored);
        let (affine, shading) = (t.input(&[batch, 3, 4]), t.input(&[batch, SHADING]));
        let [noise, streams] = [(); 2].map(|()| t.indices(&[batch, STREAM]));
        let volume = ops::augment(&mut t, stored, affine, shading, noise);
        let inputs = mae.masked(&mut t, volume, streams, None, Weight::Foreground);
        let loss = mae.record(&mut t, &inputs).losses[0].loss;
        let one = t.input(&[]);
        let gradients = backward(&mut t, &[(loss, one)]);
        let flat = flatten(&mut t, &gradients);
        let clip = grad_norm(&mut t, flat.grads, 1.0);
        let schedule = t.input(&[3]);
        let shape = t.shape(flat.params).to_vec();
        let [m1, v] = ["m", "v"].map(|name| t.state(name, &shape));
        let ranges = flat.ranges(&t, |_, shape| (if shape.len() > 1 { 0.05 } else { 0.0 }, 1.0));
        let moments = Moments { params: flat.params, grads: flat.grads, m: m1, v };
        let constants = AdamConstants { betas: [0.9, 0.95], eps: 1e-8 };
        adamw(&mut t, moments, clip.factor, schedule, constants, ranges);

        let weights = first_weights(&t, &mae.encoder, 1);
        let mut cpu = Cpu::new(t, &[loss]);
        let named: Vec<Tensor> = [Role::Param, Role::Frozen]
            .iter()
            .flat_map(|&role| cpu.tape().with_role(role).collect::<Vec<_>>())
            .collect();
        for t in named {
            let name = cpu.tape().info(t).name.clone().unwrap();
            cpu.write(t, &weights[&name].data);
        }
        let mut random = Philox::new(1, Purpose::Test, 0, 0);
        cpu.stored(stored).iter_mut().for_each(|v| *v = f16::from_f32(random.normal().max(-3.9)));
        let drawn: Vec<_> =
            (0..batch as u32).map(|i| Augment::default().draw([32, 32, 32], 4.0, 1, 0, i)).collect();
        cpu.write(affine, &drawn.iter().flat_map(|v| v.affine).flatten().collect::<Vec<f32>>());
        cpu.write(shading, &drawn.iter().flat_map(|v| v.shading.row()).collect::<Vec<f32>>());
        cpu.write_indices(noise, &drawn.iter().flat_map(|v| v.noise).collect::<Vec<u32>>());
        let starts = (0..batch as u32).flat_map(|i| Philox::new(1, Purpose::Mask, 0, i).start());
        cpu.write_indices(streams, &starts.collect::<Vec<u32>>());
        cpu.write(one, &[1.0]);
        Training { cpu, params: flat.params, loss, schedule, steps: 0 }
    }
    /// One update.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        let schedule = [1e-3, 1.0 - 0.9_f32.powi(self.steps), 1.0 - 0.95_f32.powi(self.steps)];
        self.cpu.write(self.schedule, &schedule);
        self.cpu.run();
    }
}
