//! A split in a file: which part each subject is in, for every cache and every run that is to keep to it.
use super::{
    Error,
    persons::Persons,
    scan::Scan,
    split::{Member, Split},
    table::{Ages, Table},
};
use crate::{
    file::write_bytes,
    machine::philox::{Philox, Purpose},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    str::FromStr,
};

/// How subjects are to be divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Parts {
    /// Parts of nearly equal size, each to be held out once.
    Folds(usize),
    /// This share of the subjects is held out.
    Holdout(f64),
}

impl FromStr for Parts {
    type Err = String;
    fn from_str(text: &str) -> Result<Parts, String> {
        let parts = match text.split_once(':') {
            Some(("folds", k)) => k.parse().ok().filter(|&k| k >= 2).map(Parts::Folds),
            Some(("holdout", share)) => {
                share.parse().ok().filter(|&f: &f64| f > 0.0 && f < 1.0).map(Parts::Holdout)
            }
            _ => None,
        };
        parts.ok_or_else(|| "give folds:K with K of 2 or more, or holdout:F with F between 0 and 1".into())
    }
}

/// The part of the subjects that is learnt from, watched while training, and tested, where parts are no folds.
pub const TRAIN: &str = "train";
/// See [`TRAIN`].
pub const VALIDATION: &str = "validation";
/// See [`TRAIN`].
pub const TEST: &str = "test";

/// Which part each subject is in.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Names of the parts, sorted: folds ("fold-1" ..), or some of [`TRAIN`], [`VALIDATION`] and [`TEST`].
    parts: Vec<String>,
    /// The number of each subject's part.
    subjects: BTreeMap<String, usize>,
}

/// All that one person's scans say.
#[derive(Default)]
struct Person<'a> {
    names: BTreeSet<&'a str>,
    age: Option<f32>,
    sex: String,
    site: &'a str,
}

