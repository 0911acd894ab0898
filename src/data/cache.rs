//! The cache of prepared volumes, in one folder:
//!
//! - `volumes.npy`: half precision, `[N, X, Y, Z]` in C order; numpy opens it with `np.load(.., mmap_mode="r")`.
//! - `scans.tsv`: a line for each volume ([`IndexRow`]).
//! - `cache.json`: how it was made, and what its scans look like. It is written last: a folder with it is whole.
use super::{
    Error,
    fingerprint::Fingerprint,
    index::{self, IndexRow},
};
use crate::{
    error::OnFile,
    image::{BACKGROUND, Preprocessing},
    machine::mapped::MappedFile,
    program::Volumes,
};
use half::f16;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

// Voxels are mapped as they lie in the file, which is little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// Version of the cache's layout; caches of another are refused.
pub(super) const FORMAT: u32 = 1;
pub(super) const VOLUMES: &str = "volumes.npy";
pub(super) const SCANS: &str = "scans.tsv";
pub(super) const CARD: &str = "cache.json";

/// `cache.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Card {
    pub format: u32,
    /// Number of volumes.
    pub count: usize,
    pub preprocessing: Preprocessing,
    /// The value outside the brain.
    pub background: f32,
    pub fingerprint: Fingerprint,
    /// Scans of the dataset that could not be prepared.
    pub skipped: Vec<Skipped>,
}

/// A scan that could not be prepared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The image file, from the dataset's folder where it lies in it.
    pub source: PathBuf,
    /// Why.
    pub reason: String,
}

/// A person's volumes of one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Whose.
    pub subject: String,
    /// When, where a dataset has several.
    pub session: Option<String>,
    /// For each modality of the cache the row of its volume.
    pub rows: Vec<Option<usize>>,
}

impl Skipped {
    /// A scan whose modality nothing says.
    pub fn unsaid(source: PathBuf) -> Skipped {
        let reason = format!(
            "{}: nothing says its modality; name it .._T1w.nii.gz, or list it in a manifest with a column \"modality\"",
            source.display()
        );
        Skipped { source, reason }
    }
}

/// An opened cache; its volumes are read from disk as they are used.
#[derive(Debug)]
pub struct Cache {
    card: Card,
    scans: Vec<IndexRow>,
    hash: String,
    volumes: MappedFile,
    header: usize,
}

impl Cache {
    /// Opens the cache in `folder`.
    ///
    /// # Errors
    /// Files that are missing, damaged, of another version, or that do not belong together.
    pub fn open(folder: &Path) -> Result<Cache, Error> {
        let card = Card::read(folder)?;
        let table = folder.join(SCANS);
        let scans = index::read(&table)?;
        if scans.len() != card.count || scans.iter().enumerate().any(|(i, s)| s.row != i) {
            let fault = format!("has {} rows, but the cache holds {} volumes", scans.len(), card.count);
            return Err(Error::Cache { path: table, fault });
        }
        let mut hasher = blake3::Hasher::new();
        for path in [table, folder.join(CARD)] {
            hasher.update(&fs::read(&path).on_file("read", &path)?);
        }

        let path = folder.join(VOLUMES);
        let volumes = MappedFile::open(&path)?;
        let header = npy_header(card.count, card.preprocessing.grid);
        let bytes = header.len() + 2 * card.count * card.preprocessing.grid.iter().product::<usize>();
        if !volumes.starts_with(&header) {
            let fault = "does not begin with the header that cache.json asks for".to_owned();
            return Err(Error::Cache { path, fault });
        }
        if volumes.len() != bytes {
            let fault = format!("has {} bytes, but should have {bytes}", volumes.len());
            return Err(Error::Cache { path, fault });
        }
        let hash = hasher.finalize().to_hex().to_string();
        Ok(Cache { card, scans, hash, volumes, header: header.len() })
    }

    /// Number of volumes.
    pub fn len(&self) -> usize {
        self.card.count
    }

    /// Never true of a cache that `gyrus prepare` made.
    pub fn is_empty(&self) -> bool {
        self.card.count == 0
    }

    /// Voxels along x, y and z.
    pub fn grid(&self) -> [usize; 3] {
        self.card.preprocessing.grid
    }

    /// Volume number `row`, `[x][y][z]` with z fastest: z-scores in the brain, [`BACKGROUND`] outside.
    pub fn volume(&self, row: usize) -> &[f16] {
        assert!(row < self.len(), "row {row} of a cache of {}", self.len());
        let bytes = 2 * self.grid().iter().product::<usize>();
        bytemuck::cast_slice(&self.volumes[self.header + row * bytes..][..bytes])
    }

    /// What is known of each volume.
    pub fn scans(&self) -> &[IndexRow] {
        &self.scans
    }

    /// The modalities of its volumes.
    pub fn modalities(&self) -> Vec<String> {
        let mut all: Vec<String> = self.scans.iter().map(|s| s.scan.modality.clone()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Which volumes were taken together.
    pub fn visits(&self) -> Vec<Visit> {
        let visit = |row: &IndexRow| Visit {
            subject: row.scan.subject.clone(),
            session: row.scan.session.clone(),
            rows: vec![Some(row.row)],
        };
        self.scans.iter().map(visit).collect()
    }

    /// How the volumes were prepared.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.card.preprocessing
    }

    /// What the scans look like.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.card.fingerprint
    }

    /// BLAKE3 of `scans.tsv` and `cache.json`, in hexadecimal; the table has the hash of every image.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

impl Volumes for Cache {
    fn count(&self) -> usize {
        self.len()
    }
    fn volume(&self, number: usize) -> &[f16] {
        Cache::volume(self, number)
    }
}

impl Card {
    /// The card of `folder`.
    pub(super) fn read(folder: &Path) -> Result<Card, Error> {
        let path = folder.join(CARD);
        let text = fs::read_to_string(&path).on_file("read", &path)?;
        let fault = |fault: String| Error::Cache { path: path.clone(), fault };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| fault(format!("is not JSON ({e})")))?;
        if value["format"] != FORMAT {
            return Err(fault(format!(
                "says format {}, but this gyrus reads format {FORMAT}",
                value["format"]
            )));
        }
        let card: Card = serde_json::from_value(value).map_err(|e| fault(format!("is damaged ({e})")))?;
        if card.background != BACKGROUND {
            let is = card.background;
            return Err(fault(format!("says background {is}, but this gyrus uses {BACKGROUND}")));
        }
        Ok(card)
    }
}

/// What stands before the voxels: numpy's format 1.0, padded so that voxels start at a multiple of 64 bytes.
pub(super) fn npy_header(count: usize, [x, y, z]: [usize; 3]) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({count}, {x}, {y}, {z}), }}");
    let preamble = 10;
    let end = (preamble + text.len() + 1).next_multiple_of(64);
    text.push_str(&" ".repeat(end - preamble - text.len() - 1));
    text.push('\n');
    let length = u16::try_from(text.len()).expect("a header of four numbers is short");
    [b"\x93NUMPY\x01\x00".as_slice(), &length.to_le_bytes(), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_numpys_and_ends_at_a_multiple_of_64() {
        for count in [1, 99, 1_000_000_000] {
            let header = npy_header(count, [80, 96, 80]);
            assert_eq!(&header[..8], b"\x93NUMPY\x01\x00");
            assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
            assert!(header.len().is_multiple_of(64) && header.ends_with(b"\n"));
            let text = String::from_utf8(header[10..].to_vec()).unwrap();
            assert_eq!(
                text.trim_end(),
                format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({count}, 80, 96, 80), }}")
            );
        }
    }
}
