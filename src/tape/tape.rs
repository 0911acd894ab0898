//! The recorded program, and what an operation is.
use super::tensor::{Dtype, Info, Role, Tensor};
use crate::machine::{Mem, Real, cuda};
use std::{any::type_name, collections::BTreeMap, fmt, ops::Range, sync::Arc};

/// One step of a program, forward or backward.
///
/// What it writes follows from what it reads, and from nothing else: it may be run again for the same numbers.
///
/// An operation is defined by loops that any machine can be held to ([`Define`]), differentiated by recording more
/// operations ([`vjp`](Op::vjp)), and computed on a GPU by kernels that it launches ([`launch`](Op::launch)).
pub trait Op: Define<f32> + Define<f64> + fmt::Debug + Send + Sync {
    /// The tensors it touches: the memory plan and the machines hold it to this list.
    fn io(&self) -> Io;
    /// Records the operations that carry gradients from its outputs to its inputs.
    fn vjp(&self, _: &mut Adjoint) {}
    /// Launches its kernels. What is launched may depend on shapes alone: it is captured once and replayed.
    ///
    /// # Errors
    /// An operation without kernels, or what the driver says.
    fn launch(&self, _: &cuda::Stream) -> cuda::Result<()> {
        Err(cuda::Error::NoKernelOf { op: self.name() })
    }
    /// Multiplications and additions in its matrix products.
    fn flops(&self) -> u64 {
        0
    }
    /// Tensors that would be read or written once more if a product's kernel did nothing but multiply, as where a compiler
    /// fuses all but products.
    fn folded(&self) -> Vec<Tensor> {
        Vec::new()
    }
    /// Cycles that its kernels take on `card` by a model of them; nothing where there is none.
    fn cycles(&self, _card: cuda::Card) -> Option<usize> {
        None
    }
    /// The operation's name, for traces and tables: the type's.
    fn name(&self) -> &'static str {
        let path = type_name::<Self>();
        path.rsplit("::").next().unwrap_or(path)
    }
}

/// The definition of an operation: what it computes, in `F`.
pub trait Define<F: Real> {
    /// Computes the outputs from the inputs.
    fn define(&self, m: &Mem<F>);
}

/// A precision that recorded operations can be run in: `f32` or `f64`.
pub trait Precision: Real {
    /// Computes `op` by its definition in this precision.
    fn define(op: &dyn Op, m: &Mem<Self>);
}
impl Precision for f32 {
    fn define(op: &dyn Op, m: &Mem<f32>) {
        Define::<f32>::define(op, m);
    }
}
impl Precision for f64 {
    fn define(op: &dyn Op, m: &Mem<f64>) {
        Define::<f64>::define(op, m);
    }
}

/// The tensors an operation touches.
#[derive(Clone, Debug, Default)]
pub struct Io {
    /// Read, in any order.
    pub reads: Vec<Tensor>,
    /// Written, each in full; one that is read too is updated in place.
    pub writes: Vec<Tensor>,
    /// Temporaries that the definition works in. Nobody else reads them; kernels have a workspace of their own.
    pub scratch: Vec<Tensor>,
}

impl Io {
    /// Reads and writes, with optional tensors left out when absent.
    pub fn new<const R: usize, const W: usize>(
        reads: [impl Into<Option<Tensor>> + Copy; R],
        writes: [Tensor; W],
    ) -> Self {
        let reads = reads.into_iter().filter_map(Into::into).collect();
        Io { reads, writes: writes.into(), scratch: Vec::new() }
    }
    /// The same, with temporaries for the definition to work in.
    pub fn scratch<const S: usize>(self, scratch: [Tensor; S]) -> Self {
        Io { scratch: scratch.into(), ..self }
    }
}

/// A straight-line program over tensors.
#[derive(Clone, Default)]
pub struct Tape {
    tensors: Vec<Info>,
    ops: Vec<Arc<dyn Op>>,
    segments: Vec<Range<usize>>,
}

