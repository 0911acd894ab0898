//! The emulator finds the mistakes that it is there to find: kernels with one each (tests/kernels) fail in
//! the build that catches it, and pass without it. `GYRUS_SANITIZE` at compile time chooses the build; a
//! sanitizer ends the process, so whatever is to fail does so in a process of its own.
#![cfg(feature = "emulator")]
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use gyrus::machine::driver::Extent;
use gyrus::machine::emulator::Schedule;
use gyrus::machine::{Driver, Emulator, cuda};
use half::bf16;
use std::env;
use std::ffi::c_void;
use std::process::Command;

mod schedules;
mod tensor_map;

use schedules::SCHEDULES;
use tensor_map::TensorMap;

/// What the report of a sanitizer, or the emulator, must say of a mistake.
struct Planted {
    kernel: &'static str,
    bug: i32,
    run: fn(&Run) -> cuda::Result<bool>,
    /// The builds that find it: "" is the plain one.
    found_by: &'static [(&'static str, &'static str)],
}

const WRONG: &str = "wrong result";
const RACE: &str = "ThreadSanitizer: data race";
/// A stage that is given back before it was filled.
const MORE_ARRIVALS: &str = "mbarrier: more arrivals than its";
/// One with the tensor cores: neither has a stack that names the kernel, as all other reports must.
const RACE_OF_THE_COPY_ENGINE: &str = "#0 emu::(anonymous namespace)::issue_load(";

const PLANTED: [Planted; 25] = [
    Planted {
        kernel: "planted_barrier",
        bug: 1,
        run: barrier,
        found_by: &[("", WRONG), ("address", WRONG), ("thread", RACE)],
    },
    Planted { kernel: "planted_syncwarp", bug: 1, run: syncwarp, found_by: &[("", WRONG), ("thread", RACE)] },
    Planted { kernel: "planted_stages", bug: 1, run: stages, found_by: &[("", WRONG), ("address", WRONG)] },
    Planted { kernel: "planted_stages", bug: 2, run: stages, found_by: &[("thread", RACE)] },
    Planted {
        kernel: "planted_past_the_end",
        bug: 1,
        run: past_the_end,
        found_by: &[("address", "AddressSanitizer: heap-buffer-overflow")],
    },
    Planted {
        kernel: "planted_shared_overrun",
        bug: 1,
        run: shared_overrun,
        found_by: &[("address", "AddressSanitizer: ")],
    },
    Planted {
        kernel: "planted_unaligned",
        bug: 1,
        run: unaligned,
        found_by: &[
            ("", "which is not a multiple of its size"),
            ("address", "which is not a multiple of its size"),
            ("thread", "which is not a multiple of its size"),
        ],
    },
    Planted { kernel: "planted_blocks_add", bug: 1, run: blocks_add, found_by: &[("thread", RACE)] },
    Planted { kernel: "planted_last_block", bug: 1, run: last_block, found_by: &[("thread", RACE)] },
    Planted {
        kernel: "planted_divergent_barrier",
        bug: 1,
        run: divergent_barrier,
        found_by: &[("", "threads 0..63 wait at barrier 0; threads 64..127 have finished")],
    },
    Planted {
        kernel: "planted_divergent_shuffle",
        bug: 1,
        run: divergent_shuffle,
        found_by: &[("", "threads 0..15 wait at a shuffle (mask ffffffff)")],
    },
    Planted { kernel: "planted_product", bug: 1, run: product, found_by: &[("thread", RACE)] },
    Planted { kernel: "planted_product", bug: 2, run: product, found_by: &[("thread", RACE)] },
    Planted { kernel: "planted_product", bug: 3, run: product, found_by: &[("", WRONG)] },
    Planted {
        kernel: "planted_ring",
        bug: 1,
        run: ring,
        found_by: &[("", ""), ("address", ""), ("thread", "")],
    },
    Planted {
        kernel: "planted_ring",
        bug: 2,
        run: ring,
        found_by: &[("", WRONG), ("thread", RACE_OF_THE_COPY_ENGINE)],
    },
    Planted {
        kernel: "planted_turns",
        bug: 1,
        run: turns,
        found_by: &[("", MORE_ARRIVALS), ("thread", RACE_OF_THE_COPY_ENGINE)],
    },
    Planted { kernel: "planted_store", bug: 1, run: store, found_by: &[("thread", RACE)] },
    Planted { kernel: "planted_store", bug: 2, run: store, found_by: &[("", WRONG), ("thread", RACE)] },
    Planted { kernel: "planted_store", bug: 3, run: store, found_by: &[("", WRONG), ("thread", RACE)] },
    Planted {
        kernel: "planted_store",
        bug: 4,
        run: store,
        found_by: &[
            ("", "the thread ended with TMA stores under way"),
            ("thread", "the thread ended with TMA stores under way"),
        ],
    },
    Planted { kernel: "planted_cluster", bug: 1, run: cluster, found_by: &[("", WRONG), ("thread", RACE)] },
    Planted {
        kernel: "planted_cluster",
        bug: 2,
        run: cluster,
        found_by: &[
            ("", "of the cluster has ended, and its shared memory with it"),
            ("thread", "of the cluster has ended, and its shared memory with it"),
        ],
    },
    Planted {
        kernel: "planted_cluster",
        bug: 3,
        run: cluster,
        found_by: &[("", "mbarrier: not initialised"), ("thread", "mbarrier: not initialised")],
    },
    Planted {
        kernel: "planted_cluster",
        bug: 4,
        run: cluster,
        found_by: &[
            ("", "the block ended with TMA loads into its shared memory under way"),
            ("thread", "the block ended with TMA loads into its shared memory under way"),
        ],
    },
];

