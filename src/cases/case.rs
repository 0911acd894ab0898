//! What a case is: a small program with values for everything it reads.
use crate::machine::Real;
use crate::machine::philox::{Philox, Purpose};
use crate::program::Cpu;
use crate::tape::{Precision, Tape, Tensor};
use std::fmt;

/// One operation, or several together, at one shape.
pub struct Case {
    /// What is checked; cases of one operation share it.
    pub name: &'static str,
    /// Its shape, and why that one.
    pub shape: String,
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
        Case { name, shape: shape.into(), record: Box::new(record) }
    }
    /// Records it.
    pub fn record(&self) -> (Recorder, Outputs) {
        let mut recorder = Recorder::new();
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
}

impl From<Tensor> for Outputs {
    fn from(y: Tensor) -> Self {
        Outputs { differentiable: vec![y], other: Vec::new() }
    }
}

/// A tape, with values for its inputs and parameters.
pub struct Recorder {
    /// Where the case is recorded.
    pub tape: Tape,
    reals: Vec<(Tensor, Vec<f32>)>,
    indices: Vec<(Tensor, Vec<u32>)>,
    random: Philox,
}

impl Recorder {
    fn new() -> Self {
        let random = Philox::new(1, Purpose::Test, 0, 0);
        Recorder { tape: Tape::default(), reals: Vec::new(), indices: Vec::new(), random }
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
    /// Normal values for any tensor that is kept between runs.
    pub fn normal(&mut self, t: Tensor, mean: f32, sd: f32) {
        let values = (0..self.tape.len(t)).map(|_| mean + sd * self.random.normal()).collect();
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
    pub fn load<F: Precision>(&self, cpu: &mut Cpu<F>) {
        for (t, values) in &self.reals {
            let values: Vec<F> = values.iter().map(|&v| F::of(v.f64())).collect();
            cpu.write(*t, &values);
        }
        for (t, values) in &self.indices {
            cpu.write_indices(*t, values);
        }
    }
}
