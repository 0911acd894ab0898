//! What a trained model is given: scans, prepared as its card says, or rows of a cache that was prepared so.
use crate::{
    data::{self, Cache, Dataset, Found, Scan, Seen, Skipped, T1W, Traits, Visit, Wanted, prepare_scan},
    error::chain,
    image::Prepared,
    train::{
        Card,
        samples::{Samples, Volumes},
    },
};
use half::{f16, slice::HalfFloatSliceExt};
use indicatif::ProgressBar;
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, HashSet},
    error::Error,
    path::{Path, PathBuf},
};

/// Scans that are prepared together and then in memory together.
const CHUNK: usize = 16;

/// One head, ready for the model.
pub(super) struct Input {
    /// The scan that stands for it.
    pub scan: Scan,
    pub volumes: Volumes,
    /// Voxel to millimetres: RAS of the scanner for a file. A cache does not keep where its scans lay, so its rows
    /// are centred on the origin.
    pub affine: [[f64; 4]; 4],
    /// What makes a result doubtful, in words.
    pub warnings: Vec<String>,
}

enum Source {
    File(Scan),
    /// Scans of one subject, of which those of a visit are shown together.
    Person {
        dataset: usize,
        scans: Vec<usize>,
    },
    /// For each modality the row of its volume.
    Rows {
        cache: usize,
        rows: Vec<Option<usize>>,
    },
}

/// Volumes that are still to be read.
pub(super) struct Inputs<'a> {
    card: &'a Card,
    caches: Vec<Cache>,
    datasets: Vec<Dataset>,
    sources: Vec<Source>,
    /// How many are shown at most.
    most: usize,
    skipped: Vec<Skipped>,
}

impl<'a> Inputs<'a> {
    /// Finds the scans of `paths`: datasets as [`data::scans`] takes them, and caches. For a model of several modalities
    /// the scans of a dataset are put together as `gyrus prepare` does; a single file is shown alone. A path that cannot
    /// be used is skipped; a scan that is met again is left out. `mask` goes with a single file.
    ///
    /// # Errors
    /// A cache that was prepared otherwise than `card` asks; a mask beside more than one scan.
    pub(super) fn find(
        paths: &[PathBuf],
        mask: Option<&Path>,
        card: &'a Card,
    ) -> Result<Self, Box<dyn Error>> {
        let (caches, datasets, sources, skipped) = Default::default();
        let mut inputs = Inputs { card, caches, datasets, sources, most: usize::MAX, skipped };
        let modalities = &card.task.encoder().modalities;
        let mut seen = HashSet::new();
        for path in paths {
            if path.join("cache.json").exists() {
                inputs.add_cache(path)?;
                continue;
            }
            if *modalities != [T1W] && !data::is_nifti(path) {
                inputs.add_dataset(path, &mut seen);
                continue;
            }
            match data::scans(path, std::slice::from_ref(&modalities[0])) {
                Ok(Found { scans, unsaid }) => {
                    inputs.skipped.extend(unsaid.into_iter().map(Skipped::unsaid));
                    let new = scans.into_iter().filter(|scan| seen.insert(scan.path.clone()));
                    inputs.sources.extend(new.map(Source::File));
                }
                Err(error) => {
                    inputs.skipped.push(Skipped { source: path.clone(), reason: chain(&error) });
                }
            }
        }
        if let Some(mask) = mask {
            let [Source::File(scan)] = &mut inputs.sources[..] else {
                let count = inputs.sources.len() + inputs.skipped.len();
                return Err(format!("--mask is for one scan, but {count} were given").into());
            };
            scan.mask = Some(mask.to_owned());
        }
        Ok(inputs)
    }

    fn add_cache(&mut self, path: &Path) -> Result<(), Box<dyn Error>> {
        let cache = Cache::open(path)?;
        if *cache.preprocessing() != self.card.preprocessing {
            let (path, model, here) = (path.display(), &self.card.preprocessing, cache.preprocessing());
            return Err(format!("{path}: is prepared to {here}, the model needs {model}").into());
        }
        let samples = Samples::of(&cache, &self.card.task.encoder().modalities)
            .map_err(|reason| format!("{}: {reason}", path.display()))?;
        let number = self.caches.len();
        let rows = (0..samples.len()).map(|i| samples.rows(i).to_vec());
        self.sources.extend(rows.map(|rows| Source::Rows { cache: number, rows }));
        self.caches.push(cache);
        Ok(())
    }

    /// Adds the people of a dataset.
    fn add_dataset(&mut self, path: &Path, seen: &mut HashSet<PathBuf>) {
        let modalities = self.card.task.encoder().modalities.clone();
        let wanted = Wanted { modalities, reference: self.card.reference.clone() };
        let dataset = match Dataset::find(path, &wanted) {
            Ok(dataset) => dataset,
            Err(error) => {
                self.skipped.push(Skipped { source: path.to_owned(), reason: chain(&error) });
                return;
            }
        };
        self.skipped.extend(dataset.unsaid().iter().cloned().map(Skipped::unsaid));
        let mut people = BTreeMap::<&str, Vec<usize>>::new();
        for i in dataset.taken().filter(|&i| seen.insert(dataset.scan(i).path.clone())) {
            people.entry(&dataset.scan(i).subject).or_default().push(i);
        }
        let number = self.datasets.len();
        self.sources.extend(people.into_values().map(|scans| Source::Person { dataset: number, scans }));
        self.datasets.push(dataset);
    }