/// One kernel under one schedule, with its mistake or without.
struct Run {
    emulator: Emulator,
    kernel: &'static str,
    bug: i32,
}

impl Run {
    fn launch(&self, blocks: u32, block: u32, shared: usize, args: &mut [*mut c_void]) -> cuda::Result<()> {
        let kernel = self.emulator.kernel(self.kernel)?;
        let mut bug = self.bug;
        let args: Vec<*mut c_void> = args.iter().copied().chain([pointer(&mut bug)]).collect();
        assert_eq!(args.len(), kernel.parameters.len());
        let extent = Extent { grid: [blocks, 1, 1], block, shared: shared.try_into().unwrap() };
        // SAFETY: the arguments are those of the kernel; what it does wrong is what the test is about.
        unsafe { self.emulator.launch(&kernel, extent, &mut args.clone()) }
    }
}

fn pointer<T>(value: &mut T) -> *mut c_void {
    (&raw mut *value).cast()
}

const THREADS: usize = 128;

/// 1, 2, 3 ... as sums of them tell which are missing.
fn counted(len: usize) -> Vec<f32> {
    (1..=len).map(|i| i as f32).collect()
}

/// Runs a kernel of (x, y, ...), and returns y.
fn x_to_y(
    run: &Run,
    x: &[f32],
    y_len: usize,
    [blocks, block, shared]: [usize; 3],
    more: &mut [i32],
) -> cuda::Result<Vec<f32>> {
    let mut y = vec![f32::NAN; y_len];
    let (mut x_at, mut y_at) = (x.as_ptr(), y.as_mut_ptr());
    let mut args = vec![pointer(&mut x_at), pointer(&mut y_at)];
    args.extend(more.iter_mut().map(pointer));
    run.launch(blocks as u32, block as u32, shared, &mut args)?;
    Ok(y)
}

fn barrier(run: &Run) -> cuda::Result<bool> {
    let x = counted(3 * THREADS);
    let sums: Vec<f32> = x.chunks(THREADS).map(|x| x.iter().sum()).collect();
    Ok(x_to_y(run, &x, 3, [3, THREADS, 16], &mut [])? == sums)
}

fn syncwarp(run: &Run) -> cuda::Result<bool> {
    let x = counted(32);
    Ok(x_to_y(run, &x, 32, [1, 32, 32 * 4], &mut [])? == x)
}

fn stages(run: &Run) -> cuda::Result<bool> {
    let x = counted(5 * THREADS);
    Ok(x_to_y(run, &x, 5 * THREADS, [1, THREADS, 2 * THREADS * 4], &mut [5])? == x)
}

fn past_the_end(run: &Run) -> cuda::Result<bool> {
    let x = counted(3 * THREADS);
    let y = x_to_y(run, &x, 4 * THREADS, [1, THREADS, 0], &mut [3 * THREADS as i32])?;
    Ok(y[..3 * THREADS] == x)
}

fn shared_overrun(run: &Run) -> cuda::Result<bool> {
    let x = counted(THREADS);
    Ok(x_to_y(run, &x, THREADS, [1, THREADS, THREADS * 4], &mut [])? == x)
}

fn unaligned(run: &Run) -> cuda::Result<bool> {
    let x = counted(4 * THREADS);
    Ok(x_to_y(run, &x, 4 * THREADS, [1, THREADS, 0], &mut [4 * THREADS as i32])? == x)
}

fn blocks_add(run: &Run) -> cuda::Result<bool> {
    let mut total = 0_u32;
    let mut at = &raw mut total;
    run.launch(7, 32, 0, &mut [pointer(&mut at)])?;
    Ok(total == 7)
}

