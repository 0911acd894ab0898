//! The scans of a dataset that are wanted, where each comes to lie and how it gets there: one way, for a cache and for
//! what a model is shown without one.
use super::{
    Error,
    companion::{self, Fixed},
    index::Reference,
    prepare_scan,
    scan::{Found, Scan},
    visit::{Place, T1W, Visit, places, visits},
};
use crate::image::{Alignment, Prepared, Preprocessing};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Which scans are wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Modalities, in the order in which [`Cache::visits`](super::Cache::visits) lists them.
    pub modalities: Vec<String>,
    /// The `label` of the masks of the reference region of PET; a PET scan without such a mask is left out. Without it
    /// masks of the label "reference" are taken where there are any, and elsewhere the brain.
    pub reference: Option<String>,
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted { modalities: vec![T1W.to_owned()], reference: None }
    }
}

impl Wanted {
    fn check(&self) -> Result<(), Error> {
        let given = &self.modalities;
        let refuse = |reason| Err(Error::Modalities { given: given.clone(), reason });
        if given.is_empty() {
            return refuse("name one at least");
        }
        if (1..given.len()).any(|i| given[..i].contains(&given[i])) {
            return refuse("each only once");
        }
        Ok(())
    }
}

/// The wanted scans of a dataset, and the T1w scans that they are brought to.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub(super) scans: Vec<Scan>,
    pub(super) places: Vec<Place>,
    pub(super) wanted: Wanted,
    unsaid: Vec<PathBuf>,
}

/// What was seen of one subject.
#[derive(Debug)]
pub struct Seen {
    /// With the numbers of scans for rows.
    pub visits: Vec<Visit>,
    /// The prepared scans, by number.
    pub prepared: BTreeMap<usize, Prepared>,
    /// Those that could not be prepared.
    pub failed: Vec<(usize, Error)>,
}

impl Dataset {
    /// Finds the scans of the dataset `path` that are `wanted`.
    ///
    /// # Errors
    /// A dataset without such scans; a table that lacks a column or holds an impossible value; unreadable folders.
    pub fn find(path: &Path, wanted: &Wanted) -> Result<Dataset, Error> {
        wanted.check()?;
        let Found { scans, unsaid } = companion::scans_of(path, &wanted.modalities)?;
        let places = places(&scans, &wanted.modalities);
        Ok(Dataset { scans, places, wanted: wanted.clone(), unsaid })
    }

    /// A scan, by its number.
    pub fn scan(&self, number: usize) -> &Scan {
        &self.scans[number]
    }

    /// Images left out because nothing says their modality, though it is said of others.
    pub fn unsaid(&self) -> &[PathBuf] {
        &self.unsaid
    }

    /// The numbers of the scans that are wanted: of other modalities a T1w may be needed, but not asked for.
    pub fn taken(&self) -> impl Iterator<Item = usize> {
        let wanted = &self.wanted.modalities;
        let all = wanted == &[T1W];
        (0..self.scans.len()).filter(move |&i| all || wanted.contains(&self.scans[i].modality))
    }

    /// Those of `numbers` that need the same T1w, together, so that it is read once.
    pub(super) fn groups(&self, numbers: impl Iterator<Item = usize>) -> Vec<Vec<usize>> {
        let mut groups = BTreeMap::<usize, Vec<usize>>::new();
        for i in numbers {
            let with = if let Place::Onto { anchor, .. } = self.places[i] { anchor } else { i };
            groups.entry(with).or_default().push(i);
        }
        groups.into_values().collect()
    }

    /// Prepares scan `i`; `fixed` keeps the T1w that it is brought to for the next.
    pub(super) fn prepare(
        &self,
        i: usize,
        settings: &Preprocessing,
        fixed: &mut Option<Fixed>,
    ) -> Result<(Prepared, Option<Alignment>, Option<Reference>), Error> {
        let scan = &self.scans[i];
        match self.places[i] {
            Place::Own => Ok((prepare_scan(scan, settings)?, None, None)),
            Place::Nowhere => Err(Error::NoT1w { path: scan.path.clone(), subject: scan.subject.clone() }),
            Place::Onto { anchor, .. } => {
                let anchor = &self.scans[anchor];
                let fixed = match fixed {
                    Some(fixed) => fixed,
                    none => none.insert(Fixed::read(anchor, settings).map_err(|source| Error::Anchor {
                        path: scan.path.clone(),
                        source: Box::new(source),
                    })?),
                };
                companion::prepare_onto(scan, anchor, fixed, &self.wanted, settings)
            }
        }
    }

    /// Prepares the scans `numbers` of one subject, and says which belong together: the visits that a cache of them would
    /// have.
    pub fn see(&self, numbers: &[usize], settings: &Preprocessing) -> Seen {
        let (mut prepared, mut failed) = (BTreeMap::new(), Vec::new());
        for group in self.groups(numbers.iter().copied()) {
            let mut fixed = None;
            for i in group {
                match self.prepare(i, settings, &mut fixed) {
                    Ok((volume, ..)) => {
                        prepared.insert(i, volume);
                    }
                    Err(error) => failed.push((i, error)),
                }
            }
        }
        let session = |i: usize| match self.places[i] {
            Place::Onto { anchor, .. } => self.scans[anchor].session.as_deref(),
            _ => self.scans[i].session.as_deref(),
        };
        let ready = prepared.keys().map(|&i| (i, &self.scans[i], session(i)));
        Seen { visits: visits(ready, &self.wanted.modalities), prepared, failed }
    }
}
