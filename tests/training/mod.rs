//! A small masked autoencoder in training, for the tests that run whole steps.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::machine::philox::{Philox, Purpose};
use gyrus::model::mae::random_masking;
use gyrus::model::{Encoder, Mae, Shape, init::first_weights};
use gyrus::ops::optimiser::{AdamConstants, Moments, adamw, grad_norm};
use gyrus::program::{Cpu, backward, flatten};
use gyrus::tape::{Role, Tape, Tensor};

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
                grid: [32, 32, 32],
                patch: 8,
                shape: Shape { dim: 96, depth: 2, heads: 3 },
                cls_token: true,
            },
            decoder: Shape { dim: 48, depth: 1, heads: 3 },
            mask_ratio: 0.75,
            norm_pix: true,
        };
        let (batch, removed) = (3, mae.tokens() - mae.kept());
        let mut t = Tape::default();
        let m = mae.record(&mut t, batch, removed);
        let one = t.input(&[]);
        let gradients = backward(&mut t, &[(m.loss.loss, one)]);
        let flat = flatten(&mut t, &gradients);
        let clip = grad_norm(&mut t, flat.grads, 1.0);
        let schedule = t.input(&[3]);
        let shape = t.shape(flat.params).to_vec();
        let [m1, v] = ["m", "v"].map(|name| t.state(name, &shape));
        let ranges = flat.ranges(&t, |_, shape| (if shape.len() > 1 { 0.05 } else { 0.0 }, 1.0));
        let moments = Moments { params: flat.params, grads: flat.grads, m: m1, v };
        let constants = AdamConstants { betas: [0.9, 0.95], eps: 1e-8 };
        adamw(&mut t, moments, clip.factor, schedule, constants, ranges);

        let weights = first_weights(&t, mae.encoder.patches().grid(), 1);
        let mut cpu = Cpu::new(t, &[m.loss.loss]);
        let named: Vec<Tensor> = [Role::Param, Role::Frozen]
            .iter()
            .flat_map(|&role| cpu.tape().with_role(role).collect::<Vec<_>>())
            .collect();
        for t in named {
            let name = cpu.tape().info(t).name.clone().unwrap();
            cpu.write(t, &weights[&name].data);
        }
        let mut random = Philox::new(1, Purpose::Test, 0, 0);
        cpu.view(m.volume).iter_mut().for_each(|v| *v = random.normal());
        let noise = |_| (0..mae.tokens()).map(|_| random.uniform().into()).collect::<Vec<f64>>();
        let masks: Vec<_> = (0..batch).map(noise).map(|noise| random_masking(&noise, mae.kept())).collect();
        let ids = |f: fn(&gyrus::model::mae::Masking) -> &[u32]| -> Vec<u32> {
            masks.iter().flat_map(f).copied().collect()
        };
        cpu.write_indices(m.ids_keep, &ids(|m| m.ids_keep()));
        cpu.write_indices(m.ids_restore, &ids(|m| &m.ids_restore));
        cpu.write_indices(m.ids_predict, &ids(|m| m.ids_removed()));
        cpu.write(m.weight, &vec![1.0; batch * removed]);
        cpu.write(one, &[1.0]);
        Training { cpu, params: flat.params, loss: m.loss.loss, schedule, steps: 0 }
    }
    /// One update.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        let schedule = [1e-3, 1.0 - 0.9_f32.powi(self.steps), 1.0 - 0.95_f32.powi(self.steps)];
        self.cpu.write(self.schedule, &schedule);
        self.cpu.run();
    }
}
