//! Subject-disjoint splits, balanced by age and fixed by their seed.
//!
//! All scans of one subject, over sessions, runs and modalities, go into one part: a model that has seen a person
//! recognises that person, which looks like skill on a held-out scan and is none.
use super::Error;
use crate::file::write_bytes;
use crate::machine::philox::{Philox, Purpose};
use std::{collections::HashMap, path::Path};

/// One scan to be put into a part.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Its row in the cache.
    pub row: usize,
    /// Whose scan it is.
    pub subject: &'a str,
    /// Age in years, where known.
    pub age: Option<f32>,
}

/// Which scans are in which part.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Names of the parts: "fold-1" and so on, or "train" and "test".
    parts: Vec<String>,
    /// (subject, row, index of the part), by row.
    entries: Vec<(String, usize, usize)>,
    /// The hash of the file that it follows, if it was given by one.
    given: Option<String>,
}

/// A subject with its age and the positions of its scans.
struct Group {
    age: f32,
    members: Vec<usize>,
}

impl Split {
    /// `k` parts of nearly equal size: subjects sorted by age are dealt in blocks of `k`, each block in random
    /// order, so every part spans all ages.
    ///
    /// # Errors
    /// Fewer than two parts, or fewer subjects than parts.
    pub fn folds(members: &[Member<'_>], k: usize, seed: u64) -> Result<Split, Error> {
        let mut r = Philox::new(seed, Purpose::Split, 0, 0);
        let groups = by_age(members, &mut r);
        if k < 2 || groups.len() < k {
            let how = format!("into {k} folds");
            let advice = "ask for at least 2 folds and at most as many as there are subjects";
            return Err(Error::Split { subjects: groups.len(), how, advice });
        }
        let mut part_of = vec![0; members.len()];
        let mut order: Vec<usize> = (0..k).collect();
        for block in groups.chunks(k) {
            r.shuffle(&mut order);
            for (group, &part) in block.iter().zip(&order) {
                group.members.iter().for_each(|&m| part_of[m] = part);
            }
        }
        Ok(Split::new(members, (1..=k).map(|i| format!("fold-{i}")).collect(), &part_of))
    }

    /// Parts "train" and "test", with `fraction` of the subjects in "test": one drawn from each of as many
    /// equal ranges of age.
    ///
    /// # Errors
    /// A fraction that leaves one of the parts empty.
    pub fn holdout(members: &[Member<'_>], fraction: f64, seed: u64) -> Result<Split, Error> {
        let mut r = Philox::new(seed, Purpose::Split, 1, 0);
        let groups = by_age(members, &mut r);
        let tests = (groups.len() as f64 * fraction).round() as usize;
        if tests == 0 || tests >= groups.len() {
            let how = format!("with a fraction of {fraction} held out");
            let advice = "choose a fraction that leaves subjects on both sides";
            return Err(Error::Split { subjects: groups.len(), how, advice });
        }
        let mut part_of = vec![0; members.len()];
        for stratum in 0..tests {
            let [from, to] = [stratum, stratum + 1].map(|s| s * groups.len() / tests);
            let drawn = &groups[from + r.below(to - from)];
            drawn.members.iter().for_each(|&m| part_of[m] = 1);
        }
        Ok(Split::new(members, vec!["train".into(), "test".into()], &part_of))
    }

    fn new(members: &[Member<'_>], parts: Vec<String>, part_of: &[usize]) -> Split {
        let entry = |(m, &part): (&Member<'_>, &usize)| (m.subject.to_owned(), m.row, part);
        let mut entries: Vec<_> = members.iter().zip(part_of).map(entry).collect();
        entries.sort_by_key(|(_, row, _)| *row);
        Split { parts, entries, given: None }
    }

    /// The split that puts each member into its part of `part_of`, as a file with this `hash` asks.
    pub(super) fn given(
        members: &[Member<'_>],
        parts: Vec<String>,
        part_of: &[usize],
        hash: String,
    ) -> Split {
        Split { given: Some(hash), ..Split::new(members, parts, part_of) }
    }

    /// Names of the parts.
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// Rows in the part of this name, in ascending order; `None` if there is no such part.
    pub fn named(&self, part: &str) -> Option<Vec<usize>> {
        self.parts.iter().position(|p| p == part).map(|part| self.rows(part))
    }

    /// Rows in part number `part`, in ascending order.
    pub fn rows(&self, part: usize) -> Vec<usize> {
        self.entries.iter().filter(|e| e.2 == part).map(|e| e.1).collect()
    }

    /// Rows in every other part than number `part`, in ascending order.
    pub fn other_rows(&self, part: usize) -> Vec<usize> {
        self.entries.iter().filter(|e| e.2 != part).map(|e| e.1).collect()
    }

    /// The split as a table: subject, row, part.
    fn table(&self) -> String {
        let line = |(subject, row, part): &(String, usize, usize)| {
            format!("{subject}\t{row}\t{}\n", self.parts[*part])
        };
        std::iter::once("subject\trow\tpart\n".to_owned()).chain(self.entries.iter().map(line)).collect()
    }

    /// BLAKE3 of the table, in hexadecimal: two splits are the same exactly if this is. Of a split that follows a file,
    /// that file's.
    pub fn hash(&self) -> String {
        if let Some(hash) = &self.given {
            return hash.clone();
        }
        blake3::hash(self.table().as_bytes()).to_hex().to_string()
    }

    /// Writes the split as a tab-separated table: subject, row, part.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        Ok(write_bytes(path, self.table().as_bytes())?)
    }
}

/// Subjects by age, in random order where ages are equal; those without an age last. A subject's age is that of
/// its first scan with one.
fn by_age(members: &[Member<'_>], r: &mut Philox) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut index = HashMap::new();
    for (position, member) in members.iter().enumerate() {
        let group = *index.entry(member.subject).or_insert_with(|| {
            groups.push(Group { age: f32::INFINITY, members: Vec::new() });
            groups.len() - 1
        });
        groups[group].members.push(position);
        if groups[group].age.is_infinite() {
            groups[group].age = member.age.unwrap_or(f32::INFINITY);
        }
    }
    r.shuffle(&mut groups);
    groups.sort_by(|a, b| a.age.total_cmp(&b.age));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// `people` subjects, subject i with 1 + i mod 3 scans and, but for every tenth, an age.
    fn cohort(people: usize) -> Vec<(String, Option<f32>)> {
        let scans = |i: usize| {
            let age = (i % 10 != 9).then_some(20.0 + (i * 37 % 61) as f32);
            (0..1 + i % 3).map(move |_| (format!("sub-{i}"), age))
        };
        (0..people).flat_map(scans).collect()
    }

    fn members(cohort: &[(String, Option<f32>)]) -> Vec<Member<'_>> {
        cohort.iter().enumerate().map(|(row, (subject, age))| Member { row, subject, age: *age }).collect()
    }

    fn subjects(cohort: &[(String, Option<f32>)], rows: &[usize]) -> HashSet<String> {
        rows.iter().map(|&r| cohort[r].0.clone()).collect()
    }

    proptest! {
        #[test]
        fn folds_cover_all_scans_and_share_no_subject(people in 5usize..80, k in 2usize..6, seed: u64) {
            let cohort = cohort(people);
            let split = Split::folds(&members(&cohort), k, seed).unwrap();
            let mut rows: Vec<usize> = (0..k).flat_map(|part| split.rows(part)).collect();
            rows.sort();
            prop_assert_eq!(rows, (0..cohort.len()).collect::<Vec<_>>());
            for part in 0..k {
                let (here, there) = (split.rows(part), split.other_rows(part));
                prop_assert!(subjects(&cohort, &here).is_disjoint(&subjects(&cohort, &there)));
                let share = subjects(&cohort, &here).len();
                prop_assert!(share == people / k || share == people / k + 1, "{} of {} in {} folds", share, people, k);
            }
            prop_assert_eq!(&split, &Split::folds(&members(&cohort), k, seed).unwrap());
        }

        #[test]
        fn holdouts_share_no_subject_and_have_the_asked_size(people in 10usize..80, seed: u64) {
            let cohort = cohort(people);
            let split = Split::holdout(&members(&cohort), 0.2, seed).unwrap();
            let (train, test) = (subjects(&cohort, &split.rows(0)), subjects(&cohort, &split.rows(1)));
            prop_assert!(train.is_disjoint(&test));
            prop_assert_eq!(test.len(), (people as f64 * 0.2).round() as usize);
            prop_assert_eq!(train.len() + test.len(), people);
        }
    }

    #[test]
    fn every_fold_has_the_mean_age_of_all() {
        let cohort = cohort(90);
        let mean = |rows: &[usize]| {
            let ages: Vec<f32> = rows.iter().filter_map(|&r| cohort[r].1).collect();
            ages.iter().sum::<f32>() / ages.len() as f32
        };
        let all = mean(&(0..cohort.len()).collect::<Vec<_>>());
        for seed in 0..20 {
            let split = Split::folds(&members(&cohort), 5, seed).unwrap();
            for part in 0..5 {
                let here = mean(&split.rows(part));
                assert!((here - all).abs() < 6.0, "seed {seed}: {here} against {all}");
            }
        }
    }

    #[test]
    fn seeds_and_hashes_differ_together_and_the_table_is_written() {
        let cohort = cohort(30);
        let split = |seed| Split::holdout(&members(&cohort), 0.3, seed).unwrap();
        assert_ne!(split(1).hash(), split(2).hash());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("split.tsv");
        split(1).write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("subject\trow\tpart\nsub-0\t0\t"), "{text}");
        assert!(
            Split::folds(&members(&cohort), 31, 0).is_err() && Split::folds(&members(&cohort), 1, 0).is_err()
        );
        assert!(Split::holdout(&members(&cohort), 0.001, 0).is_err());
    }
}
