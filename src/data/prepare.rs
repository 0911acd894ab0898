//! From a dataset to a cache, in parallel and so that a killed run goes on where it was.
//!
//! Each scan becomes a part in `.parts/`, named by the hash of everything it is made from: settings, image and
//! mask. So a part that is there is the right one, whatever has changed since. When all are there, they are put
//! together and removed.
use super::{
    Error,
    cache::{CARD, Card, FORMAT, FORMAT_SEVERAL, Pet, SCANS, Skipped, VOLUMES, npy_header},
    companion::{self, Fixed},
    dataset::{Dataset, Wanted},
    fingerprint::{Fingerprint, Traits},
    index::{self, IndexRow, Measured, Placed, Reference},
    scan::Scan,
    visit::{Place, T1W},
};
use crate::{
    error::{FileError, OnFile, chain},
    file::{write_bytes, write_whole},
    image::{self, Alignment, BACKGROUND, PET_SCALE, Prepared, Preprocessing, Volume, is_quantitative},
};
use half::f16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// What [`prepare`] did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Volumes in the cache.
    pub prepared: usize,
    /// Volumes of each modality.
    pub modalities: Vec<(String, usize)>,
    /// Volumes that were aligned with a T1w.
    pub aligned: usize,
    /// PET volumes divided by the mean of a reference region, and by that of the brain.
    pub references: [usize; 2],
    /// Scans left out, and why.
    pub skipped: Vec<Skipped>,
    /// Volumes that carry a warning.
    pub warned: usize,
    /// The cache was whole already, of the same scans and settings.
    pub untouched: bool,
}

/// Reads one scan with its mask and prepares it; the same for training and for prediction.
///
/// # Errors
/// Files that cannot be read or are no usable images; see [`image::preprocess`].
pub fn prepare_scan(scan: &Scan, settings: &Preprocessing) -> Result<Prepared, Error> {
    prepare_volume(image::read(&scan.path)?.1, scan, settings)
}

/// The same for a scan whose image has been read.
pub(super) fn prepare_volume(
    volume: Volume,
    scan: &Scan,
    settings: &Preprocessing,
) -> Result<Prepared, Error> {
    let mask = scan.mask.as_ref().map(|path| image::read(path)).transpose()?;
    image::preprocess(volume, mask.map(|(_, mask)| mask), settings)
        .map_err(|source| Error::Scan { path: scan.path.clone(), source })
}

/// Makes the cache `out` of the T1w scans of `dataset`; see [`prepare_wanted`].
///
/// # Errors
/// As there.
pub fn prepare(
    dataset: &Path,
    out: &Path,
    settings: &Preprocessing,
    begin: impl FnOnce(usize),
    advance: impl Fn() + Sync,
) -> Result<Report, Error> {
    prepare_wanted(dataset, out, &Wanted::default(), settings, begin, advance)
}

/// Makes the cache `out` of the scans of `dataset` that are `wanted`. `begin` is told the number of scans, `advance` is
/// called after each, from any thread. Scans that fail are left out and reported.
///
/// With other modalities than T1w all scans of a session lie on one grid, that of its first T1w, within the brain of
/// that; see [`image::align`] and [`image::preprocess_onto`]. A session without a T1w is brought to the nearest that has
/// one.
///
/// # Errors
/// A dataset without usable scans; a finished cache of other scans or settings in `out`; files that cannot be
/// written.
pub fn prepare_wanted(
    dataset: &Path,
    out: &Path,
    wanted: &Wanted,
    settings: &Preprocessing,
    begin: impl FnOnce(usize),
    advance: impl Fn() + Sync,
) -> Result<Report, Error> {
    settings.check()?;
    let found = Dataset::find(dataset, wanted)?;
    let root = if dataset.is_dir() { dataset } else { dataset.parent().unwrap_or(Path::new("")) };
    let parts = out.join(".parts");
    let work = Work { found: &found, settings, parts: &parts };
    if out.join(CARD).exists() {
        return compare(root, &work, out);
    }
    begin(found.taken().count());
    fs::create_dir_all(&parts).on_file("create", &parts)?;
    let mut outcomes = found
        .groups(found.taken())
        .into_par_iter()
        .map(|group| work.prepare_group(&group, &advance))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    outcomes.sort_by_key(|(i, _)| *i);

    let (mut rows, mut voxels) = (Vec::new(), Vec::new());
    let from_root = |path: PathBuf| path.strip_prefix(root).map_or(path.clone(), Path::to_owned);
    let mut skipped: Vec<_> =
        found.unsaid().iter().map(|path| Skipped::unsaid(from_root(path.clone()))).collect();
    for (i, outcome) in outcomes {
        let scan = relative(found.scan(i), root);
        match outcome {
            Ok((part, Part { measured, alignment, reference })) => {
                let placed = match found.places[i] {
                    Place::Onto { anchor, days } => {
                        let Scan { path: t1w, session, .. } = relative(found.scan(anchor), root);
                        Some(Placed { t1w, session, days, alignment, reference })
                    }
                    _ => None,
                };
                rows.push(IndexRow { row: rows.len(), scan, placed, measured });
                voxels.push(part);
            }
            Err(error) => {
                // On one line, and with paths counted from the dataset's folder as everywhere in the cache.
                let reason = chain(&error).replace("\n  because", ", because");
                let reason = reason.replace(&root.join("").display().to_string(), "");
                skipped.push(Skipped { source: scan.path, reason });
            }
        }
    }
    if rows.is_empty() {
        return Err(Error::AllFailed { path: dataset.to_owned(), skipped });
    }
    let card = Card {
        format: if wanted.modalities == [T1W] { FORMAT } else { FORMAT_SEVERAL },
        count: rows.len(),
        preprocessing: settings.clone(),
        modalities: wanted.modalities.clone(),
        pet: pet(&rows, wanted),
        background: BACKGROUND,
        fingerprint: Fingerprint::of(&traits(&rows, &wanted.modalities)),
        skipped,
        distortion: None,
    };
    write_volumes(&out.join(VOLUMES), &card, &voxels)?;
    write_bytes(&out.join(SCANS), index::to_tsv(&rows).as_bytes())?;
    card.write(out)?;
    fs::remove_dir_all(&parts).on_file("remove", &parts)?;
    Ok(report(&rows, card, false))
}

