//! What a path stands for where datasets, caches and runs are compared.
use super::run_folder;
use crate::{
    data::{self, Cache, Contents, Identities, Persons, Scan},
    train::Checkpoint,
};
use indicatif::ProgressBar;
use rayon::prelude::*;
use std::{
    collections::BTreeSet,
    error::Error,
    path::{Path, PathBuf},
};

/// A dataset, a cache or a run.
pub(super) enum Source {
    Dataset { path: PathBuf, scans: Vec<Scan> },
    Cache { path: PathBuf, cache: Box<Cache> },
    Run { subjects: BTreeSet<String> },
}

impl Source {
    /// Opens what `path` is.
    ///
    /// # Errors
    /// A path that is none of these, or whose files cannot be read.
    pub(super) fn open(path: &Path) -> Result<Source, Box<dyn Error>> {
        let model = path.extension().is_some_and(|e| e == "safetensors");
        if path.join("cache.json").exists() {
            return Ok(Source::Cache { path: path.to_owned(), cache: Box::new(Cache::open(path)?) });
        }
        if model || path.join("model.safetensors").exists() || path.join("fold-1").is_dir() {
            return Ok(Source::Run { subjects: trained_on(path)? });
        }
        Ok(Source::Dataset { path: path.to_owned(), scans: data::all_scans(path)? })
    }

    /// The scans, but of a run, which does not keep them.
    pub(super) fn scans(&self) -> Vec<&Scan> {
        match self {
            Source::Dataset { scans, .. } => scans.iter().collect(),
            Source::Cache { cache, .. } => cache.scans().iter().map(|row| &row.scan).collect(),
            Source::Run { .. } => Vec::new(),
        }
    }

    /// How tables of people call it: by its folder.
    pub(super) fn dataset(&self) -> Option<String> {
        let (Source::Dataset { path, .. } | Source::Cache { path, .. }) = self else { return None };
        let full = path.canonicalize().unwrap_or_else(|_| path.clone());
        full.file_name().map(|name| name.to_string_lossy().into_owned())
    }

    /// How a cache's volumes were made worse, if they were.
    pub(super) fn distortion(&self) -> Option<&serde_json::Value> {
        let Source::Cache { cache, .. } = self else { return None };
        cache.distortion()
    }

    /// The contents of every image, in the order of [`Source::scans`].
    pub(super) fn contents(&self) -> Vec<Contents> {
        match self {
            Source::Dataset { scans, .. } => each(scans, |scan| Contents::of(&scan.path)),
            Source::Cache { cache, .. } => {
                let rows: Vec<usize> = (0..cache.len()).collect();
                each(&rows, |&row| Contents::of_row(cache, row))
            }
            Source::Run { .. } => Vec::new(),
        }
    }

    /// What identifies its scans beside those of `other`.
    pub(super) fn identities(&self, other: &Source, persons: &Persons) -> Identities {
        let dataset = self.dataset();
        let person = |subject: &String| (persons.of(dataset.as_deref(), subject), subject.clone());
        if let Source::Run { subjects } = self {
            return Identities { subjects: subjects.iter().map(person).collect(), files: None, voxels: None };
        }
        let scans = self.scans();
        let subjects = scans.iter().map(|scan| person(&scan.subject)).collect();
        if let Source::Run { .. } = other {
            return Identities { subjects, files: None, voxels: None };
        }
        let name = |scan: &&Scan| scan.path.display().to_string();
        let contents = match (self, other) {
            // A dataset is seen as the cache sees its scans, and so read once.
            (Source::Dataset { scans, .. }, Source::Cache { cache, .. }) => each(scans, |scan| {
                if ["T1w", data::UNKNOWN].contains(&scan.modality.as_str()) {
                    Contents::prepared(scan, cache.preprocessing())
                } else {
                    Contents::unseen(&scan.path)
                }
            }),
            _ => self.contents(),
        };
        let files = contents.iter().zip(&scans).filter_map(|(c, scan)| Some((c.file.clone()?, name(scan))));
        let voxels = match (self, other) {
            (Source::Cache { cache, .. }, Source::Cache { cache: other, .. })
                if cache.preprocessing() != other.preprocessing() =>
            {
                None
            }
            _ => {
                let readable = |(c, scan): (&Contents, &&Scan)| Some((c.voxels.clone().ok()?, name(scan)));
                Some(contents.iter().zip(&scans).filter_map(readable).collect())
            }
        };
        Identities { subjects, files: Some(files.collect()), voxels }
    }
}

/// What `look` says of each item, in parallel and beside a progress bar.
fn each<T: Sync, U: Send>(items: &[T], look: impl Fn(&T) -> U + Sync) -> Vec<U> {
    let bar = ProgressBar::new(items.len() as u64).with_style(super::phantom::style());
    let seen = |item| {
        let found = look(item);
        bar.inc(1);
        found
    };
    let found = items.par_iter().map(seen).collect();
    bar.finish_and_clear();
    found
}

/// The subjects that the model in `path`, or those of all folds, and the one it began with, were trained on.
fn trained_on(path: &Path) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let mut subjects = BTreeSet::new();
    for model in run_folder::models(path) {
        let data = Checkpoint::read(&model)?.card.data;
        subjects.extend(data.subjects.into_iter().chain(data.pretrained_on));
    }
    Ok(subjects)
}
