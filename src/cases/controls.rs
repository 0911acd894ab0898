//! Faults planted on purpose: a check that never fails cannot be told from one that does not run.
use super::gradcheck::GRADIENT_BOUND;
use super::{Case, Recorder, check};
use crate::machine::{Mem, Real};
use crate::ops;
use crate::program::plan::{Life, Plan, Widths, lifetimes, meet, plan};
use crate::program::{Cpu, backward};
use crate::tape::{Adjoint, Define, Io, Op, Role, Tape, Tensor};
use std::f64::consts::{FRAC_1_SQRT_2, PI};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A planted fault, and what became of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Control {
    /// What was done wrong.
    pub fault: &'static str,
    /// The check that has to see it.
    pub caught_by: &'static str,
    /// The error that the check found: NaN where a dead value was read, infinite where the program was refused.
    pub error: f64,
    /// Whether it was seen.
    pub caught: bool,
}

/// Plants every fault. Panics that are provoked are kept off the terminal.
pub fn controls() -> Vec<Control> {
    const AGAINST_DIFFERENCES: &str = "gradients against differences";
    let gradient = |fault, case: Case| {
        let error = check(&case).gradient.unwrap_or(0.0);
        Control { fault, caught_by: AGAINST_DIFFERENCES, error, caught: error > GRADIENT_BOUND }
    };
    vec![
        gradient(
            "layer_norm's gradient forgets the skip connection's",
            forgotten_skip(Some(Fault::ForgetsSkip)),
        ),
        gradient("GELU's gradient takes 0.70 for 1/√2", row_wise(gelu(|x, y, dy| gelu_grad(x, y, dy, 0.70)))),
        gradient("GELU's gradient is that of the tanh form", row_wise(gelu(tanh_gelu_grad))),
        gradient("softmax's gradient leaves out the row sum", row_wise(softmax(|_, y, dy| product(y, dy)))),
        short_life_read(),
        short_life_shared(),
        refused("an operation reads what it did not declare", Fault::HidesRead),
        refused("an operation writes what it did not declare", Fault::HidesWrite),
    ]
}

/// What is wrong with an operation that is otherwise the real one.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// It takes the gradient that other readers of its first input left, and does nothing with it.
    ForgetsSkip,
    /// It does not declare the last tensor it reads.
    HidesRead,
    /// It does not declare the last tensor it writes.
    HidesWrite,
}

/// A real operation with a fault.
#[derive(Debug)]
struct Mutant {
    op: Arc<dyn Op>,
    fault: Option<Fault>,
}

impl Mutant {
    /// Appends the one operation that `record` appends, with `fault`.
    fn record(t: &mut Tape, fault: Option<Fault>, record: impl FnOnce(&mut Tape) -> Tensor) -> Tensor {
        let mut real = t.clone();
        let y = record(&mut real);
        for new in &real.tensors()[t.tensors().len()..] {
            t.temp(&new.shape);
        }
        let op = Arc::clone(real.ops().last().expect("an operation was recorded"));
        t.push(Mutant { op, fault });
        y
    }
}

impl Op for Mutant {
    fn io(&self) -> Io {
        let mut io = self.op.io();
        match self.fault {
            Some(Fault::HidesRead) => drop(io.reads.pop()),
            Some(Fault::HidesWrite) => drop(io.writes.pop()),
            Some(Fault::ForgetsSkip) | None => {}
        }
        io
    }
    fn vjp(&self, d: &mut Adjoint) {
        if let Some(Fault::ForgetsSkip) = self.fault {
            d.take(self.op.io().reads[0]);
        }
        self.op.vjp(d);
    }
}

impl<F: Real> Define<F> for Mutant
where
    dyn Op: Define<F>,
{
    fn define(&self, m: &Mem<F>) {
        Define::<F>::define(&*self.op, m);
    }
}

/// `x + layer_norm(x)`.
fn forgotten_skip(fault: Option<Fault>) -> Case {
    Case::new("layer_norm", "x + layer_norm(x), 3 x 8", move |r| {
        let [x, gamma, beta] = [r.param(&[3, 8]), r.param(&[8]), r.param(&[8])];
        let y = Mutant::record(&mut r.tape, fault, |t| ops::layer_norm(t, x, gamma, beta));
        ops::add(&mut r.tape, x, y).into()
    })
}

/// The gradient of a function of a row, by the row, its value and the value's gradient.
type RowGradient = fn(&[f64], &[f64], &[f64]) -> Vec<f64>;

/// A function of a row and its gradient.
#[derive(Clone, Copy, Debug)]
struct Rule {
    value: fn(&[f64]) -> Vec<f64>,
    gradient: RowGradient,
}

fn gelu(gradient: RowGradient) -> Rule {
    let value = |x: &[f64]| x.iter().map(|x| x * cumulative(*x, FRAC_1_SQRT_2)).collect();
    Rule { value, gradient }
}