    /// Keeps the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        self.sources.truncate(count);
        self.most = count;
    }

    /// Prepares all volumes, some at a time and in order, and hands them to `take`. Returns what could not be used.
    ///
    /// # Errors
    /// Those of `take`.
    pub(super) fn each(
        mut self,
        mut take: impl FnMut(Vec<Input>) -> Result<(), Box<dyn Error>>,
    ) -> Result<Vec<Skipped>, Box<dyn Error>> {
        let bar = ProgressBar::new(self.sources.len() as u64).with_style(super::phantom::style());
        for sources in self.sources.chunks(CHUNK) {
            let ready: Vec<_> = sources.par_iter().map(|source| self.ready(source)).collect();
            let mut inputs = Vec::new();
            for (heads, skipped) in ready {
                inputs.extend(heads);
                self.skipped.extend(skipped);
            }
            inputs.truncate(self.most);
            self.most -= inputs.len();
            take(inputs)?;
            bar.inc(sources.len() as u64);
        }
        bar.finish_and_clear();
        Ok(self.skipped)
    }

    /// The heads that `source` holds, and what of it could not be used.
    fn ready(&self, source: &Source) -> (Vec<Input>, Vec<Skipped>) {
        match source {
            Source::File(scan) => match self.file(scan) {
                Ok(input) => (vec![input], Vec::new()),
                Err(reason) => (Vec::new(), vec![Skipped { source: scan.path.clone(), reason }]),
            },
            Source::Person { dataset, scans } => self.person(&self.datasets[*dataset], scans),
            Source::Rows { cache, rows } => (vec![self.row(&self.caches[*cache], rows)], Vec::new()),
        }
    }

    fn file(&self, scan: &Scan) -> Result<Input, String> {
        let modalities = &self.card.task.encoder().modalities;
        let seen = modalities.iter().position(|m| *m == scan.modality);
        let seen = seen.ok_or_else(|| {
            format!("it is {}, but the model sees {}", scan.modality, modalities.join(", "))
        })?;
        let several = *modalities != [T1W];
        if several && scan.modality != T1W {
            let path = scan.path.display();
            return Err(format!("{path}: needs its T1w; give the BIDS folder, or a manifest, that has both"));
        }
        let mut prepared = prepare_scan(scan, &self.card.preprocessing).map_err(|error| chain(&error))?;
        if several {
            prepared.stats.warnings.push(format!(
                "only the {T1W} is seen; to show all that there is, give the BIDS folder, or a manifest"
            ));
        }
        let mut volumes: Vec<Option<&Prepared>> = vec![None; modalities.len()];
        volumes[seen] = Some(&prepared);
        Ok(self.prepared(scan, &volumes))
    }

    fn person(&self, dataset: &Dataset, scans: &[usize]) -> (Vec<Input>, Vec<Skipped>) {
        let Seen { visits, prepared, failed } = dataset.see(scans, &self.card.preprocessing);
        let input = |Visit { rows, .. }: &Visit| {
            let volumes: Vec<Option<&Prepared>> = rows.iter().map(|row| prepared.get(&(*row)?)).collect();
            self.prepared(dataset.scan(first(rows)), &volumes)
        };
        let skipped = |(i, error): &(usize, data::Error)| Skipped {
            source: dataset.scan(*i).path.clone(),
            reason: chain(error),
        };
        (visits.iter().map(input).collect(), failed.iter().map(skipped).collect())
    }

    /// A head of which `volumes` were prepared now.
    fn prepared(&self, scan: &Scan, volumes: &[Option<&Prepared>]) -> Input {
        let there = || volumes.iter().copied().flatten();
        let first = there().next().expect("a head has a volume");
        // In half precision, as a cache keeps them: so a scan has one age, however it is given.
        let half = |v: &f32| f16::from_f32(*v).to_f32();
        Input {
            scan: scan.clone(),
            volumes: volumes.iter().map(|v| v.map(|v| v.data.iter().map(half).collect())).collect(),
            affine: first.affine,
            warnings: self.warnings(there().map(|v| &v.stats.warnings), &Traits::of(first)),
        }
    }

    fn row(&self, cache: &Cache, rows: &[Option<usize>]) -> Input {
        let known = &cache.scans()[first(rows)];
        let there = rows.iter().flatten().map(|&row| &cache.scans()[row].measured.stats.warnings);
        let volume = |row: &Option<usize>| row.map(|row| cache.volume(row).to_f32_vec());
        Input {
            scan: known.scan.clone(),
            volumes: rows.iter().map(volume).collect(),
            affine: self.centred(),
            warnings: self.warnings(there, &known.measured.traits),
        }
    }

    /// What makes a result doubtful: of all volumes, and that the first is unlike those of training.
    fn warnings<'w>(&self, of: impl Iterator<Item = &'w Vec<String>>, first: &Traits) -> Vec<String> {
        of.flatten().cloned().chain(self.card.fingerprint.unusual(first)).collect()
    }

    /// The prepared grid around the origin.
    fn centred(&self) -> [[f64; 4]; 4] {
        let (grid, mm) = (self.card.preprocessing.grid, self.card.preprocessing.nominal_spacing());
        let mut affine = [[0.0; 4]; 4];
        for axis in 0..3 {
            affine[axis][axis] = mm;
            affine[axis][3] = -0.5 * mm * (grid[axis] - 1) as f64;
        }
        affine[3][3] = 1.0;
        affine
    }
}

/// The first volume that a visit has.
fn first(rows: &[Option<usize>]) -> usize {
    rows.iter().flatten().copied().next().expect("a visit has a volume")
}
