//! What a trained model is given: scans, prepared as its card says, or rows of a cache that was prepared so.
use crate::{
    data::{self, Cache, Found, Scan, Skipped, Traits, prepare_scan},
    error::chain,
    train::{
        Card,
        samples::{Samples, Volumes},
    },
};
use half::slice::HalfFloatSliceExt;
use indicatif::ProgressBar;
use rayon::prelude::*;
use std::{
    collections::HashSet,
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
    sources: Vec<Source>,
    skipped: Vec<Skipped>,
}

impl<'a> Inputs<'a> {
    /// Finds the scans of `paths`: datasets as [`data::scans`] takes them, and caches. Of a dataset the model's first
    /// modality is taken; what was scanned beside it comes together in a cache only. A path that cannot be used is
    /// skipped; a scan that is met again is left out. `mask` goes with a single file.
    ///
    /// # Errors
    /// A cache that was prepared otherwise than `card` asks; a mask beside more than one scan.
    pub(super) fn find(
        paths: &[PathBuf],
        mask: Option<&Path>,
        card: &'a Card,
    ) -> Result<Self, Box<dyn Error>> {
        let mut inputs = Inputs { card, caches: Vec::new(), sources: Vec::new(), skipped: Vec::new() };
        let modalities = &card.task.encoder().modalities;
        let mut seen = HashSet::new();
        for path in paths {
            if path.join("cache.json").exists() {
                inputs.add_cache(path)?;
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

    /// Keeps the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        self.sources.truncate(count);
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
            for outcome in ready {
                match outcome {
                    Ok(input) => inputs.push(input),
                    Err(skipped) => self.skipped.push(skipped),
                }
            }
            take(inputs)?;
            bar.inc(sources.len() as u64);
        }
        bar.finish_and_clear();
        Ok(self.skipped)
    }

    fn ready(&self, source: &Source) -> Result<Input, Skipped> {
        let (scan, volumes, affine, traits, mut warnings) = match source {
            Source::File(scan) => {
                let skipped = |reason| Skipped { source: scan.path.clone(), reason };
                let modalities = &self.card.task.encoder().modalities;
                let seen = modalities.iter().position(|m| *m == scan.modality).ok_or_else(|| {
                    skipped(format!("it is {}, but the model sees {}", scan.modality, modalities.join(", ")))
                })?;
                let prepared =
                    prepare_scan(scan, &self.card.preprocessing).map_err(|error| skipped(chain(&error)))?;
                let traits = Traits::of(&prepared);
                let mut volumes = vec![None; modalities.len()];
                volumes[seen] = Some(prepared.data);
                let mut warnings = prepared.stats.warnings;
                if modalities.len() > 1 {
                    let (all, one) = (modalities.join(","), &scan.modality);
                    warnings.push(format!(
                        "only the {one} is seen; to show all that there is, gyrus prepare --modalities {all}"
                    ));
                }
                (scan.clone(), volumes, prepared.affine, traits, warnings)
            }
            Source::Rows { cache, rows } => {
                let cache = &self.caches[*cache];
                let volume = |row: &Option<usize>| row.map(|row| cache.volume(row).to_f32_vec());
                let first = rows.iter().flatten().next().expect("a sample has a volume");
                let known = &cache.scans()[*first];
                let warnings = known.measured.stats.warnings.clone();
                let volumes = rows.iter().map(volume).collect();
                (known.scan.clone(), volumes, self.centred(), known.measured.traits, warnings)
            }
        };
        warnings.extend(self.card.fingerprint.unusual(&traits));
        Ok(Input { scan, volumes, affine, warnings })
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