fn last_block(run: &Run) -> cuda::Result<bool> {
    let x = counted(7);
    let (mut parts, mut count, mut total) = ([f32::NAN; 7], 0_u32, f32::NAN);
    let (mut x_at, mut parts_at) = (x.as_ptr(), parts.as_mut_ptr());
    let (mut count_at, mut total_at) = (&raw mut count, &raw mut total);
    let args =
        &mut [pointer(&mut x_at), pointer(&mut parts_at), pointer(&mut count_at), pointer(&mut total_at)];
    run.launch(7, 32, 0, args)?;
    Ok(total == 28.0)
}

fn divergent_barrier(run: &Run) -> cuda::Result<bool> {
    let x = counted(THREADS);
    Ok(x_to_y(run, &x, THREADS, [1, THREADS, 0], &mut [])? == x)
}

fn divergent_shuffle(run: &Run) -> cuda::Result<bool> {
    let x = counted(32);
    let exchanged: Vec<f32> = (0..32).map(|i| x[i ^ 1]).collect();
    Ok(x_to_y(run, &x, 32, [1, 32, 0], &mut [])? == exchanged)
}

const TILE: usize = 64;

/// Small integers, so that sums of products are exact.
fn tiles(count: usize, seed: usize) -> Vec<bf16> {
    (0..count * TILE * TILE).map(|i| bf16::from_f32(((i * 7919 + i / 64 + seed) % 13) as f32 - 6.0)).collect()
}

/// Sum over the tiles of a * b^T.
fn sum_of_products(a: &[bf16], b: &[bf16]) -> Vec<f32> {
    let mut c = vec![0.0; TILE * TILE];
    for (a, b) in a.chunks(TILE * TILE).zip(b.chunks(TILE * TILE)) {
        for (i, c) in c.iter_mut().enumerate() {
            let (a, b) = (&a[i / TILE * TILE..][..TILE], &b[i % TILE * TILE..][..TILE]);
            *c += a.iter().zip(b).map(|(a, b)| a.to_f32() * b.to_f32()).sum::<f32>();
        }
    }
    c
}

fn product(run: &Run) -> cuda::Result<bool> {
    let (a, b) = (tiles(1, 0), tiles(1, 5));
    let mut c = vec![f32::NAN; TILE * TILE];
    let (mut a_at, mut b_at, mut c_at) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    let args = &mut [pointer(&mut a_at), pointer(&mut b_at), pointer(&mut c_at)];
    run.launch(1, THREADS as u32, 2 * TILE * TILE * 2, args)?;
    Ok(c == sum_of_products(&a, &b))
}

/// A tensor at an address that is a multiple of 16, as maps want it.
fn aligned(tiles: &[bf16]) -> Vec<u128> {
    bytemuck::cast_slice(tiles)
        .chunks_exact(16)
        .map(|c: &[u8]| u128::from_ne_bytes(c.try_into().unwrap()))
        .collect()
}

fn ring(run: &Run) -> cuda::Result<bool> {
    let (a, b) = (tiles(7, 0), tiles(7, 5));
    let (a_there, b_there) = (aligned(&a), aligned(&b));
    let map = |there: &[u128]| TensorMap::new(there, 3, [TILE, TILE, 7], TILE, [TILE, TILE, 1], true);
    let (mut a_map, mut b_map) = (map(&a_there), map(&b_there));
    let mut c = vec![f32::NAN; TILE * TILE];
    let (mut c_at, mut count) = (c.as_mut_ptr(), 7_i32);
    let args = &mut [pointer(&mut a_map), pointer(&mut b_map), pointer(&mut c_at), pointer(&mut count)];
    run.launch(1, THREADS as u32 + 32, 4 * TILE * TILE * 2 + 1024, args)?;
    Ok(c == sum_of_products(&a, &b))
}

/// The tiles of the first and second warpgroup by their turns.
fn turns(run: &Run) -> cuda::Result<bool> {
    const TURN: usize = 3;
    let (a, b) = (tiles(7, 0), tiles(7, 5));
    let (a_there, b_there) = (aligned(&a), aligned(&b));
    let map = |there: &[u128]| TensorMap::new(there, 3, [TILE, TILE, 7], TILE, [TILE, TILE, 1], true);
    let (mut a_map, mut b_map) = (map(&a_there), map(&b_there));
    let mut c = vec![f32::NAN; 2 * TILE * TILE];
    let (mut c_at, mut count) = (c.as_mut_ptr(), 7_i32);
    let args = &mut [pointer(&mut a_map), pointer(&mut b_map), pointer(&mut c_at), pointer(&mut count)];
    run.launch(1, 2 * THREADS as u32 + 32, 4 * TILE * TILE * 2 + 1024, args)?;
    let of = |which: usize, tiles: &[bf16]| -> Vec<bf16> {
        let turns = tiles.chunks(TURN * TILE * TILE).skip(which).step_by(2);
        turns.flatten().copied().collect()
    };
    Ok(c.into_iter().eq((0..2).flat_map(|which| sum_of_products(&of(which, &a), &of(which, &b)))))
}

