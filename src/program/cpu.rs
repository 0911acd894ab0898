//! Replaying a planned tape on the host.
use super::feed::Volumes;
use super::machine::Machine;
use super::plan::{self, Life, Plan, Widths};
use crate::machine::Mem;
use crate::machine::cpu::Permit;
use crate::machine::cuda;
use crate::tape::{Dtype, Op, Precision, Role, Tape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A program on the host, in the precision `F`.
pub struct Cpu<F> {
    tape: Tape,
    plan: Plan,
    mem: Mem<F>,
    /// For each operation, the temporaries whose life ends with it; empty unless they are to be poisoned.
    dead: Vec<Vec<Tensor>>,
    /// For each operation, the activations it writes; empty unless they are to be rounded.
    narrow: Vec<Vec<Tensor>>,
}

impl<F: Precision> Cpu<F> {
    /// Plans `tape` and makes room for it; temporaries in `keep` can be read after a run.
    pub fn new(tape: Tape, keep: &[Tensor]) -> Self {
        let lives = plan::lifetimes(&tape, keep);
        let plan = plan::plan(&tape, &lives, Widths::host::<F>());
        Self::planned(tape, plan)
    }
    /// Like [`new`](Self::new), but fills temporaries with NaN whenever they are dead by `lives`, so that a wrong
    /// lifetime or a forgotten write shows.
    pub fn poisoned(tape: Tape, lives: &[Vec<Life>]) -> Self {
        let plan = plan::plan(&tape, lives, Widths::host::<F>());
        let mut dead = vec![Vec::new(); tape.ops().len()];
        for t in tape.with_role(Role::Temp).filter(|&t| tape.info(t).part.is_none()) {
            for life in &lives[t.index()] {
                if let Some(ends) = dead.get_mut(life.to) {
                    ends.push(t);
                }
            }
        }
        Cpu { dead, ..Self::planned(tape, plan) }
    }
    /// Like [`new`](Self::new), but rounds activations as a device does that keeps them in bf16: what kernels are held
    /// to.
    pub fn rounded(tape: Tape, keep: &[Tensor]) -> Self {
        let narrow = |op: &dyn Op| {
            let activation = |t: &Tensor| tape.info(*t).dtype == Dtype::Activation;
            op.io().writes.into_iter().filter(activation).collect()
        };
        let narrow = tape.ops().iter().map(|op| narrow(&**op)).collect();
        Cpu { narrow, ..Self::new(tape, keep) }
    }
    fn planned(tape: Tape, plan: Plan) -> Self {
        let slots = |ts: &[Tensor]| ts.iter().map(|t| t.index()).collect::<Vec<usize>>();
        let permit = |op: &dyn Op| {
            let io = op.io();
            Permit { reads: slots(&io.reads), writes: [slots(&io.writes), slots(&io.scratch)].concat() }
        };
        let permits = tape.ops().iter().map(|op| permit(&**op)).collect();
        let mem = Mem::new(plan.bytes, plan.spans.clone(), permits);
        Cpu { tape, plan, mem, dead: Vec::new(), narrow: Vec::new() }
    }
    /// What was recorded.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }
    /// Where everything lies.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
    /// Runs all operations.
    pub fn run(&mut self) {
        self.run_ops(0..self.tape.ops().len());
    }
    /// Runs some of the operations, in order.
    pub fn run_ops(&mut self, ops: Range<usize>) {
        // In a worker of the pool, so that parallel operations begin without waking another thread first.
        rayon::scope(|_| ops.for_each(|i| self.step(i)));
    }
    fn step(&mut self, i: usize) {
        self.mem.begin(i);
        F::define(&*self.tape.ops()[i], &self.mem);
        for &t in self.narrow.get(i).into_iter().flatten() {
            let values = self.mem.host_mut::<F>(t);
            values.iter_mut().for_each(|v| *v = F::of(bf16::from_f64(v.f64()).to_f64()));
        }
        for &t in self.dead.get(i).into_iter().flatten() {
            self.mem.poison(t);
        }
    }
    /// Fills an input, a parameter or a state.
    #[track_caller]
    pub fn write(&mut self, t: Tensor, values: &[F]) {
        self.view(t).copy_from_slice(values);
    }
    /// Fills an input of indices.
    #[track_caller]
    pub fn write_indices(&mut self, t: Tensor, values: &[u32]) {
        self.expect(t, &[Dtype::Index]);
        self.mem.host_mut::<u32>(t).copy_from_slice(values);
    }
    /// An input of numbers, to be filled in place.
    #[track_caller]
    pub fn view(&mut self, t: Tensor) -> &mut [F] {
        self.expect(t, &[Dtype::Real, Dtype::Activation]);
        self.mem.host_mut::<F>(t)
    }
    /// An input of stored volumes, to be filled in place.
    #[track_caller]
    pub fn stored(&mut self, t: Tensor) -> &mut [f16] {
        self.expect(t, &[Dtype::Stored]);
        self.mem.host_mut::<f16>(t)
    }
    /// What is in a parameter, a state or a kept temporary.
    #[track_caller]
    pub fn read(&self, t: Tensor) -> &[F] {
        self.expect(t, &[Dtype::Real, Dtype::Activation]);
        self.mem.host(t)
    }
    /// What is in a kept temporary of indices.
    #[track_caller]
    pub fn read_indices(&self, t: Tensor) -> &[u32] {
        self.expect(t, &[Dtype::Index]);
        self.mem.host(t)
    }
    #[track_caller]
    fn expect(&self, t: Tensor, dtypes: &[Dtype]) {
        let dtype = self.tape.info(t).dtype;
        assert!(dtypes.contains(&dtype), "{t:?} is {dtype:?}, not {dtypes:?}");
    }
}

impl<F: Precision> Machine for Cpu<F> {
    type Real = F;
    fn tape(&self) -> &Tape {
        &self.tape
    }
    fn plan(&self) -> &Plan {
        &self.plan
    }
    fn bytes(&self) -> usize {
        self.mem.bytes()
    }
    fn run_ops(&mut self, ops: Range<usize>) -> cuda::Result<()> {
        Cpu::run_ops(self, ops);
        Ok(())
    }
    fn time_ops(&mut self, ops: Range<usize>) -> cuda::Result<Duration> {
        let start = Instant::now();
        Cpu::run_ops(self, ops);
        Ok(start.elapsed())
    }
    fn write(&mut self, t: Tensor, values: &[F]) -> cuda::Result<()> {
        Cpu::write(self, t, values);
        Ok(())
    }
    fn write_indices(&mut self, t: Tensor, values: &[u32]) -> cuda::Result<()> {
        Cpu::write_indices(self, t, values);
        Ok(())
    }
    fn write_stored(&mut self, t: Tensor, values: &[&[f16]]) -> cuda::Result<()> {
        let to = self.stored(t);
        let each = to.len() / values.len();
        to.par_chunks_exact_mut(each).zip(values).for_each(|(to, values)| to.copy_from_slice(values));
        Ok(())
    }
    fn fill_stored(&mut self, t: Tensor, from: &dyn Volumes, numbers: &[usize]) -> cuda::Result<()> {
        let volumes: Vec<&[f16]> = numbers.iter().map(|&number| from.volume(number)).collect();
        self.write_stored(t, &volumes)
    }
    fn read(&self, t: Tensor) -> cuda::Result<Vec<F>> {
        Ok(Cpu::read(self, t).to_vec())
    }
    fn read_indices(&self, t: Tensor) -> cuda::Result<Vec<u32>> {
        Ok(Cpu::read_indices(self, t).to_vec())
    }
}
