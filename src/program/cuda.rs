//! Replaying a planned tape on a CUDA device: activations in bf16, all else in f32, parameters in both.
use super::feed::{Feed, Volumes};
use super::machine::Machine;
use super::plan::{self, Plan, Widths};
use crate::machine::cpu::Permit;
use crate::machine::cuda::{ALIGN, Element, Error, Place, Ptr, Result, Stream, mib};
use crate::machine::driver::Graph;
use crate::machine::{Driver, Memory};
use crate::tape::{Dtype, Role, Tape, Tensor};
use bytemuck::{cast_slice, cast_slice_mut};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// How wide elements are on a device.
pub const WIDTHS: Widths = Widths { real: 4, activation: 2, align: ALIGN };

/// What lies round each tensor of a [checked](Cuda::checked) program, and how much of it.
const GUARD: (u8, usize) = (0xA5, 256);

/// A program on a CUDA device.
pub struct Cuda {
    driver: Rc<dyn Driver>,
    tape: Tape,
    plan: Plan,
    stream: Stream,
    places: Vec<Place>,
    graphs: HashMap<Range<usize>, Graph>,
    guards: Vec<Guard>,
    /// Where stored volumes come from, once some were asked for.
    feed: Option<Feed>,
    /// What `places` point into, and the workspace.
    _memory: Vec<Memory>,
}

impl Drop for Cuda {
    fn drop(&mut self) {
        self.graphs.values().for_each(|&graph| self.driver.release(graph));
    }
}

/// A range of guard bytes behind or before a tensor.
struct Guard {
    at: u64,
    len: usize,
    of: Tensor,
}

/// What a program takes on a device, in bytes.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    /// Weights, gradients, moments and inputs.
    kept: usize,
    /// The bf16 copies of weights.
    copies: usize,
    /// The arena of temporaries.
    arena: usize,
    /// Where kernels work.
    workspace: usize,
}

impl Footprint {
    /// All together.
    fn total(&self) -> usize {
        self.kept + self.copies + self.arena + self.workspace
    }
}

fn element(dtype: Dtype) -> Element {
    match dtype {
        Dtype::Real => Element::F32,
        Dtype::Activation => Element::Bf16,
        Dtype::Index => Element::U32,
        Dtype::Stored => Element::F16,
    }
}

/// The tensor that holds the memory of `t`, and the element there at which `t` begins.
fn root(tape: &Tape, t: Tensor) -> (Tensor, usize) {
    let (mut whole, mut from) = (t, 0);
    while let Some((outer, at)) = tape.info(whole).part {
        (whole, from) = (outer, from + at);
    }
    (whole, from)
}

/// For each root, by index, the bytes of the bf16 copy of the parameters in it.
fn copies(tape: &Tape) -> Vec<Option<usize>> {
    let mut copies = vec![None; tape.tensors().len()];
    for p in tape.with_role(Role::Param) {
        let (whole, _) = root(tape, p);
        copies[whole.index()] = Some((tape.len(whole) * size_of::<bf16>()).next_multiple_of(ALIGN));
    }
    copies
}

/// The places of all tensors, from those of their roots: an address, and that of the bf16 copy of parameters.
fn places(tape: &Tape, of_root: impl Fn(Tensor) -> (Ptr, Option<Ptr>)) -> Vec<Place> {
    let place = |t: Tensor| {
        let (whole, from) = root(tape, t);
        let (at, copy) = of_root(whole);
        Place {
            element: element(tape.info(t).dtype),
            at: at.offset(from * WIDTHS.of(tape.info(whole).dtype)),
            copy: copy.map(|copy| copy.offset(from * size_of::<bf16>())),
        }
    };
    (0..tape.tensors().len()).map(|i| place(Tensor::at(i))).collect()
}

/// A stream that has seen every operation's launches and knows the workspace they need.
fn measured(driver: &Rc<dyn Driver>, tape: &Tape) -> Result<Stream> {
    let copies = copies(tape);
    let places = places(tape, |root| (Ptr::NULL, copies[root.index()].map(|_| Ptr::NULL)));
    let slots = |ts: Vec<Tensor>| ts.iter().map(|t| t.index()).collect();
    let permits = tape.ops().iter().map(|op| {
        let io = op.io();
        Permit { reads: slots(io.reads), writes: slots(io.writes) }
    });
    let stream = Stream::new(Rc::clone(driver), places, permits.collect());
    for (i, op) in tape.ops().iter().enumerate() {
        stream.enter(i);
        op.launch(&stream)?;
    }
    Ok(stream)
}