fn cluster(run: &Run) -> cuda::Result<bool> {
    const COUNT: usize = 7;
    let (a, b) = (tiles(COUNT, 0), tiles(2 * COUNT, 5));
    let (a_there, b_there) = (aligned(&a), aligned(&b));
    let map = |there: &[u128], tiles: usize, rows: usize| {
        TensorMap::new(there, 2, [TILE, tiles * TILE, 1], TILE, [TILE, rows, 1], true)
    };
    let (mut a_map, mut b_map) = (map(&a_there, COUNT, TILE / 2), map(&b_there, 2 * COUNT, TILE));
    let mut c = vec![f32::NAN; 2 * TILE * TILE];
    let (mut c_at, mut count) = (c.as_mut_ptr(), COUNT as i32);
    let args = &mut [pointer(&mut a_map), pointer(&mut b_map), pointer(&mut c_at), pointer(&mut count)];
    run.launch(2, THREADS as u32 + 32, 4 * TILE * TILE * 2 + 1024, args)?;
    let sums = b.chunks(b.len() / 2).flat_map(|b| sum_of_products(&a, b));
    Ok(c.into_iter().eq(sums))
}

fn store(run: &Run) -> cuda::Result<bool> {
    let x = aligned(&tiles(3, 0));
    let (mut y, mut z) = (vec![0_u128; x.len()], vec![0_u128; x.len() / 3]);
    let mut map = TensorMap::new(&y, 3, [TILE, 3 * TILE, 1], TILE, [TILE, TILE, 1], true);
    let (mut x_at, mut y_at, mut z_at) = (x.as_ptr(), y.as_mut_ptr(), z.as_mut_ptr());
    let mut count = 3_i32;
    let args = &mut [
        pointer(&mut map),
        pointer(&mut x_at),
        pointer(&mut y_at),
        pointer(&mut z_at),
        pointer(&mut count),
    ];
    run.launch(1, THREADS as u32, TILE * TILE * 2, args)?;
    Ok(y == x && z == x[2 * x.len() / 3..])
}

/// Runs one of the kernels, and panics with what is wrong.
fn check(planted: &Planted, schedule: Schedule, bug: i32) {
    let run = Run { emulator: Emulator::new(schedule), kernel: planted.kernel, bug };
    match (planted.run)(&run) {
        Ok(true) => {}
        Ok(false) => panic!("{}: {WRONG}", planted.kernel),
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn emulated_kernels_pass_without_their_mistakes() {
    for planted in &PLANTED {
        for schedule in SCHEDULES {
            check(planted, schedule, 0);
        }
    }
}

/// Which mistake the process that runs `emulated_mistake` is to make, and under which schedule: two numbers.
const CHOICE: &str = "GYRUS_PLANTED";

/// Not a test of its own: what `emulated_mistakes_are_found` runs in processes of their own.
#[test]
#[ignore = "fails, as it should"]
fn emulated_mistake() {
    let choice = env::var(CHOICE).unwrap();
    let (planted, schedule) = choice.split_once(' ').unwrap();
    let planted = &PLANTED[planted.parse::<usize>().unwrap()];
    check(planted, SCHEDULES[schedule.parse::<usize>().unwrap()], planted.bug);
}

/// Whether a process that makes mistake `planted` fails under this schedule, and what it says.
fn in_a_process(planted: usize, schedule: usize) -> (bool, String) {
    let mut process = Command::new(env::current_exe().unwrap());
    process.args(["--ignored", "--exact", "emulated_mistake", "--nocapture"]);
    process.env(CHOICE, format!("{planted} {schedule}"));
    let output = process.output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (!output.status.success(), said.concat())
}

#[test]
fn emulated_mistakes_are_found() {
    let build = env!("GYRUS_SANITIZE");
    let mut missed = Vec::new();
    for (i, planted) in PLANTED.iter().enumerate() {
        let Some((_, says)) = planted.found_by.iter().find(|(by, _)| *by == build) else { continue };
        let found = |schedule| {
            let (failed, said) = in_a_process(i, schedule);
            println!("{} {} {schedule}: {failed}", planted.kernel, planted.bug);
            let named =
                said.contains(planted.kernel) || *says == RACE_OF_THE_COPY_ENGINE && said.contains(RACE);
            failed && said.contains(says) && named
        };
        if !(0..SCHEDULES.len()).any(found) {
            missed.push(format!("{}, bug {}", planted.kernel, planted.bug));
        }
    }
    assert!(missed.is_empty(), "not found by the build `{build}`: {missed:#?}");
}
