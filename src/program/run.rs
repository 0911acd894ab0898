//! Replaying a planned tape on the host.
use super::plan::{self, Life, Plan};
use super::{Array, Arrays};
use crate::machine::Mem;
use crate::machine::cpu::Permit;
use crate::tape::{Dtype, Op, Precision, Role, Tape, Tensor};
use std::ops::Range;
use std::time::{Duration, Instant};

/// A program on the host, in the precision `F`.
pub struct Cpu<F> {
    tape: Tape,
    plan: Plan,
    mem: Mem<F>,
    /// For each operation, the temporaries that nobody reads after it; empty unless they are to be poisoned.
    dead: Vec<Vec<Tensor>>,
}

impl<F: Precision> Cpu<F> {
    /// Plans `tape` and makes room for it; temporaries in `keep` can be read after a run.
    pub fn new(tape: Tape, keep: &[Tensor]) -> Self {
        let lives = plan::lifetimes(&tape, keep);
        let plan = plan::plan(&tape, &lives, size_of::<F>());
        Self::planned(tape, plan)
    }
    /// Like [`new`](Self::new), but fills temporaries with NaN once they are dead by `lives`, so that a wrong
    /// lifetime or a forgotten write shows.
    pub fn poisoned(tape: Tape, lives: &[Option<Life>]) -> Self {
        let plan = plan::plan(&tape, lives, size_of::<F>());
        let mut dead = vec![Vec::new(); tape.ops().len()];
        for t in tape.with_role(Role::Temp).filter(|&t| tape.info(t).part.is_none()) {
            if let Some(ends) = lives[t.index()].and_then(|l| dead.get_mut(l.to)) {
                ends.push(t);
            }
        }
        Cpu { dead, ..Self::planned(tape, plan) }
    }
    fn planned(tape: Tape, plan: Plan) -> Self {
        let slots = |ts: &[Tensor]| ts.iter().map(|t| t.index()).collect();
        let permit = |op: &dyn Op| {
            let io = op.io();
            Permit { reads: slots(&io.reads), writes: slots(&io.writes) }
        };
        let permits = tape.ops().iter().map(|op| permit(&**op)).collect();
        let mem = Mem::new(plan.bytes, plan.spans.clone(), permits);
        Cpu { tape, plan, mem, dead: Vec::new() }
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
    /// Runs all operations and says how long each took.
    pub fn run_traced(&mut self) -> Vec<Duration> {
        let ops = self.tape.ops().len();
        let mut timed = |i| {
            let start = Instant::now();
            self.step(i);
            start.elapsed()
        };
        rayon::scope(|_| (0..ops).map(&mut timed).collect())
    }
    fn step(&mut self, i: usize) {
        self.mem.begin(i);
        F::define(&*self.tape.ops()[i], &self.mem);
        for &t in self.dead.get(i).into_iter().flatten() {
            self.mem.poison(t);
        }
    }
    /// Fills an input, a parameter or a state.
    #[track_caller]
    pub fn write(&mut self, t: Tensor, values: &[F]) {
        assert_eq!(self.tape.info(t).dtype, Dtype::Real, "{t:?} holds indices");
        self.mem.host_mut::<F>(t).copy_from_slice(values);
    }
    /// Fills an input of indices.
    #[track_caller]
    pub fn write_indices(&mut self, t: Tensor, values: &[u32]) {
        assert_eq!(self.tape.info(t).dtype, Dtype::Index, "{t:?} holds reals");
        self.mem.host_mut::<u32>(t).copy_from_slice(values);
    }
    /// An input, to be filled in place.
    pub fn input(&mut self, t: Tensor) -> &mut [F] {
        assert_eq!(self.tape.info(t).dtype, Dtype::Real, "{t:?} holds indices");
        self.mem.host_mut::<F>(t)
    }
    /// What is in a parameter, a state or a kept temporary.
    pub fn read(&self, t: Tensor) -> &[F] {
        self.mem.host(t)
    }
    /// Parameters and frozen tensors by name.
    pub fn weights(&self) -> Arrays<F> {
        let array = |t: Tensor| {
            let info = self.tape.info(t);
            let name = info.name.clone().expect("weights have names");
            (name, Array { shape: info.shape.clone(), data: self.read(t).to_vec() })
        };
        self.tape.with_role(Role::Param).chain(self.tape.with_role(Role::Frozen)).map(array).collect()
    }
    /// Writes all of `arrays`, each into the tensor of its name.
    #[track_caller]
    pub fn load(&mut self, arrays: &Arrays<F>) {
        for (name, array) in arrays {
            let t = self.tape.named(name).unwrap_or_else(|| panic!("no tensor is called {name}"));
            self.write(t, &array.data);
        }
    }
}
