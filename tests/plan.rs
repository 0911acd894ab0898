//! The memory plan: tensors that are alive together never share bytes, and little memory is enough.
use gyrus::cases::controls::sharing;
use gyrus::machine::{Mem, Real};
use gyrus::model::{Encoder, Mae, Shape};
use gyrus::ops;
use gyrus::program::plan::{lifetimes, plan};
use gyrus::program::{Cpu, backward, flatten};
use gyrus::tape::{Define, Io, Op, Role, Tape, Tensor};
use proptest::prelude::*;

/// Writes 1 + the sum of the first elements of what it reads into every element of what it writes.
#[derive(Debug)]
struct Mix {
    reads: Vec<Tensor>,
    write: Tensor,
}

impl Op for Mix {
    fn io(&self) -> Io {
        Io { reads: self.reads.clone(), writes: vec![self.write] }
    }
}

impl<F: Real> Define<F> for Mix {
    fn define(&self, m: &Mem<F>) {
        let mut value = F::ONE;
        for &t in &self.reads {
            let read = m.read(t);
            assert!(read.iter().all(|x| *x == read[0]), "{t:?} was overwritten in part");
            value += read[0];
        }
        m.write(self.write).fill(value);
    }
}

/// Random straight-line programs: each operation reads some earlier tensors (by distance) and writes a new one.
fn program() -> impl Strategy<Value = (Tape, Vec<Tensor>)> {
    let op = (1..200_usize, prop::collection::vec(0..12_usize, 0..4), prop::bool::weighted(0.1));
    prop::collection::vec(op, 1..40).prop_map(|ops| {
        let mut t = Tape::default();
        let mut tensors = vec![t.input(&[3])];
        let mut keep = Vec::new();
        for (len, distances, kept) in ops {
            let mut reads: Vec<Tensor> = distances
                .iter()
                .filter_map(|d| tensors.len().checked_sub(d + 1))
                .map(|i| tensors[i])
                .collect();
            reads.sort_unstable();
            reads.dedup();
            let write = t.temp(&[len]);
            t.push(Mix { reads, write });
            tensors.push(write);
            if kept {
                keep.push(write);
            }
        }
        (t, keep)
    })
}

/// What each operation's output must be, computed without any plan.
fn expected(t: &Tape) -> Vec<f64> {
    let mut values = vec![0.0; t.tensors().len()];
    for op in t.ops() {
        let io = op.io();
        values[io.writes[0].index()] = 1.0 + io.reads.iter().map(|r| values[r.index()]).sum::<f64>();
    }
    values
}

proptest! {
    #[test]
    fn tensors_alive_together_never_share_bytes((tape, keep) in program()) {
        let lives = lifetimes(&tape, &keep);
        for real in [4, 8] {
            let plan = plan(&tape, &lives, real);
            prop_assert_eq!(sharing(&tape, &plan, &lives), Vec::<[Tensor; 2]>::new());
            for (span, info) in plan.spans.iter().zip(tape.tensors()) {
                prop_assert!(span.at % 64 == 0 && span.at + span.len <= plan.bytes);
                prop_assert_eq!(span.len, info.len() * real);
            }
        }
    }

    #[test]
    fn kept_tensors_survive_and_values_are_right((tape, keep) in program()) {
        let expected = expected(&tape);
        let lives = lifetimes(&tape, &keep);
        for mut cpu in [Cpu::<f64>::new(tape.clone(), &keep), Cpu::poisoned(tape, &lives)] {
            cpu.run();
            for &t in &keep {
                prop_assert!(cpu.read(t).iter().all(|x| *x == expected[t.index()]));
            }
        }
    }
}

/// The bytes of a recorded masked autoencoder's arena, and of all its temporaries side by side.
fn arena(depth: usize) -> (usize, usize) {
    let shape = Shape { dim: 96, depth, heads: 3 };
    let mae = Mae {
        encoder: Encoder { grid: [32, 32, 32], patch: 8, shape, cls_token: true },
        decoder: Shape { dim: 48, depth: 2, heads: 3 },
        mask_ratio: 0.75,
        norm_pix: true,
    };
    let mut t = Tape::default();
    let m = mae.record(&mut t, 2, mae.tokens() - mae.kept());
    let one = t.input(&[]);
    let gradients = backward(&mut t, &[(m.loss.loss, one)]);
    flatten(&mut t, &gradients);
    let lives = lifetimes(&t, &[m.loss.loss]);
    let plan = plan(&t, &lives, size_of::<f32>());
    assert!(sharing(&t, &plan, &lives).is_empty());
    let temporaries =
        t.with_role(Role::Temp).filter(|&x| t.info(x).part.is_none() && lives[x.index()].is_some());
    (plan.bytes - plan.kept, temporaries.map(|x| plan.spans[x.index()].len.next_multiple_of(64)).sum())
}

#[test]
fn the_arena_of_twelve_blocks_is_less_than_half_of_its_temporaries() {
    let (arena, all) = arena(12);
    println!("arena {arena} of {all} bytes: {:.2}", arena as f64 / all as f64);
    assert!(2 * arena < all);
}

#[test]
fn a_part_lies_inside_its_whole() {
    let mut t = Tape::default();
    let (w, b) = (t.param("w", &[5, 7]), t.param("b", &[5]));
    let x = t.input(&[3, 7]);
    let y = ops::linear(&mut t, x, w, b);
    let dy = t.input(&[3, 5]);
    let gradients = backward(&mut t, &[(y, dy)]);
    let flat = flatten(&mut t, &gradients);
    let plan = plan(&t, &lifetimes(&t, &[]), 4);
    for (part, whole) in
        [(w, flat.params), (b, flat.params), (gradients[&w], flat.grads), (gradients[&b], flat.grads)]
    {
        let (part, whole) = (plan.spans[part.index()], plan.spans[whole.index()]);
        assert!(part.at >= whole.at && part.at + part.len <= whole.at + whole.len);
    }
}
