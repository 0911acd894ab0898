//! The half of a training step that follows the loss: backward, accumulation, clipping, AdamW, moving average.
use super::flat::{Flat, decays, flatten};
use super::{Array, Arrays, Machine, backward, backward_recomputing};
use crate::machine::{Real, cuda::Result};
use crate::ops::optimiser::{AdamConstants, Clip, Moments, accumulate, adamw, ema, grad_norm};
use crate::tape::{Tape, Tensor};

/// How parameters are updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Decoupled decay of everything but biases and norm weights.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm; infinite for never.
    pub clip: f64,
    /// Decay of the moving average of the parameters; 0 for none.
    pub ema: f64,
    /// Batches whose gradients are averaged into one update.
    pub accumulate: usize,
    /// Whether what a segment computes is computed again for its gradients instead of kept: the same update to the bit,
    /// in less memory and more time.
    pub recompute: bool,
}

/// A recorded optimiser: operations `0..forward` compute the loss, those to `update` its gradients, the rest the
/// update. All of them are one step.
#[derive(Clone, Debug)]
pub struct Optimiser {
    recipe: Recipe,
    forward: usize,
    update: usize,
    flat: Flat,
    moments: Moments,
    average: Option<(Tensor, Tensor)>, // the average, its decay
    sum: Option<(Tensor, Tensor)>,     // accumulated gradients, what to keep of them
    dlosses: Vec<(Tensor, f64)>,       // gradients of the losses, their shares
    schedule: Tensor,
    clip: Clip,
}

impl Optimiser {
    /// Records the optimiser of the sum of `losses`, each with its share of it; `rate` gives the factor of a parameter's
    /// learning rate, by name.
    pub fn record(
        t: &mut Tape,
        losses: &[(Tensor, f64)],
        recipe: Recipe,
        rate: impl Fn(&str) -> f64,
    ) -> Self {
        let forward = t.ops().len();
        let dlosses: Vec<(Tensor, f64)> = losses.iter().map(|&(_, share)| (t.input(&[]), share)).collect();
        let seeds: Vec<(Tensor, Tensor)> = losses.iter().zip(&dlosses).map(|(l, d)| (l.0, d.0)).collect();
        let differentiate = if recipe.recompute { backward_recomputing } else { backward };
        let gradients = differentiate(t, &seeds);
        let flat = flatten(t, &gradients);
        let len = t.len(flat.params);
        let sum = (recipe.accumulate > 1).then(|| {
            let (sum, keep) = (t.state("sum", &[len]), t.input(&[]));
            accumulate(t, flat.grads, sum, keep);
            (sum, keep)
        });
        let update = t.ops().len();
        let grads = sum.map_or(flat.grads, |s| s.0);
        let clip = grad_norm(t, grads, recipe.clip);
        let moments =
            Moments { params: flat.params, grads, m: t.state("m", &[len]), v: t.state("v", &[len]) };
        let schedule = t.input(&[3]);
        let ranges = flat.ranges(t, |name, shape| {
            (if decays(name, shape) { recipe.weight_decay } else { 0.0 }, rate(name))
        });
        adamw(t, moments, clip.factor, schedule, AdamConstants { betas: recipe.betas, eps: 1e-8 }, ranges);
        let average = (recipe.ema > 0.0).then(|| {
            let (average, decay) = (t.state("average", &[len]), t.input(&[]));
            ema(t, flat.params, average, decay);
            (average, decay)
        });
        Optimiser { recipe, forward, update, flat, moments, average, sum, dlosses, schedule, clip }
    }
    /// Temporaries that this reads after a run.
    pub fn kept(&self) -> Vec<Tensor> {
        vec![self.clip.norm]
    }
    /// Computes the loss alone.
    pub fn evaluate<M: Machine + ?Sized>(&self, machine: &mut M) -> Result<()> {
        machine.run_ops(0..self.forward)
    }
    /// Computes the loss and its gradients for batch number `batch` of those that make one update.
    pub fn differentiate<M: Machine + ?Sized>(&self, machine: &mut M, batch: usize) -> Result<()> {
        self.begin(machine, batch)?;
        machine.run_ops(0..self.update)
    }
    /// The same for the last of these batches; then updates the parameters at learning rate `rate`, as update number
    /// `step` (from 0).
    pub fn update<M: Machine + ?Sized>(&self, machine: &mut M, step: u64, rate: f64) -> Result<()> {
        self.begin(machine, self.recipe.accumulate - 1)?;
        let t = (step + 1) as f64;
        let [m, v] = self.recipe.betas.map(|b| 1.0 - b.powf(t));
        machine.write(self.schedule, &[rate, m, v].map(M::Real::of))?;
        if let Some((average, decay)) = self.average {
            if step == 0 {
                let params = machine.read(self.flat.params)?;
                machine.write(average, &params)?;
            }
            // Short at first, so that the average forgets the random start.
            machine.write(decay, &[M::Real::of(self.recipe.ema.min((1.0 + t) / (10.0 + t)))])?;
        }
        machine.run()
    }
    /// The norm of the gradient that the last update took, before it was clipped.
    pub fn gradient_norm<M: Machine + ?Sized>(&self, machine: &M) -> Result<f64> {
        Ok(machine.read(self.clip.norm)?[0].f64())
    }
    fn begin<M: Machine + ?Sized>(&self, machine: &mut M, batch: usize) -> Result<()> {
        for &(dloss, share) in &self.dlosses {
            machine.write(dloss, &[M::Real::of(share / self.recipe.accumulate as f64)])?;
        }
        match self.sum {
            Some((_, keep)) => machine.write(keep, &[if batch == 0 { M::Real::ZERO } else { M::Real::ONE }]),
            None => Ok(()),
        }
    }
    /// Runs `f` with the averaged parameters in place of the current ones, where an average is kept.
    pub fn averaged<M: Machine + ?Sized, R>(
        &self,
        machine: &mut M,
        f: impl FnOnce(&mut M) -> Result<R>,
    ) -> Result<R> {
        let Some((average, _)) = self.average else { return f(machine) };
        let params = machine.read(self.flat.params)?;
        let average = machine.read(average)?;
        machine.write(self.flat.params, &average)?;
        let result = f(machine);
        machine.write(self.flat.params, &params)?;
        result
    }
    /// What has to be kept to go on later, beside the weights: moments and average, flat, by name.
    pub fn state<M: Machine + ?Sized>(&self, machine: &M) -> Result<Arrays<M::Real>> {
        let array = |(name, t): (&str, Tensor)| {
            let data = machine.read(t)?;
            Ok((format!("optimiser.{name}"), Array { shape: vec![data.len()], data }))
        };
        self.states().into_iter().map(array).collect()
    }
    /// Takes up a state of [`state`](Self::state). Returns the name of an array that is missing or of another length,
    /// if there is one.
    pub fn restore<M: Machine + ?Sized>(
        &self,
        machine: &mut M,
        state: &Arrays<M::Real>,
    ) -> Result<Option<String>> {
        for (name, t) in self.states() {
            let name = format!("optimiser.{name}");
            match state.get(&name).filter(|a| a.data.len() == machine.tape().len(t)) {
                Some(array) => machine.write(t, &array.data)?,
                None => return Ok(Some(name)),
            }
        }
        Ok(None)
    }
    fn states(&self) -> Vec<(&'static str, Tensor)> {
        let average = self.average.map(|(t, _)| ("average", t));
        [("m", self.moments.m), ("v", self.moments.v)].into_iter().chain(average).collect()
    }
}
