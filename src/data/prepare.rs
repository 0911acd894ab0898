//! From a dataset to a cache, in parallel and so that a killed run goes on where it was.
//!
//! Each scan becomes a part in `.parts/`, named by the hash of everything it is made from: settings, image and
//! mask. So a part that is there is the right one, whatever has changed since. When all are there, they are put
//! together and removed.
use super::{
    Error,
    cache::{CARD, Card, FORMAT, SCANS, Skipped, VOLUMES, npy_header},
    fingerprint::{Fingerprint, Traits},
    index::{self, IndexRow, Measured},
    scan::{Found, Scan, scans},
};
use crate::{
    error::{FileError, OnFile, chain},
    file::{write_bytes, write_whole},
    image::{self, BACKGROUND, Prepared, Preprocessing},
};
use half::f16;
use rayon::prelude::*;
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
    let (_, volume) = image::read(&scan.path)?;
    let mask = scan.mask.as_ref().map(|path| image::read(path)).transpose()?;
    image::preprocess(volume, mask.map(|(_, mask)| mask), settings)
        .map_err(|source| Error::Scan { path: scan.path.clone(), source })
}

/// Makes the cache `out` of the scans of `dataset`. `begin` is told the number of scans, `advance` is called after
/// each, from any thread. Scans that fail are left out and reported.
///
/// # Errors
/// A dataset without usable scans; a finished cache of other scans or settings in `out`; files that cannot be
/// written.
pub fn prepare(
    dataset: &Path,
    out: &Path,
    settings: &Preprocessing,
    begin: impl FnOnce(usize),
    advance: impl Fn() + Sync,
) -> Result<Report, Error> {
    settings.check()?;
    let Found { scans, unsaid } = scans(dataset, &["T1w".into()])?;
    let root = if dataset.is_dir() { dataset } else { dataset.parent().unwrap_or(Path::new("")) };
    if out.join(CARD).exists() {
        return compare(root, &scans, unsaid.len(), out, settings);
    }
    begin(scans.len());
    let parts = out.join(".parts");
    fs::create_dir_all(&parts).on_file("create", &parts)?;
    let outcomes = scans
        .par_iter()
        .map(|scan| {
            let outcome = prepare_part(scan, settings, &parts);
            advance();
            outcome
        })
        .collect::<Result<Vec<_>, _>>()?;

    let (mut rows, mut voxels) = (Vec::new(), Vec::new());
    let from_root = |path: PathBuf| path.strip_prefix(root).map_or(path.clone(), Path::to_owned);
    let mut skipped: Vec<_> = unsaid.into_iter().map(|path| Skipped::unsaid(from_root(path))).collect();
    for (scan, outcome) in scans.iter().zip(outcomes) {
        match outcome {
            Ok((part, measured)) => {
                rows.push(IndexRow { row: rows.len(), scan: relative(scan, root), measured });
                voxels.push(part);
            }
            Err(error) => {
                // On one line, and with paths counted from the dataset's folder as everywhere in the cache.
                let reason = chain(&error).replace("\n  because", ", because");
                let reason = reason.replace(&root.join("").display().to_string(), "");
                skipped.push(Skipped { source: relative(scan, root).path, reason });
            }
        }
    }
    if rows.is_empty() {
        return Err(Error::AllFailed { path: dataset.to_owned(), skipped });
    }
    let traits: Vec<Traits> = rows.iter().map(|r| r.measured.traits).collect();
    let card = Card {
        format: FORMAT,
        count: rows.len(),
        preprocessing: settings.clone(),
        background: BACKGROUND,
        fingerprint: Fingerprint::of(&traits),
        skipped,
    };
    write_volumes(&out.join(VOLUMES), &card, &voxels)?;
    write_bytes(&out.join(SCANS), index::to_tsv(&rows).as_bytes())?;
    let text = serde_json::to_string_pretty(&card).expect("a card has only numbers and texts") + "\n";
    write_bytes(&out.join(CARD), text.as_bytes())?;
    fs::remove_dir_all(&parts).on_file("remove", &parts)?;
    Ok(report(&rows, card.skipped, false))
}

fn report(rows: &[IndexRow], skipped: Vec<Skipped>, untouched: bool) -> Report {
    let warned = rows.iter().filter(|r| !r.measured.stats.warnings.is_empty()).count();
    Report { prepared: rows.len(), skipped, warned, untouched }
}

/// A part's file of voxels and what was measured; or why the scan failed. The outer error is a failure to write.
type Outcome = Result<(PathBuf, Measured), Error>;

fn prepare_part(scan: &Scan, settings: &Preprocessing, parts: &Path) -> Result<Outcome, FileError> {
    let (key, blake3) = match part_key(scan, settings) {
        Ok(keys) => keys,
        Err(error) => return Ok(Err(error.into())),
    };
    let (voxels, finished) = (parts.join(format!("{key}.f16")), parts.join(format!("{key}.json")));
    if let Some(measured) = fs::read(&finished).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
        return Ok(Ok((voxels, measured)));
    }
    let prepared = match prepare_scan(scan, settings) {
        Ok(prepared) => prepared,
        Err(error) => return Ok(Err(error)),
    };
    let half: Vec<f16> = prepared.data.iter().map(|&v| f16::from_f32(v)).collect();
    write_bytes(&voxels, bytemuck::cast_slice(&half))?;
    let measured = Measured { blake3, traits: Traits::of(&prepared), stats: prepared.stats };
    let text = serde_json::to_vec(&measured).expect("measurements are numbers and texts");
    // Last, since its presence says that the voxels are whole.
    write_bytes(&finished, &text)?;
    Ok(Ok((voxels, measured)))
}

/// The name of a scan's part, and the hash of its image file.
fn part_key(scan: &Scan, settings: &Preprocessing) -> Result<(String, String), FileError> {
    let settings = serde_json::to_string(settings).expect("settings are numbers");
    let image = hash_file(&scan.path)?;
    let mask = scan.mask.as_ref().map(|m| hash_file(m)).transpose()?.unwrap_or_default();
    let key = blake3::hash(format!("{FORMAT} {settings} {image} {mask}").as_bytes());
    Ok((key.to_hex().to_string(), image))
}

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
fn compare(
    root: &Path,
    scans: &[Scan],
    unsaid: usize,
    out: &Path,
    settings: &Preprocessing,
) -> Result<Report, Error> {
    let differs = |what: String| Error::CacheDiffers { path: out.to_owned(), what };
    let card = Card::read(out)?;
    if card.preprocessing != *settings {
        let json = serde_json::to_string(&card.preprocessing).expect("settings are numbers");
        return Err(differs(format!("other settings, {json}")));
    }
    let rows = index::read(&out.join(SCANS))?;
    let known = |scan: &Scan| rows.iter().position(|r| r.scan == *scan);
    let skipped = |scan: &Scan| card.skipped.iter().any(|s| s.source == scan.path);
    let changed = scans.par_iter().find_map_any(|scan| {
        let here = relative(scan, root);
        let same = match known(&here) {
            Some(row) => hash_file(&scan.path).is_ok_and(|hash| hash == rows[row].measured.blake3),
            // A file that failed may have been repaired since.
            None => skipped(&here) && prepare_scan(scan, settings).is_err(),
        };
        (!same).then(|| here.path.display().to_string())
    });
    if let Some(path) = changed {
        return Err(differs(format!("other scans or other data on people (see {path})")));
    }
    if scans.len() + unsaid != rows.len() + card.skipped.len() {
        return Err(differs("more scans than the dataset has now".into()));
    }
    Ok(report(&rows, card.skipped, true))
}
