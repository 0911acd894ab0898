//! Names for values, and what is known of each.
use crate::machine::cpu::Slot;

/// A value in a program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Tensor(u32);

impl Tensor {
    /// The tensor at `index` of its tape.
    pub fn at(index: usize) -> Self {
        Tensor(index.try_into().expect("fewer than 2³² tensors"))
    }
    /// Its place on its tape.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Slot for Tensor {
    fn slot(self) -> usize {
        self.index()
    }
}

/// What a tensor's elements are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dtype {
    /// Numbers, in the machine's precision; `f32` on a GPU.
    Real,
    /// Numbers that pass from operation to operation, in great numbers: `bf16` on a GPU, like [`Real`](Self::Real)
    /// elsewhere.
    Activation,
    /// Positions or counts, `u32` on every machine.
    Index,
    /// Volumes as a cache keeps them, `f16` on every machine.
    Stored,
}

/// Who writes a tensor, and so how long it lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Written by the host before a run.
    Input,
    /// Trained: written by the host once, then by the optimiser; kept between runs.
    Param,
    /// Like a parameter, but not trained.
    Frozen,
    /// Kept between runs and updated by operations: optimiser moments, moving averages.
    State,
    /// Written by an operation; lives from that write to its last read.
    Temp,
}

/// What is known of a tensor when the program is recorded.
#[derive(Clone, Debug)]
pub struct Info {
    /// Extent of each axis, outermost first; the last axis is contiguous.
    pub shape: Vec<usize>,
    /// What its elements are.
    pub dtype: Dtype,
    /// Who writes it.
    pub role: Role,
    /// Its name: in files, for those kept between runs; in traces and checks, for temporaries that have one.
    pub name: Option<String>,
    /// The tensor it is a part of, and the element there at which it begins.
    pub part: Option<(Tensor, usize)>,
}

impl Info {
    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
