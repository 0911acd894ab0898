//! What a model is shown of a cache: visits, each with a volume for each of its modalities or none.
use super::session::{Computer, Draw};
use crate::data::{Cache, Member, Scan, Visit};
use crate::machine::cuda;
use crate::machine::philox::{Philox, Purpose};
use crate::ops::masking::TokenState;
use crate::tape::{Tape, Tensor};
use half::slice::HalfFloatSliceExt;

/// A volume `[x][y][z]` of each modality of a model, or none.
pub type Volumes = Vec<Option<Vec<f32>>>;

/// The visits of a cache, as a model of some modalities sees them. Of a cache of one modality each row is a visit.
pub struct Samples<'a> {
    /// Where their volumes lie.
    pub cache: &'a Cache,
    visits: Vec<Visit>,
}

impl<'a> Samples<'a> {
    /// Those of `cache` for a model of `modalities`; visits that have none of them are left out. `Err` says so if none
    /// is left.
    pub fn of(cache: &'a Cache, modalities: &[String]) -> Result<Self, String> {
        let stored = cache.modalities();
        let place = |m: &String| stored.iter().position(|s| s == m);
        let places: Vec<Option<usize>> = modalities.iter().map(place).collect();
        let seen = |visit: Visit| {
            let rows: Vec<Option<usize>> = places.iter().map(|p| visit.rows[(*p)?]).collect();
            rows.iter().any(Option::is_some).then_some(Visit { rows, ..visit })
        };
        let visits: Vec<Visit> = cache.visits().into_iter().filter_map(seen).collect();
        if visits.is_empty() {
            let (model, here) = (modalities.join(", "), stored.join(", "));
            return Err(format!("the model sees {model}, but the cache has only {here}"));
        }
        Ok(Samples { cache, visits })
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.visits.len()
    }
    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.visits.is_empty()
    }
    /// For each modality the row of its volume in the cache.
    pub fn rows(&self, number: usize) -> &[Option<usize>] {
        &self.visits[number].rows
    }
    /// Which modalities there are.
    pub fn present(&self, number: usize) -> Vec<bool> {
        self.rows(number).iter().map(Option::is_some).collect()
    }
    /// Rows of the cache for a volume of each modality of each of `numbers`; where one is missing, another's, which
    /// nobody looks at.
    pub fn rows_of(&self, numbers: &[usize]) -> Vec<usize> {
        let of = |&number: &usize| {
            let any = self.first(number);
            self.rows(number).iter().map(move |row| row.unwrap_or(any))
        };
        numbers.iter().flat_map(of).collect()
    }
    /// The volumes of a sample.
    pub fn volumes_of(&self, number: usize) -> Volumes {
        let volume = |row: &Option<usize>| row.map(|row| self.cache.volume(row).to_f32_vec());
        self.rows(number).iter().map(volume).collect()
    }
    /// The first volume of a sample, by its row.
    pub fn first(&self, number: usize) -> usize {
        self.rows(number).iter().flatten().copied().next().expect("a sample has a volume")
    }
    /// The first scan of a sample, which stands for it in tables and messages.
    pub fn scan(&self, number: usize) -> &'a Scan {
        &self.cache.scans()[self.first(number)].scan
    }
    /// The age at a sample's visit.
    pub fn age(&self, number: usize) -> Option<f32> {
        self.rows(number).iter().flatten().find_map(|&row| self.cache.scans()[row].scan.age)
    }
    /// Samples as members of a split.
    pub fn members(&self, numbers: &[usize]) -> Vec<Member<'a>> {
        let member = |&row: &usize| Member { row, subject: &self.scan(row).subject, age: self.age(row) };
        numbers.iter().map(member).collect()
    }
    /// BLAKE3 of the images of `numbers` in this order, in hexadecimal.
    pub fn hash(&self, numbers: &[usize]) -> String {
        let mut hasher = blake3::Hasher::new();
        for row in numbers.iter().flat_map(|&n| self.rows(n).iter().flatten()) {
            hasher.update(self.cache.scans()[*row].measured.blake3.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
    /// The subjects of `numbers`, each once, sorted.
    pub fn subjects(&self, numbers: &[usize]) -> Vec<String> {
        let mut subjects: Vec<String> = numbers.iter().map(|&n| self.scan(n).subject.clone()).collect();
        subjects.sort();
        subjects.dedup();
        subjects
    }
}

/// Which modalities a model is shown, for each sample of a batch: data of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// Their [`TokenState`]s, `[B, M]`.
    pub states: Tensor,
}

impl Shown {
    /// Records them.
    pub(super) fn record(t: &mut Tape, batch: usize, modalities: usize) -> Self {
        Shown { states: t.indices(&[batch, modalities]) }
    }
    /// Fills them in for samples `numbers`.
    pub(super) fn fill(
        self,
        machine: &mut Computer,
        samples: &Samples<'_>,
        numbers: &[usize],
        dropout: &Dropout,
        draw: Draw,
    ) -> cuda::Result<()> {
        let state = |(present, dropped)| match (present, dropped) {
            (false, _) => TokenState::Absent as u32,
            (true, true) => TokenState::Hidden as u32,
            (true, false) => TokenState::Free as u32,
        };
        let of = |(i, &number): (usize, &usize)| {
            let present = samples.present(number);
            let dropped = dropout.draw(&present, draw, i);
            present.into_iter().zip(dropped).map(state)
        };
        let states: Vec<u32> = numbers.iter().enumerate().flat_map(of).collect();
        machine.write_indices(self.states, &states)
    }
}

/// Modalities left out at random, so that a model gets used to any that there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout {
    /// The probability for each modality of a sample.
    pub rate: f64,
    pub seed: u64,
}

impl Dropout {
    /// Which of the `present` modalities of sample `i` of a batch are left out: never all, and none to watch.
    pub(super) fn draw(&self, present: &[bool], draw: Draw, i: usize) -> Vec<bool> {
        let Draw::Learn(step) = draw else { return vec![false; present.len()] };
        let mut random = Philox::new(self.seed, Purpose::Modality, step, i as u32);
        let mut dropped: Vec<bool> =
            present.iter().map(|&here| f64::from(random.uniform()) < self.rate && here).collect();
        if present.iter().zip(&dropped).all(|(&here, &gone)| gone || !here) {
            let here: Vec<usize> = (0..present.len()).filter(|&m| present[m]).collect();
            dropped[here[random.below(here.len())]] = false;
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_leaves_one_modality_and_follows_its_rate() {
        let dropout = Dropout { rate: 0.5, seed: 3 };
        let present = [true, false, true];
        let mut counts = [0; 4];
        for step in 0..4000 {
            let dropped = dropout.draw(&present, Draw::Learn(step), 1);
            assert!(!dropped[1], "it was not there");
            assert!(!dropped[0] || !dropped[2], "one is left");
            counts[usize::from(dropped[0]) + 2 * usize::from(dropped[2])] += 1;
        }
        // Neither 1/4; both would be 1/4 and is dealt to the two.
        assert!((counts[0] - 1000_i32).abs() < 150, "{counts:?}");
        assert!((counts[1] - counts[2]).abs() < 250, "{counts:?}");
        assert_eq!(dropout.draw(&present, Draw::Watch, 1), [false; 3]);
    }
}