impl Tape {
    fn tensor(&mut self, shape: &[usize], role: Role, dtype: Dtype, name: Option<String>) -> Tensor {
        self.tensors.push(Info { shape: shape.to_vec(), dtype, role, name, part: None });
        Tensor::at(self.tensors.len() - 1)
    }
    /// A tensor the host fills before a run.
    pub fn input(&mut self, shape: &[usize]) -> Tensor {
        self.tensor(shape, Role::Input, Dtype::Real, None)
    }
    /// A tensor the host fills before a run, of elements other than [`Dtype::Real`].
    pub fn input_as(&mut self, shape: &[usize], dtype: Dtype) -> Tensor {
        self.tensor(shape, Role::Input, dtype, None)
    }
    /// A tensor of indices the host fills before a run.
    pub fn indices(&mut self, shape: &[usize]) -> Tensor {
        self.tensor(shape, Role::Input, Dtype::Index, None)
    }
    /// A trained tensor, with the name it has in checkpoints.
    pub fn param(&mut self, name: impl Into<String>, shape: &[usize]) -> Tensor {
        self.tensor(shape, Role::Param, Dtype::Real, Some(name.into()))
    }
    /// A named tensor that is not trained.
    pub fn frozen(&mut self, name: impl Into<String>, shape: &[usize]) -> Tensor {
        self.tensor(shape, Role::Frozen, Dtype::Real, Some(name.into()))
    }
    /// A tensor that operations update and that is kept between runs.
    pub fn state(&mut self, name: impl Into<String>, shape: &[usize]) -> Tensor {
        self.tensor(shape, Role::State, Dtype::Real, Some(name.into()))
    }
    /// A tensor some operation will write: few numbers, or such that have to be precise.
    pub fn temp(&mut self, shape: &[usize]) -> Tensor {
        self.tensor(shape, Role::Temp, Dtype::Real, None)
    }
    /// A tensor some operation will write: many numbers that others read.
    pub fn activation(&mut self, shape: &[usize]) -> Tensor {
        self.tensor(shape, Role::Temp, Dtype::Activation, None)
    }
    /// A tensor of indices some operation will write.
    pub fn temp_indices(&mut self, shape: &[usize]) -> Tensor {
        self.tensor(shape, Role::Temp, Dtype::Index, None)
    }
    /// A temporary of the shape and elements of `t`.
    pub fn like(&mut self, t: Tensor) -> Tensor {
        let Info { shape, dtype, .. } = self.info(t).clone();
        self.tensor(&shape, Role::Temp, dtype, None)
    }
    /// An activation of the shape of `t`.
    pub fn activation_like(&mut self, t: Tensor) -> Tensor {
        let shape = self.shape(t).to_vec();
        self.activation(&shape)
    }
    /// Makes `t` a part of `whole`, from element `at` on.
    ///
    /// # Panics
    /// When `t` is a part already, or reaches past the end of `whole`.
    #[track_caller]
    pub fn place(&mut self, t: Tensor, whole: Tensor, at: usize) {
        assert!(at + self.len(t) <= self.len(whole), "{t:?} does not fit in {whole:?} at {at}");
        let part = &mut self.tensors[t.index()].part;
        assert!(part.is_none(), "{t:?} is a part of another tensor already");
        *part = Some((whole, at));
    }
    /// Gives `t` the name that traces and checks know it by, and returns it.
    pub fn name(&mut self, t: Tensor, name: impl Into<String>) -> Tensor {
        self.tensors[t.index()].name = Some(name.into());
        t
    }
    /// Appends an operation.
    pub fn push(&mut self, op: impl Op + 'static) {
        self.ops.push(Arc::new(op));
    }
    /// Records what can be [computed again](crate::program::backward_recomputing) rather than kept for its gradients:
    /// operations that update nothing in place.
    ///
    /// # Panics
    /// When segments are nested.
    #[track_caller]
    pub fn segment<R>(&mut self, record: impl FnOnce(&mut Self) -> R) -> R {
        let (from, before) = (self.ops.len(), self.segments.len());
        let recorded = record(self);
        assert_eq!(self.segments.len(), before, "segments in a segment");
        self.segments.push(from..self.ops.len());
        recorded
    }
    /// The operations of each [segment](Self::segment), in order.
    pub fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }
    /// Lets `ops`, which are recorded already, run once more before operation number `at`, behind all segments.
    pub fn run_again(&mut self, at: usize, ops: Vec<Arc<dyn Op>>) {
        self.ops.splice(at..at, ops);
    }
    /// The operations so far.
    pub fn ops(&self) -> &[Arc<dyn Op>] {
        &self.ops
    }
    /// The tensors so far, by [`Tensor::index`].
    pub fn tensors(&self) -> &[Info] {
        &self.tensors
    }
    /// What is known of `t`.
    pub fn info(&self, t: Tensor) -> &Info {
        &self.tensors[t.index()]
    }
    /// The shape of `t`.
    pub fn shape(&self, t: Tensor) -> &[usize] {
        &self.info(t).shape
    }
    /// How many elements `t` has.
    pub fn len(&self, t: Tensor) -> usize {
        self.info(t).len()
    }
    /// Whether nothing has been recorded.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
    /// All tensors with `role`, in the order they were recorded.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = Tensor> + '_ {
        (0..self.tensors.len()).map(Tensor::at).filter(move |&t| self.info(t).role == role)
    }
    /// The tensor that is called `name`.
    pub fn named(&self, name: &str) -> Option<Tensor> {
        (0..self.tensors.len()).map(Tensor::at).find(|&t| self.info(t).name.as_deref() == Some(name))
    }
    /// Asserts the shape of `t`.
    #[track_caller]
    pub fn expect_shape(&self, what: &str, t: Tensor, shape: &[usize]) {
        assert_eq!(self.shape(t), shape, "shape of {what}");
    }
}

/// The derivative under construction: what [`Op::vjp`] writes to.
pub struct Adjoint<'t> {
    /// Where the backward operations go.
    pub tape: &'t mut Tape,
    terms: BTreeMap<Tensor, Vec<Tensor>>,
    wanted: Vec<bool>,
}

impl<'t> Adjoint<'t> {
    /// A derivative that begins with gradients `seeds` of some tensors; `wanted` says, by tensor, whether any
    /// parameter lies behind it.
    pub fn new(tape: &'t mut Tape, seeds: &[(Tensor, Tensor)], wanted: Vec<bool>) -> Self {
        let mut terms: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for &(t, gradient) in seeds {
            terms.entry(t).or_default().push(gradient);
        }
        Adjoint { tape, terms, wanted }
    }
    /// The gradient of an output of the running operation; `None` when nothing depends on it.
    pub fn of(&self, t: Tensor) -> Option<Tensor> {
        self.terms.get(&t)?.first().copied()
    }
    /// Whether anyone needs the gradient of `t`.
    pub fn wants(&self, t: Tensor) -> bool {
        self.wanted[t.index()]
    }
    /// Takes one term that other readers of `t` have left, for a fused kernel to add to its own.
    pub fn take(&mut self, t: Tensor) -> Option<Tensor> {
        self.terms.get_mut(&t)?.pop()
    }
    /// Leaves a term of the gradient of `t`.
    pub fn add(&mut self, t: Tensor, term: Tensor) {
        if self.wants(t) {
            self.terms.entry(t).or_default().push(term);
        }
    }
    /// All terms of the gradient of `t`, taken out.
    pub fn drain(&mut self, t: Tensor) -> Vec<Tensor> {
        self.terms.remove(&t).unwrap_or_default()
    }
}
