//! What a case is: a small program with values for everything it reads.
use crate::machine::philox::{Philox, Purpose};
use crate::machine::{Real, cuda};
use crate::program::Machine;
use crate::tape::{Dtype, Tape, Tensor};
use half::{bf16, f16};
use std::fmt;

/// One operation, or several together, at one shape.
pub struct Case {
    /// What is checked; cases of one operation share it.
    pub name: &'static str,
    /// Its shape, and why that one.
    pub shape: String,
    /// Whether all its values are small whole numbers, so that every sum is exact in any order and every precision.
    pub exact: bool,
    /// Whether it is many operations, through which a rounding travels on.
    pub chain: bool,
    record: Box<dyn Fn(&mut Recorder) -> Outputs + Send + Sync>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.shape)
    }
}

impl Case {
    /// A case that `record` writes.
    pub fn new(
        name: &'static str,
        shape: impl Into<String>,
        record: impl Fn(&mut Recorder) -> Outputs + Send + Sync + 'static,
    ) -> Self {
        Case { name, shape: shape.into(), exact: false, chain: false, record: Box::new(record) }
    }
    /// The same, on small whole numbers.
    #[must_use]
    pub fn on_whole_numbers(self) -> Self {
        Case { exact: true, ..self }
    }
    /// The same, known to be a chain of many operations.
    #[must_use]
    pub fn as_chain(self) -> Self {
        Case { chain: true, ..self }
    }
    /// Records it.
    pub fn record(&self) -> (Recorder, Outputs) {
        let mut recorder = Recorder::new(self.exact);
        let outputs = (self.record)(&mut recorder);
        (recorder, outputs)
    }
}

/// What a case leaves.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// Outputs whose gradients are checked.
    pub differentiable: Vec<Tensor>,
    /// Outputs that are only compared between precisions.
    pub other: Vec<Tensor>,
    /// Outputs of indices, which are the same everywhere.
    pub indices: Vec<Tensor>,
}

impl From<Tensor> for Outputs {
    fn from(y: Tensor) -> Self {
        Outputs { differentiable: vec![y], ..Outputs::default() }
    }
}

/// A tape, with values for its inputs and parameters.
pub struct Recorder {
    /// Where the case is recorded.
    pub tape: Tape,
    reals: Vec<(Tensor, Vec<f32>)>,
    indices: Vec<(Tensor, Vec<u32>)>,
    stored: Vec<(Tensor, Vec<f16>)>,
    random: Philox,
    whole: bool,
}

impl Recorder {
    fn new(whole: bool) -> Self {
        let random = Philox::new(1, Purpose::Test, 0, 0);
        let tape = Tape::default();
        Recorder { tape, reals: Vec::new(), indices: Vec::new(), stored: Vec::new(), random, whole }
    }
    /// A parameter with standard normal values.
    pub fn param(&mut self, shape: &[usize]) -> Tensor {
        let name = format!("param{}", self.reals.len());
        let t = self.tape.param(name, shape);
        self.normal(t, 0.0, 1.0);
        t
    }
    /// An input with standard normal values.
    pub fn input(&mut self, shape: &[usize]) -> Tensor {
        let t = self.tape.input(shape);
        self.normal(t, 0.0, 1.0);
        t
    }
    /// An input of activations with standard normal values.
    pub fn activation(&mut self, shape: &[usize]) -> Tensor {
        let t = self.tape.input_as(shape, Dtype::Activation);
        self.normal(t, 0.0, 1.0);
        t
    }
    /// An input with standard normal values, of the shape and elements of `like`.
    pub fn input_like(&mut self, like: Tensor) -> Tensor {
        let info = self.tape.info(like).clone();
        let t = self.tape.input_as(&info.shape, info.dtype);
        self.normal(t, 0.0, 1.0);
        t
    }
    /// An input of stored volumes with these values.
    pub fn stored(&mut self, shape: &[usize], values: Vec<f16>) -> Tensor {
        let t = self.tape.input_as(shape, Dtype::Stored);
        assert_eq!(values.len(), self.tape.len(t));
        self.stored.push((t, values));
        t
    }
    /// An input with these values.
    pub fn values(&mut self, shape: &[usize], values: Vec<f32>) -> Tensor {
        let t = self.tape.input(shape);
        self.fill(t, values);
        t
    }
    /// An input of indices.
    pub fn indices(&mut self, shape: &[usize], values: Vec<u32>) -> Tensor {
        let t = self.tape.indices(shape);
        self.fill_indices(t, values);
        t
    }
    /// Normal values for any tensor that is kept between runs; -2 to 2 in a case on whole numbers.
    pub fn normal(&mut self, t: Tensor, mean: f32, sd: f32) {
        let Recorder { random, whole, .. } = self;
        let mut value = || if *whole { random.below(5) as f32 - 2.0 } else { mean + sd * random.normal() };
        let values = (0..self.tape.len(t)).map(|_| value()).collect();
        self.fill(t, values);
    }
    /// These values for a tensor that is kept between runs.
    #[track_caller]
    pub fn fill(&mut self, t: Tensor, values: Vec<f32>) {
        assert_eq!(values.len(), self.tape.len(t));
        self.reals.retain(|(other, _)| *other != t);
        self.reals.push((t, values));
    }
    /// These values for a tensor of indices.
    #[track_caller]
    pub fn fill_indices(&mut self, t: Tensor, values: Vec<u32>) {
        assert_eq!(values.len(), self.tape.len(t));
        self.indices.push((t, values));
    }
    /// A random order of `0..n`.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..n as u32).collect();
        self.random.shuffle(&mut ids);
        ids
    }
    /// Writes all values into a machine made from this tape.
    ///
    /// # Errors
    /// What a device says.
    pub fn load<M: Machine + ?Sized>(&self, machine: &mut M) -> cuda::Result<()> {
        self.load_values(machine, |v| v)
    }
    /// The same, but each number is the nearest that bf16 has: what kernels and definitions are compared on.
    ///
    /// # Errors
    /// What a device says.
    pub fn load_rounded<M: Machine + ?Sized>(&self, machine: &mut M) -> cuda::Result<()> {
        self.load_values(machine, |v| bf16::from_f32(v).to_f32())
    }
    fn load_values<M: Machine + ?Sized>(
        &self,
        machine: &mut M,
        value: impl Fn(f32) -> f32,
    ) -> cuda::Result<()> {
        for (t, values) in &self.reals {
            let values: Vec<M::Real> = values.iter().map(|&v| M::Real::of(value(v).into())).collect();
            machine.write(*t, &values)?;
        }
        for (t, values) in &self.indices {
            machine.write_indices(*t, values)?;
        }
        self.stored.iter().try_for_each(|(t, values)| machine.write_stored(*t, &[values]))
    }
}
