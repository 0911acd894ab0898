//! The cache of prepared volumes, in one folder:
//!
//! - `volumes.npy`: half precision, `[N, X, Y, Z]` in C order; numpy opens it with `np.load(.., mmap_mode="r")`.
//! - `scans.tsv`: a line for each volume ([`IndexRow`]).
//! - `cache.json`: how it was made, and what its scans look like. It is written last: a folder with it is whole.
//! - `distortions.json`, where volumes were made worse afterwards: what was done to each.
use super::{
    Error,
    fingerprint::Fingerprint,
    index::{self, IndexRow},
    visit::{self, T1W, Visit},
};
use crate::{
    error::OnFile,
    file::write_bytes,
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

/// Version of the layout of a cache of T1w scans alone. What volumes are made of is named after it.
pub(super) const FORMAT: u32 = 1;
/// Version of the layout of a cache of other modalities, which readers of the first would mistake for T1w.
pub(super) const FORMAT_SEVERAL: u32 = 2;
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
    /// Which modalities were asked for.
    #[serde(default = "t1w")]
    pub modalities: Vec<String>,
    /// How PET is stored, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pet: Option<Pet>,
    /// The value outside the brain.
    pub background: f32,
    pub fingerprint: Fingerprint,
    /// Scans of the dataset that could not be prepared.
    pub skipped: Vec<Skipped>,
    /// How the volumes were made worse after they were prepared, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distortion: Option<serde_json::Value>,
}

/// How PET is stored: `scale` · (value / reference - 1), where the reference is the mean of a region (then value /
/// reference is an SUVR) or else of the whole brain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Pet {
    pub scale: f64,
    /// The label of the region that was asked for.
    pub region: Option<String>,
    /// Volumes divided by their region.
    pub by_region: usize,
    /// Volumes divided by their brain.
    pub by_brain: usize,
}

fn t1w() -> Vec<String> {
    vec![T1W.to_owned()]
}

/// A scan that could not be prepared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The image file, from the dataset's folder where it lies in it.
    pub source: PathBuf,
    /// Why.
    pub reason: String,
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

    /// The modalities that were asked for, in that order.
    pub fn modalities(&self) -> Vec<String> {
        self.card.modalities.clone()
    }

    /// What belongs together: for each visit a row of each modality, as far as it was scanned. Of several runs of one
    /// modality each makes a visit, with the first run of each other modality.
    pub fn visits(&self) -> Vec<Visit> {
        let rows = self.scans.iter().map(|row| (row.row, &row.scan, row.visit()));
        visit::visits(rows, &self.card.modalities)
    }

    /// How the volumes were prepared.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.card.preprocessing
    }

    /// What the scans look like; of several modalities, those of the first that there is.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.card.fingerprint
    }

    /// How its volumes were made worse after they were prepared; `None` where they were not.
    pub fn distortion(&self) -> Option<&serde_json::Value> {
        self.card.distortion.as_ref()
    }

    /// The label of the region that PET was divided by, where one was asked for.
    pub fn reference(&self) -> Option<&str> {
        self.card.pet.as_ref()?.region.as_deref()
    }

    pub(super) fn card(&self) -> &Card {
        &self.card
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
    /// Writes the card of `folder`.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).expect("a card has only numbers and texts") + "\n";
        Ok(write_bytes(&folder.join(CARD), text.as_bytes())?)
    }

    /// The card of `folder`.
    pub(super) fn read(folder: &Path) -> Result<Card, Error> {
        let path = folder.join(CARD);
        let text = fs::read_to_string(&path).on_file("read", &path)?;
        let fault = |fault: String| Error::Cache { path: path.clone(), fault };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| fault(format!("is not JSON ({e})")))?;
        if value["format"] != FORMAT && value["format"] != FORMAT_SEVERAL {
            return Err(fault(format!(
                "says format {}, but this gyrus reads formats {FORMAT} and {FORMAT_SEVERAL}",
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
