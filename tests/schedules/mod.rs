//! The schedules that find what one of them can: in order and late, by priorities and early, at random.
use gyrus::machine::emulator::{Async, Schedule};

pub(crate) const SCHEDULES: [Schedule; 3] = [
    Schedule { seed: 0, mode: Async::Late, workers: 1 },
    Schedule { seed: 2, mode: Async::Early, workers: 1 },
    Schedule { seed: 3, mode: Async::Random, workers: 1 },
];