impl Assignment {
    /// Divides the people of `scans`, who are one over all sessions and modalities and over the names that `persons`
    /// has for them in `dataset`. Parts are alike in site, sex and age, as far as these are known.
    ///
    /// # Errors
    /// Fewer people than parts, or a part that would be empty.
    pub fn new<'a>(
        scans: impl IntoIterator<Item = &'a Scan>,
        dataset: Option<&str>,
        persons: &Persons,
        parts: Parts,
        seed: u64,
    ) -> Result<Assignment, Error> {
        let mut people: BTreeMap<String, Person<'a>> = BTreeMap::new();
        for scan in scans {
            let person = people.entry(persons.of(dataset, &scan.subject)).or_default();
            person.names.insert(&scan.subject);
            person.age = person.age.or(scan.age);
            if let (true, Some(sex)) = (person.sex.is_empty(), scan.sex) {
                person.sex = sex.to_string();
            }
            if person.site.is_empty() {
                person.site = scan.site.as_deref().unwrap_or_default();
            }
        }
        let mut people: Vec<Person<'_>> = people.into_values().collect();
        // Apart from the two draws of `Split`, which have the same purpose.
        let mut r = Philox::new(seed, Purpose::Split, 2, 0);
        r.shuffle(&mut people);
        people.sort_by(|a, b| {
            let age = |p: &Person<'_>| p.age.unwrap_or(f32::INFINITY);
            (a.site, &a.sex).cmp(&(b.site, &b.sex)).then(age(a).total_cmp(&age(b)))
        });
        let (names, part_of) = match parts {
            Parts::Folds(k) => {
                if people.len() < k {
                    let advice = "ask for at most as many folds as there are people";
                    return Err(Error::Split {
                        subjects: people.len(),
                        how: format!("into {k} folds"),
                        advice,
                    });
                }
                ((1..=k).map(|i| format!("fold-{i}")).collect(), deal(&people, k, &mut r))
            }
            Parts::Holdout(share) => {
                let tests = (people.len() as f64 * share).round() as usize;
                if tests == 0 || tests >= people.len() {
                    let how = format!("with a share of {share} held out");
                    let advice = "choose a share that leaves people on both sides";
                    return Err(Error::Split { subjects: people.len(), how, advice });
                }
                let mut part_of = vec![1; people.len()];
                // One of each of as many stretches of the order by site, sex and age.
                for stretch in 0..tests {
                    let [from, to] = [stretch, stretch + 1].map(|s| s * people.len() / tests);
                    part_of[from + r.below(to - from)] = 0;
                }
                (vec![TEST.to_owned(), TRAIN.to_owned()], part_of)
            }
        };
        let named = |(person, part): (&Person<'a>, usize)| {
            person.names.iter().map(move |name| ((*name).to_owned(), part)).collect::<Vec<_>>()
        };
        let subjects = people.iter().zip(part_of).flat_map(named).collect();
        Ok(Assignment { parts: names, subjects })
    }

    /// `tested` subjects in part [`TEST`], `learned` from in part [`TRAIN`].
    pub fn test(tested: Vec<String>, learned: Vec<String>) -> Assignment {
        let part =
            |subjects: Vec<String>, part: usize| subjects.into_iter().map(move |subject| (subject, part));
        let subjects = part(tested, 0).chain(part(learned, 1)).collect();
        Assignment { parts: vec![TEST.to_owned(), TRAIN.to_owned()], subjects }
    }

    /// Reads what [`Assignment::write`] wrote, or a table of one's own with the columns `subject` and `part`.
    ///
    /// # Errors
    /// A table that cannot be read; parts of other names; subjects that are in two parts, by name.
    pub fn read(path: &Path) -> Result<Assignment, Error> {
        let table = Table::read(path, Ages::Kept)?;
        table.require(&["subject", "part"])?;
        let mut part_of = BTreeMap::new();
        let mut twice = BTreeSet::new();
        for row in table.rows() {
            let cell = |column, expected| row.text(column).ok_or_else(|| row.refuse(column, expected));
            let subject = cell("subject", "the name of a subject")?.to_owned();
            let expected = "train, validation, test, or fold-1, fold-2 and so on";
            let part = cell("part", expected)?.to_owned();
            let fold = part.strip_prefix("fold-").and_then(|k| k.parse().ok()).filter(|&k: &usize| k > 0);
            if fold.is_none() && ![TRAIN, VALIDATION, TEST].contains(&part.as_str()) {
                return Err(row.refuse("part", expected));
            }
            let key = (fold.unwrap_or(0), part);
            if part_of.insert(subject.clone(), key.clone()).is_some_and(|other| other != key) {
                twice.insert(subject);
            }
        }
        let refuse = |fault| Err(Error::Assignment { path: path.to_owned(), fault });
        if !twice.is_empty() {
            return refuse(format!("in two parts: {}", several(&twice)));
        }
        let keys: BTreeSet<(usize, String)> = part_of.values().cloned().collect();
        let folds = keys.iter().filter(|(fold, _)| *fold > 0).count();
        // Folds are counted from 1, so the last one's number says how many there are.
        let complete = keys.last().is_some_and(|(last, _)| *last == folds);
        if keys.len() < 2 || !complete || (folds > 0 && folds < keys.len()) {
            return refuse(
                "needs parts train and test, or folds 1 to K with K of 2 or more, not both".into(),
            );
        }
        let parts: Vec<String> = keys.iter().map(|(_, part)| part.clone()).collect();
        let number = |key: &(usize, String)| keys.iter().position(|k| k == key).expect("made of them");
        let subjects = part_of.iter().map(|(subject, key)| (subject.clone(), number(key))).collect();
        Ok(Assignment { parts, subjects })
    }

    /// Names of the parts.
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// The part of `subject`.
    pub fn part_of(&self, subject: &str) -> Option<&str> {
        self.subjects.get(subject).map(|&part| self.parts[part].as_str())
    }

    /// Whether the parts are folds, each to be held out once.
    pub fn is_folds(&self) -> bool {
        self.parts.iter().all(|part| part.starts_with("fold-"))
    }

    /// The subjects and their parts as a table.
    fn table(&self) -> String {
        let line = |(subject, &part): (&String, &usize)| format!("{subject}\t{}\n", self.parts[part]);
        std::iter::once("subject\tpart\n".to_owned()).chain(self.subjects.iter().map(line)).collect()
    }

    /// BLAKE3 of the table with sorted subjects, in hexadecimal: the same for the same parts, whatever cache they are
    /// applied to.
    pub fn hash(&self) -> String {
        blake3::hash(self.table().as_bytes()).to_hex().to_string()
    }

    /// Writes the subjects and their parts as a tab-separated table.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        Ok(write_bytes(path, self.table().as_bytes())?)
    }

    /// The split of `members` that this asks for; `path` is where it was read. Its hash is that of the file.
    ///
    /// # Errors
    /// Subjects that the file does not know, by name; a part without members.
    pub fn split(&self, members: &[Member<'_>], path: &Path) -> Result<Split, Error> {
        let refuse = |fault| Err(Error::Assignment { path: path.to_owned(), fault });
        let unknown: BTreeSet<String> = members
            .iter()
            .filter(|m| !self.subjects.contains_key(m.subject))
            .map(|m| m.subject.to_owned())
            .collect();
        if !unknown.is_empty() {
            return refuse(format!("does not say the part of {}", several(&unknown)));
        }
        let part_of: Vec<usize> = members.iter().map(|m| self.subjects[m.subject]).collect();
        if let Some(empty) = (0..self.parts.len()).find(|part| !part_of.contains(part)) {
            return refuse(format!("none of the scans is in part {}", self.parts[empty]));
        }
        Ok(Split::given(members, self.parts.clone(), &part_of, self.hash()))
    }
}

/// Numbers of folds: within each site and sex people by age are dealt in blocks of `k`, each block in random order;
/// those left over of all are dealt likewise, by age.
fn deal(people: &[Person<'_>], k: usize, r: &mut Philox) -> Vec<usize> {
    let mut strata: Vec<Vec<usize>> = Vec::new();
    let mut place = HashMap::new();
    for (i, person) in people.iter().enumerate() {
        let stratum = *place.entry((person.site, &person.sex)).or_insert_with(|| {
            strata.push(Vec::new());
            strata.len() - 1
        });
        strata[stratum].push(i);
    }
    let mut rest = Vec::new();
    for stratum in &mut strata {
        for _ in 0..stratum.len() % k {
            rest.push(stratum.remove(r.below(stratum.len())));
        }
    }
    let age = |&i: &usize| people[i].age.unwrap_or(f32::INFINITY);
    rest.sort_by(|a, b| age(a).total_cmp(&age(b)));
    let mut part_of = vec![0; people.len()];
    let mut order: Vec<usize> = (0..k).collect();
    for block in strata.iter().chain([&rest]).flat_map(|stratum| stratum.chunks(k)) {
        r.shuffle(&mut order);
        block.iter().zip(&order).for_each(|(&i, &part)| part_of[i] = part);
    }
    part_of
}

/// Names for a message: the first ten.
pub(super) fn several(names: &BTreeSet<String>) -> String {
    let shown: Vec<&str> = names.iter().take(10).map(String::as_str).collect();
    let more = names.len() - shown.len();
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

#[cfg(test)]
#[path = "assignment_tests.rs"]
mod tests;