impl Cuda {
    fn parts(tape: &Tape, plan: &Plan, stream: &Stream) -> Footprint {
        Footprint {
            kept: plan.kept,
            copies: copies(tape).into_iter().flatten().sum(),
            arena: plan.bytes - plan.kept,
            workspace: stream.workspace_bytes().next_multiple_of(ALIGN),
        }
    }
    /// Plans `tape`, makes room for it, all zero, and looks at every launch; temporaries in `keep` can be read after
    /// a run.
    ///
    /// # Errors
    /// An operation without kernels, or too little memory.
    pub fn new(driver: Rc<dyn Driver>, tape: Tape, keep: &[Tensor]) -> Result<Self> {
        let plan = plan::plan(&tape, &plan::lifetimes_without_scratch(&tape, keep), WIDTHS);
        let stream = measured(&driver, &tape)?;
        let parts = Self::parts(&tape, &plan, &stream);
        let memory = Memory::new(&driver, parts.total()).map_err(|error| explain(error, parts))?;
        let base = Ptr(memory.at());
        driver.fill(base.0, 0, parts.total())?;
        let mut end = plan.bytes;
        let mut copies = copies(&tape);
        for copy in copies.iter_mut().flatten() {
            let at = end;
            end += *copy;
            *copy = at;
        }
        let places = places(&tape, |root| {
            let (at, copy) = (plan.spans[root.index()].at, copies[root.index()]);
            (base.offset(at), copy.map(|at| base.offset(at)))
        });
        Ok(Self::ready(driver, tape, plan, stream, places, vec![memory], base.offset(end)))
    }
    fn ready(
        driver: Rc<dyn Driver>,
        tape: Tape,
        plan: Plan,
        mut stream: Stream,
        places: Vec<Place>,
        memory: Vec<Memory>,
        workspace: Ptr,
    ) -> Self {
        stream.begin(places.clone(), workspace);
        let (graphs, guards) = (HashMap::new(), Vec::new());
        Cuda { driver, tape, plan, stream, places, graphs, guards, feed: None, _memory: memory }
    }
    /// Like [`new`](Self::new), but every tensor can be read after a run, begins as NaN (the largest index), and has
    /// memory of its own, between guard bytes if `guards` is set. An address sanitizer sees more without them.
    ///
    /// # Errors
    /// An operation without kernels, or too little memory.
    pub fn checked(driver: Rc<dyn Driver>, tape: Tape, guards: bool) -> Result<Self> {
        let every: Vec<Tensor> = (0..tape.tensors().len()).map(Tensor::at).collect();
        let plan = plan::plan(&tape, &plan::lifetimes_without_scratch(&tape, &every), WIDTHS);
        let stream = measured(&driver, &tape)?;
        let padding = if guards { GUARD.1 } else { 0 };
        let (mut watched, mut memory) = (Vec::new(), Vec::new());
        let mut own = |of: Tensor, len: usize| -> Result<Ptr> {
            let room = if guards { len.next_multiple_of(ALIGN) } else { len };
            let own = Memory::new(&driver, room + 2 * padding)?;
            let base = own.at();
            memory.push(own);
            driver.fill(base, GUARD.0, room + 2 * padding)?;
            let at = base + padding as u64;
            driver.fill(at, 0xFF, len)?;
            if guards {
                watched.push(Guard { at: base, len: padding, of });
                watched.push(Guard { at: at + len as u64, len: room - len + padding, of });
            }
            Ok(Ptr(at))
        };
        let copies = copies(&tape);
        let mut roots = vec![None; every.len()];
        for &t in every.iter().filter(|&&t| tape.info(t).part.is_none()) {
            let at = own(t, tape.len(t) * WIDTHS.of(tape.info(t).dtype))?;
            let copy = copies[t.index()].map(|_| own(t, tape.len(t) * size_of::<bf16>())).transpose()?;
            roots[t.index()] = Some((at, copy));
        }
        let places = places(&tape, |root| roots[root.index()].expect("a root has been given memory"));
        let workspace = Memory::new(&driver, stream.workspace_bytes())?;
        let at = Ptr(workspace.at());
        driver.fill(at.0, 0xFF, stream.workspace_bytes())?;
        memory.push(workspace);
        let mut cuda = Self::ready(driver, tape, plan, stream, places, memory, at);
        cuda.guards = watched;
        Ok(cuda)
    }
    /// The tensors of a [checked](Self::checked) program beside which something was written.
    ///
    /// # Errors
    /// What the driver says.
    pub fn damaged(&self) -> Result<Vec<Tensor>> {
        let mut damaged = Vec::new();
        for guard in &self.guards {
            let mut bytes = vec![0; guard.len];
            self.driver.download(guard.at, &mut bytes)?;
            if bytes.iter().any(|&b| b != GUARD.0) {
                damaged.push(guard.of);
            }
        }
        Ok(damaged)
    }
    /// What lies in a tensor, as bytes.
    ///
    /// # Errors
    /// What the driver says.
    pub fn raw(&self, t: Tensor) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.tape.len(t) * WIDTHS.of(self.tape.info(t).dtype)];
        self.driver.download(self.at(t), &mut bytes)?;
        Ok(bytes)
    }
    /// Launches some of the operations one by one, instead of replaying them as a graph.
    ///
    /// # Errors
    /// What the driver says.
    pub fn launch_ops(&mut self, ops: Range<usize>) -> Result<()> {
        for i in ops {
            self.stream.enter(i);
            self.tape.ops()[i].launch(&self.stream)?;
        }
        Ok(())
    }
    /// The operations as a graph, captured the first time they are asked for.
    fn capture(&mut self, ops: Range<usize>) -> Result<Graph> {
        if let Some(&graph) = self.graphs.get(&ops) {
            return Ok(graph);
        }
        self.driver.begin_capture()?;
        let launched = self.launch_ops(ops.clone());
        let graph = self.driver.end_capture();
        launched?;
        Ok(*self.graphs.entry(ops).or_insert(graph?))
    }
    fn at(&self, t: Tensor) -> u64 {
        self.places[t.index()].at.0
    }
    #[track_caller]
    fn expect(&self, t: Tensor, dtypes: &[Dtype], len: usize) {
        let info = self.tape.info(t);
        assert!(dtypes.contains(&info.dtype), "{t:?} is {:?}, not {dtypes:?}", info.dtype);
        assert_eq!(info.len(), len, "elements of {t:?}");
    }
}