fn softmax(gradient: RowGradient) -> Rule {
    let value = |x: &[f64]| {
        let sum: f64 = x.iter().map(|x| x.exp()).sum();
        x.iter().map(|x| x.exp() / sum).collect()
    };
    Rule { value, gradient }
}

/// Φ(x) for `scale` = 1/√2.
fn cumulative(x: f64, scale: f64) -> f64 {
    0.5 * (1.0 + libm::erf(x * scale))
}

/// `dy (Φ(x) + x φ(x))` for `scale` = 1/√2.
fn gelu_grad(x: &[f64], _: &[f64], dy: &[f64], scale: f64) -> Vec<f64> {
    let density = |x: f64| scale / PI.sqrt() * (-(x * scale).powi(2)).exp();
    x.iter().zip(dy).map(|(x, dy)| dy * (cumulative(*x, scale) + x * density(*x))).collect()
}

/// The gradient of `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, the approximation that some models use.
fn tanh_gelu_grad(x: &[f64], _: &[f64], dy: &[f64]) -> Vec<f64> {
    let slope = |x: f64| {
        let k = (2.0 / PI).sqrt();
        let t = (k * (x + 0.044715 * x.powi(3))).tanh();
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * k * (1.0 + 3.0 * 0.044715 * x * x)
    };
    x.iter().zip(dy).map(|(x, dy)| dy * slope(*x)).collect()
}

