//! The memory plan: tensors that are alive together never share bytes, and little memory is enough.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::cases::controls::sharing;
use gyrus::machine::{Mem, Real};
use gyrus::model::{Encoder, Mae, Shape};
use gyrus::ops;
use gyrus::program::plan::{Life, Plan, Widths, lifetimes, meet, plan};
use gyrus::program::{Cpu, backward, flatten};
use gyrus::tape::{Define, Io, Op, Role, Tape, Tensor};
use proptest::prelude::*;
use std::sync::Arc;

/// Writes 1 + the sum of the first elements of what it reads into every element of what it writes.
#[derive(Debug)]
struct Mix {
    reads: Vec<Tensor>,
    write: Tensor,
}

impl Op for Mix {
    fn io(&self) -> Io {
        Io { reads: self.reads.clone(), writes: vec![self.write], scratch: Vec::new() }
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

/// One operation of a random program: how long its output is, which tensors before it it reads (by distance), whether
/// the output is kept, and which operation before it runs again right after it (by distance), if any.
type Line = (usize, Vec<usize>, bool, Option<usize>);

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let reads = prop::collection::vec(0..12_usize, 0..4);
    let line = (1..200_usize, reads, prop::bool::weighted(0.1), prop::option::weighted(0.3, 1..20_usize));
    prop::collection::vec(line, 1..40)
}

/// The program, and the tensors to keep.
fn program(lines: &[Line]) -> (Tape, Vec<Tensor>) {
    let mut t = Tape::default();
    let mut tensors = vec![t.input(&[3])];
    let mut keep = Vec::new();
    for (len, distances, kept, again) in lines {
        let near = distances.iter().filter_map(|d| tensors.len().checked_sub(d + 1));
        let mut reads: Vec<Tensor> = near.map(|i| tensors[i]).collect();
        reads.sort_unstable();
        reads.dedup();
        let write = t.temp(&[*len]);
        t.push(Mix { reads, write });
        tensors.push(write);
        keep.extend(kept.then_some(write));
        let end = t.ops().len();
        if let Some(i) = again.and_then(|distance| end.checked_sub(distance + 1)) {
            t.run_again(end, vec![Arc::clone(&t.ops()[i])]);
        }
    }
    (t, keep)
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
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn tensors_alive_together_never_share_bytes(lines in lines()) {
        let (tape, keep) = program(&lines);
        let lives = lifetimes(&tape, &keep);
        for real in [4, 8] {
            let plan = plan(&tape, &lives, Widths { real, activation: real, align: 64 });
            prop_assert_eq!(sharing(&tape, &plan, &lives), Vec::<[Tensor; 2]>::new());
            for (span, info) in plan.spans.iter().zip(tape.tensors()) {
                prop_assert!(span.at.is_multiple_of(64) && span.at + span.len <= plan.bytes);
                prop_assert_eq!(span.len, info.len() * real);
            }
        }
    }

    #[test]
    fn kept_tensors_survive_and_values_are_right(lines in lines()) {
        let (tape, keep) = program(&lines);
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

/// `x` is written, read, written again and read again; `y` is written and read in between.
#[test]
fn memory_is_free_between_two_lives() {
    let mut t = Tape::default();
    let [x, y, z] = [(); 3].map(|()| t.temp(&[100]));
    let sum = t.temp(&[1]);
    for (reads, write) in
        [(vec![], x), (vec![x], sum), (vec![], y), (vec![y], z), (vec![], x), (vec![x, z], sum)]
    {
        t.push(Mix { reads, write });
    }
    let life = |from, to| Life { from, to };
    let lives = lifetimes(&t, &[]);
    assert_eq!(lives[x.index()], [life(0, 1), life(4, 5)]);
    assert_eq!(lives[y.index()], [life(2, 3)]);
    assert_eq!(lifetimes(&t, &[x])[x.index()], [life(0, 6)], "what is kept has one life");
    let plan_of = |t: &Tape, lives| plan(t, lives, Widths::host::<f32>());
    let at = |plan: &Plan, t: Tensor| plan.spans[t.index()].at;
    let shared = plan_of(&t, &lives);
    assert_eq!(at(&shared, x), at(&shared, y));
    assert_ne!(at(&shared, x), at(&shared, z));
    let mut parted = t.clone();
    let part = parted.temp(&[10]);
    parted.place(part, x, 0);
    let lives = lifetimes(&parted, &[]);
    assert_eq!(lives[x.index()], [life(0, 5)], "what has parts has one life");
    let apart = plan_of(&parted, &lives);
    assert_ne!(at(&apart, x), at(&apart, y));
}

/// Bytes of the arena of a masked autoencoder of twelve blocks, of the temporaries alive at the worst moment, and
/// of all temporaries.
fn arena(train: bool) -> [usize; 3] {
    let shape = Shape { dim: 96, depth: 12, heads: 3 };
    let mae = Mae {
        encoder: Encoder {
            modalities: vec!["T1w".into()],
            grid: [32, 32, 32],
            patch: 8,
            shape,
            cls_token: true,
        },
        decoder: Shape { dim: 48, depth: 2, heads: 3 },
        mask_ratio: 0.75,
        norm_pix: true,
    };
    let mut t = Tape::default();
    let inputs = mae.inputs(&mut t, 2);
    let m = mae.record(&mut t, &inputs);
    if train {
        let one = t.input(&[]);
        let gradients = backward(&mut t, &[(m.losses[0].loss, one)]);
        flatten(&mut t, &gradients);
    }
    let lives = lifetimes(&t, &[m.losses[0].loss]);
    let plan = plan(&t, &lives, Widths::host::<f32>());
    assert!(sharing(&t, &plan, &lives).is_empty());
    let alive: Vec<(usize, &[Life])> = t
        .with_role(Role::Temp)
        .filter(|&x| t.info(x).part.is_none() && !lives[x.index()].is_empty())
        .map(|x| (plan.spans[x.index()].len.next_multiple_of(64), &lives[x.index()][..]))
        .collect();
    let at = |op: usize| {
        let here = [Life { from: op, to: op }];
        alive.iter().filter(|(_, lives)| meet(lives, &here)).map(|(bytes, _)| bytes).sum()
    };
    let peak = (0..t.ops().len()).map(at).max().unwrap();
    [plan.bytes - plan.kept, peak, alive.iter().map(|(bytes, _)| bytes).sum()]
}

/// In training, what backward needs of twelve blocks is alive at once: no plan can be below that peak.
#[test]
fn the_arena_of_twelve_blocks_is_close_to_the_least_possible() {
    for (train, share) in [(false, 0.5), (true, 0.65)] {
        let [arena, peak, all] = arena(train);
        println!("training {train}: arena {arena}, peak {peak}, all temporaries {all} bytes");
        assert!(arena as f64 <= 1.1 * peak as f64);
        assert!((arena as f64) < share * all as f64);
    }
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
    let plan = plan(&t, &lifetimes(&t, &[]), Widths::host::<f32>());
    for (part, whole) in
        [(w, flat.params), (b, flat.params), (gradients[&w], flat.grads), (gradients[&b], flat.grads)]
    {
        let (part, whole) = (plan.spans[part.index()], plan.spans[whole.index()]);
        assert!(part.at >= whole.at && part.at + part.len <= whole.at + whole.len);
    }
}