/// Says of a request that was too large what it was for.
fn explain(error: Error, parts: Footprint) -> Error {
    match error {
        Error::OutOfMemory { asked, free, total, device, .. } => {
            let Footprint { kept, copies, arena, workspace } = parts;
            let purpose = format!(
                " ({} for weights, gradients, moments and inputs, {} for copies of the weights in bf16, {} for \
                 activations, {} for kernels to work in)",
                mib(kept),
                mib(copies),
                mib(arena),
                mib(workspace)
            );
            Error::OutOfMemory { asked, purpose, activations: arena, free, total, device }
        }
        other => other,
    }
}

impl Machine for Cuda {
    type Real = f32;
    fn tape(&self) -> &Tape {
        &self.tape
    }
    fn plan(&self) -> &Plan {
        &self.plan
    }
    fn bytes(&self) -> usize {
        Self::parts(&self.tape, &self.plan, &self.stream).total()
    }
    /// Captures the operations into a graph the first time, and replays it.
    fn run_ops(&mut self, ops: Range<usize>) -> Result<()> {
        if ops.is_empty() {
            return Ok(());
        }
        let graph = self.capture(ops)?;
        self.driver.replay(graph)
    }
    fn time_ops(&mut self, ops: Range<usize>) -> Result<Duration> {
        self.capture(ops.clone())?;
        let from = self.driver.mark()?;
        self.run_ops(ops)?;
        let to = self.driver.mark()?;
        Ok(Duration::from_secs_f64(self.driver.microseconds(from, to)? * 1e-6))
    }
    fn write(&mut self, t: Tensor, values: &[f32]) -> Result<()> {
        self.expect(t, &[Dtype::Real, Dtype::Activation], values.len());
        let narrow = || {
            let mut narrow = vec![bf16::ZERO; values.len()];
            narrow.convert_from_f32_slice(values);
            narrow
        };
        let Place { element, at, copy } = self.places[t.index()];
        if let Some(copy) = copy {
            self.driver.upload(copy.0, cast_slice(&narrow()))?;
        }
        match element {
            Element::Bf16 => self.driver.upload(at.0, cast_slice(&narrow())),
            _ => self.driver.upload(at.0, cast_slice(values)),
        }
    }
    fn write_indices(&mut self, t: Tensor, values: &[u32]) -> Result<()> {
        self.expect(t, &[Dtype::Index], values.len());
        self.driver.upload(self.at(t), cast_slice(values))
    }
    fn write_stored(&mut self, t: Tensor, values: &[&[f16]]) -> Result<()> {
        self.expect(t, &[Dtype::Stored], values.iter().map(|v| v.len()).sum());
        let mut at = self.at(t);
        for values in values {
            self.driver.upload(at, cast_slice(values))?;
            at += size_of_val(*values) as u64;
        }
        Ok(())
    }
    fn fill_stored(&mut self, t: Tensor, from: &dyn Volumes, numbers: &[usize]) -> Result<()> {
        self.expect(t, &[Dtype::Stored], from.volume(0).len() * numbers.len());
        let to = self.at(t);
        if self.feed.is_none() {
            self.feed = Some(Feed::new(&self.driver, from, numbers.len())?);
        }
        let feed = self.feed.as_mut().expect("made above");
        feed.fill(&*self.driver, from, numbers, to)
    }
    fn prefetch_stored(&mut self, from: &dyn Volumes, numbers: &[usize]) -> Result<()> {
        match &mut self.feed {
            Some(feed) => feed.prefetch(&*self.driver, from, numbers),
            None => Ok(()),
        }
    }
    fn read(&self, t: Tensor) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.tape.len(t)];
        self.expect(t, &[Dtype::Real, Dtype::Activation], values.len());
        match self.places[t.index()].element {
            Element::Bf16 => {
                let mut narrow = vec![bf16::ZERO; values.len()];
                self.driver.download(self.at(t), cast_slice_mut(&mut narrow))?;
                narrow.convert_to_f32_slice(&mut values);
            }
            _ => self.driver.download(self.at(t), cast_slice_mut(&mut values))?,
        }
        Ok(values)
    }
    fn read_indices(&self, t: Tensor) -> Result<Vec<u32>> {
        let mut values = vec![0; self.tape.len(t)];
        self.expect(t, &[Dtype::Index], values.len());
        self.driver.download(self.at(t), cast_slice_mut(&mut values))?;
        Ok(values)
    }
}