/// The traits of the first modality that there is; other modalities look otherwise.
pub(super) fn traits(rows: &[IndexRow], modalities: &[String]) -> Vec<Traits> {
    let order = |r: &IndexRow| modalities.iter().position(|m| *m == r.scan.modality);
    let first = rows.iter().map(order).min().flatten();
    rows.iter().filter(|r| order(r) == first || modalities.len() == 1).map(|r| r.measured.traits).collect()
}

/// What the card says of PET.
fn pet(rows: &[IndexRow], wanted: &Wanted) -> Option<Pet> {
    let references = || rows.iter().filter_map(|r| r.placed.as_ref()?.reference);
    wanted.modalities.iter().any(|m| is_quantitative(m)).then(|| Pet {
        scale: PET_SCALE,
        region: wanted.reference.clone(),
        by_region: references().filter(|r| r.region).count(),
        by_brain: references().filter(|r| !r.region).count(),
    })
}

fn report(rows: &[IndexRow], card: Card, untouched: bool) -> Report {
    let of = |modality: &String| rows.iter().filter(|r| r.scan.modality == *modality).count();
    Report {
        prepared: rows.len(),
        modalities: card.modalities.iter().map(|m| (m.clone(), of(m))).collect(),
        aligned: rows.iter().filter(|r| r.placed.as_ref().is_some_and(|p| p.alignment.is_some())).count(),
        references: card.pet.map_or([0; 2], |pet| [pet.by_region, pet.by_brain]),
        skipped: card.skipped,
        warned: rows.iter().filter(|r| !r.measured.stats.warnings.is_empty()).count(),
        untouched,
    }
}

/// A prepared volume but for its voxels.
#[derive(Serialize, Deserialize)]
struct Part {
    measured: Measured,
    alignment: Option<Alignment>,
    reference: Option<Reference>,
}

/// What is to be done.
struct Work<'a> {
    found: &'a Dataset,
    settings: &'a Preprocessing,
    parts: &'a Path,
}