fn product(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// A parameter of three rows, through `rule`.
fn row_wise(rule: Rule) -> Case {
    Case::new("row-wise", "3 x 8", move |r| {
        let x = r.param(&[3, 8]);
        let y = r.tape.like(x);
        r.tape.push(RowWise { x, y, rule });
        y.into()
    })
}

#[derive(Clone, Copy, Debug)]
struct RowWise {
    x: Tensor,
    y: Tensor,
    rule: Rule,
}

const COLS: usize = 8;

impl Op for RowWise {
    fn io(&self) -> Io {
        Io::new([self.x], [self.y])
    }
    fn vjp(&self, d: &mut Adjoint) {
        let Some(dy) = d.of(self.y) else { return };
        let dx = d.tape.like(self.x);
        d.tape.push(RowWiseGrad { of: *self, dy, dx });
        d.add(self.x, dx);
    }
}

impl<F: Real> Define<F> for RowWise {
    fn define(&self, m: &Mem<F>) {
        for (x, y) in m.read(self.x).chunks_exact(COLS).zip(m.write(self.y).chunks_exact_mut(COLS)) {
            fill(y, (self.rule.value)(&double(x)));
        }
    }
}

#[derive(Debug)]
struct RowWiseGrad {
    of: RowWise,
    dy: Tensor,
    dx: Tensor,
}

impl Op for RowWiseGrad {
    fn io(&self) -> Io {
        Io::new([self.of.x, self.of.y, self.dy], [self.dx])
    }
}

impl<F: Real> Define<F> for RowWiseGrad {
    fn define(&self, m: &Mem<F>) {
        let rows = |t| m.read(t).chunks_exact(COLS).map(double);
        let dx = m.write(self.dx).chunks_exact_mut(COLS);
        for (((x, y), dy), dx) in rows(self.of.x).zip(rows(self.of.y)).zip(rows(self.dy)).zip(dx) {
            fill(dx, (self.of.rule.gradient)(&x, &y, &dy));
        }
    }
}

fn double<F: Real>(x: &[F]) -> Vec<f64> {
    x.iter().map(|x| x.f64()).collect()
}

fn fill<F: Real>(y: &mut [F], values: Vec<f64>) {
    y.iter_mut().zip(values).for_each(|(y, v)| *y = F::of(v));
}

/// A small block with its gradients: its recorder and the tensors to read in the end.
fn block() -> (Recorder, Vec<Tensor>) {
    let case = Case::new("block", "2 x 6 x 8", |r| {
        let [x, gamma, beta] = [r.param(&[2, 6, 8]), r.param(&[8]), r.param(&[8])];
        let [w, b, w2, b2] = [r.param(&[32, 8]), r.param(&[32]), r.param(&[8, 32]), r.param(&[8])];
        let h = ops::layer_norm(&mut r.tape, x, gamma, beta);
        let h = ops::linear_gelu(&mut r.tape, h, w, b);
        ops::linear_residual(&mut r.tape, h, w2, b2, x, None).into()
    });
    let (mut r, outputs) = case.record();
    let y = outputs.differentiable[0];
    let dy = r.input(&[2, 6, 8]);
    let gradients = backward(&mut r.tape, &[(y, dy)]);
    (r, gradients.into_values().chain([y]).collect())
}

/// Lives of temporaries that span several operations, and can so end one too early: the tensor, and which of its lives.
fn long_lives(lives: &[Vec<Life>], tape: &Tape) -> Vec<[usize; 2]> {
    let temporaries = tape.with_role(Role::Temp).map(Tensor::index);
    let all = temporaries.flat_map(|t| (0..lives[t].len()).map(move |which| [t, which]));
    let long = |life: Life| life.from < life.to && life.to < tape.ops().len();
    all.filter(|&[t, which]| long(lives[t][which])).collect()
}

/// Each life in turn ends too early: NaN reaches an output, or, where the planner has given the memory away
/// already, the machine refuses an operation that would write over what it reads. Both have to happen.
fn short_life_read() -> Control {
    let (r, outputs) = block();
    let lives = lifetimes(&r.tape, &outputs);
    let (mut poisoned, mut refused, mut missed) = (0, 0, 0);
    for [t, which] in long_lives(&lives, &r.tape) {
        let mut lives = lives.clone();
        lives[t][which].to -= 1;
        let run = refusal(|| {
            let mut cpu = Cpu::<f64>::poisoned(r.tape.clone(), &lives);
            r.load(&mut cpu).expect("a host does not fail");
            cpu.run();
            outputs.iter().any(|&y| cpu.read(y).iter().any(|v| v.is_nan()))
        });
        match run {
            Ok(true) => poisoned += 1,
            Err(message) if message.contains("share memory") => refused += 1,
            Ok(false) | Err(_) => missed += 1,
        }
    }
    let caught = poisoned > 0 && refused > 0 && missed == 0;
    Control {
        fault: "a temporary's life ends one operation too early",
        caught_by: "dead temporaries become NaN",
        error: if caught { f64::NAN } else { 0.0 },
        caught,
    }
}

/// All lives end too early, and the planner believes it.
fn short_life_shared() -> Control {
    let (r, outputs) = block();
    let lives = lifetimes(&r.tape, &outputs);
    let mut believed = lives.clone();
    long_lives(&lives, &r.tape).into_iter().for_each(|[t, which]| believed[t][which].to -= 1);
    let sharing = sharing(&r.tape, &plan(&r.tape, &believed, Widths::host::<f32>()), &lives).len();
    Control {
        fault: "every temporary's life ends one operation too early",
        caught_by: "no two tensors alive at once share bytes",
        error: sharing as f64,
        caught: sharing > 0,
    }
}

/// Pairs of tensors that share bytes in `plan` although both are alive by `lives`, or are kept between runs; parts
/// of others are left out.
pub fn sharing(tape: &Tape, plan: &Plan, lives: &[Vec<Life>]) -> Vec<[Tensor; 2]> {
    let always = [Life { from: 0, to: usize::MAX }];
    let lives = |t: Tensor| if tape.info(t).role == Role::Temp { &lives[t.index()][..] } else { &always };
    let whole: Vec<Tensor> =
        (0..tape.tensors().len()).map(Tensor::at).filter(|&t| tape.info(t).part.is_none()).collect();
    let mut pairs = Vec::new();
    for (i, &a) in whole.iter().enumerate() {
        for &b in &whole[..i] {
            let (x, y) = (plan.spans[a.index()], plan.spans[b.index()]);
            let share = x.at < y.at + y.len && y.at < x.at + x.len;
            if share && meet(lives(a), lives(b)) {
                pairs.push([b, a]);
            }
        }
    }
    pairs
}

/// Runs a layer norm that lies about what it touches.
fn refused(fault: &'static str, mutation: Fault) -> Control {
    let (r, _) = forgotten_skip(Some(mutation)).record();
    let mut cpu = Cpu::<f64>::new(r.tape.clone(), &[]);
    r.load(&mut cpu).expect("a host does not fail");
    let message = refusal(|| cpu.run()).err().unwrap_or_default();
    let caught = message.contains("is not among what the operation");
    let error = if caught { f64::INFINITY } else { 0.0 };
    Control { fault, caught_by: "memory refuses what was not declared", error, caught }
}

/// What `f` returns, or the message it panics with, which is kept off the terminal.
fn refusal<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(f));
    std::panic::set_hook(hook);
    outcome.map_err(|panic| panic.downcast::<String>().map_or_else(|_| String::new(), |message| *message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the controls would show only that these operations are always wrong.
    #[test]
    fn the_same_operations_without_their_faults_pass() {
        let right_gelu = gelu(|x, y, dy| gelu_grad(x, y, dy, FRAC_1_SQRT_2));
        let right_softmax = softmax(|_, y, dy| {
            let inner: f64 = product(y, dy).iter().sum();
            y.iter().zip(dy).map(|(y, dy)| y * (dy - inner)).collect()
        });
        for case in [forgotten_skip(None), row_wise(right_gelu), row_wise(right_softmax)] {
            let outcome = check(&case);
            assert!(outcome.passed() && outcome.derivatives > 0, "{outcome:?}");
        }
        let (r, outputs) = block();
        let lives = lifetimes(&r.tape, &outputs);
        assert!(sharing(&r.tape, &plan(&r.tape, &lives, Widths::host::<f32>()), &lives).is_empty());
    }
}