impl Work<'_> {
    fn prepare_group(
        &self,
        group: &[usize],
        advance: &(impl Fn() + Sync),
    ) -> Result<Vec<(usize, Outcome)>, FileError> {
        let mut fixed = None;
        let prepare = |&i: &usize| {
            let outcome = self.prepare_part(i, &mut fixed);
            advance();
            Ok((i, outcome?))
        };
        group.iter().map(prepare).collect()
    }

    fn prepare_part(&self, i: usize, fixed: &mut Option<Fixed>) -> Result<Outcome, FileError> {
        let (key, blake3) = match self.part_key(i) {
            Ok(keys) => keys,
            Err(error) => return Ok(Err(error)),
        };
        let (voxels, finished) =
            (self.parts.join(format!("{key}.f16")), self.parts.join(format!("{key}.json")));
        if let Some(part) = fs::read(&finished).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(Ok((voxels, part)));
        }
        let (prepared, alignment, reference) = match self.found.prepare(i, self.settings, fixed) {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        let half: Vec<f16> = prepared.data.iter().map(|&v| f16::from_f32(v)).collect();
        write_bytes(&voxels, bytemuck::cast_slice(&half))?;
        let measured = Measured { blake3, traits: Traits::of(&prepared), stats: prepared.stats };
        let part = Part { measured, alignment, reference };
        let text = serde_json::to_vec(&part).expect("measurements are numbers and texts");
        // Last, since its presence says that the voxels are whole.
        write_bytes(&finished, &text)?;
        Ok(Ok((voxels, part)))
    }

    /// The name of a scan's part, and the hash of its image file.
    fn part_key(&self, i: usize) -> Result<(String, String), Error> {
        let scan = self.found.scan(i);
        let settings = serde_json::to_string(self.settings).expect("settings are numbers");
        let image = hash_file(&scan.path)?;
        let mask =
            |scan: &Scan| Ok(scan.mask.as_ref().map(|m| hash_file(m)).transpose()?.unwrap_or_default());
        let mut made_of = format!("{FORMAT} {settings} {image} {}", mask(scan).map_err(Error::File)?);
        if let Place::Onto { anchor, .. } = self.found.places[i] {
            let anchor = self.found.scan(anchor);
            made_of += &format!(" {FORMAT_SEVERAL} {}", scan.modality);
            made_of += &format!(" {} {}", hash_file(&anchor.path)?, mask(anchor).map_err(Error::File)?);
            if is_quantitative(&scan.modality) {
                let region = companion::reference_mask(scan, anchor, &self.found.wanted)?;
                let sidecar = Some(companion::sidecar(&scan.path)).filter(|path| path.exists());
                for file in [region, sidecar].into_iter().flatten() {
                    made_of += &format!(" {}", hash_file(&file)?);
                }
            }
        }
        Ok((blake3::hash(made_of.as_bytes()).to_hex().to_string(), image))
    }
}

/// A part's file of voxels and what was measured; or why the scan failed.
type Outcome = Result<(PathBuf, Part), Error>;

pub(super) fn hash_file(path: &Path) -> Result<String, FileError> {
    let mut hasher = blake3::Hasher::new();
    File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ())).on_file("read", path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// `scan` with paths counted from `root` where they lie in it, so that a moved dataset is the same dataset.
fn relative(scan: &Scan, root: &Path) -> Scan {
    let from_root = |path: &PathBuf| path.strip_prefix(root).unwrap_or(path).to_owned();
    Scan { path: from_root(&scan.path), mask: scan.mask.as_ref().map(from_root), ..scan.clone() }
}

fn write_volumes(path: &Path, card: &Card, parts: &[PathBuf]) -> Result<(), Error> {
    let bytes = 2 * card.preprocessing.grid.iter().product::<usize>() as u64;
    Ok(write_whole(path, |file| {
        file.write_all(&npy_header(card.count, card.preprocessing.grid))?;
        for part in parts {
            let copied = io::copy(&mut File::open(part)?, file)?;
            if copied != bytes {
                let text = format!("{} has {copied} bytes instead of {bytes}", part.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(())
    })?)
}

/// Accepts a finished cache in `out` if it has just these scans and settings, and says what differs if not.
fn compare(root: &Path, work: &Work<'_>, out: &Path) -> Result<Report, Error> {
    let differs = |what: String| Error::CacheDiffers { path: out.to_owned(), what };
    let card = Card::read(out)?;
    if card.preprocessing != *work.settings {
        let json = serde_json::to_string(&card.preprocessing).expect("settings are numbers");
        return Err(differs(format!("other settings, {json}")));
    }
    if card.distortion.is_some() {
        return Err(differs("`gyrus distort`".into()));
    }
    let wanted = &work.found.wanted;
    if card.modalities != wanted.modalities {
        return Err(differs(format!("other modalities, {}", card.modalities.join(","))));
    }
    if card.pet.as_ref().is_some_and(|pet| pet.region != wanted.reference) {
        return Err(differs("another reference region".into()));
    }
    let rows = index::read(&out.join(SCANS))?;
    let known = |scan: &Scan| rows.iter().position(|r| r.scan == *scan);
    let skipped = |scan: &Scan| card.skipped.iter().any(|s| s.source == scan.path);
    let taken: Vec<usize> = work.found.taken().collect();
    let changed = taken.par_iter().find_map_any(|&i| {
        let scan = work.found.scan(i);
        let here = relative(scan, root);
        let same = match known(&here) {
            Some(row) => hash_file(&scan.path).is_ok_and(|hash| hash == rows[row].measured.blake3),
            // A file that failed may have been repaired since.
            None => skipped(&here) && work.found.prepare(i, work.settings, &mut None).is_err(),
        };
        (!same).then(|| here.path.display().to_string())
    });
    if let Some(path) = changed {
        return Err(differs(format!("other scans or other data on people (see {path})")));
    }
    if taken.len() + work.found.unsaid().len() != rows.len() + card.skipped.len() {
        return Err(differs("more scans than the dataset has now".into()));
    }
    Ok(report(&rows, card, true))
}
