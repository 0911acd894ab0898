//! A cache made of another: the same scans, some of their volumes made worse.
use super::{
    Error,
    cache::{CARD, Cache, Card, SCANS, VOLUMES, npy_header},
    fingerprint::{Fingerprint, Traits},
    index::{self, IndexRow, Measured},
    prepare::traits,
};
use crate::{
    error::OnFile,
    file::{write_bytes, write_whole},
    image::Prepared,
};
use half::f16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::{
    fs,
    io::{self, Write},
    path::Path,
};

/// What was done to each volume of a distorted cache.
pub const DISTORTIONS: &str = "distortions.json";

/// Volumes that are worked on, and then in memory, together, for each thread.
const EACH: usize = 2;

/// What became of a volume.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The volume, normalised anew.
    pub prepared: Prepared,
    /// What was done to it, for [`DISTORTIONS`].
    pub done: Map<String, Value>,
}

/// A volume's new voxels, what was measured of it, and what was done.
type Made = (Vec<f16>, Measured, Option<Map<String, Value>>);

/// Writes the cache `out` of the volumes of `source`, each as `change` makes it, or as it is where that gives `None`.
/// `distortion` says on the card how; false if `out` is that very cache already. Files are written whole or not at all,
/// and the card last.
///
/// # Errors
/// What `change` returns; another cache, or anything else, in `out`; files that cannot be written.
pub fn derive<E: From<Error> + Send>(
    source: &Cache,
    out: &Path,
    distortion: Value,
    change: impl Fn(&IndexRow, &[f16]) -> Result<Option<Changed>, E> + Sync,
    advance: impl Fn() + Sync,
) -> Result<bool, E> {
    if !claim(out, &distortion)? {
        return Ok(false);
    }
    let make = |row: &IndexRow| -> Result<Made, E> {
        let before = source.volume(row.row);
        let made = match change(row, before)? {
            None => (before.to_vec(), row.measured.clone(), None),
            Some(Changed { prepared, done }) => {
                let half = prepared.data.iter().map(|&v| f16::from_f32(v)).collect();
                let traits = Traits::of(&prepared);
                (half, Measured { traits, stats: prepared.stats, ..row.measured.clone() }, Some(done))
            }
        };
        advance();
        Ok(made)
    };
    let (mut rows, mut done, mut failure) = (Vec::new(), Vec::new(), None);
    let written = write_whole(&out.join(VOLUMES), |file| {
        file.write_all(&npy_header(source.len(), source.grid()))?;
        for some in source.scans().chunks(EACH * rayon::current_num_threads()) {
            let made: Result<Vec<Made>, E> = some.par_iter().map(make).collect();
            let made = made.map_err(|e| {
                failure = Some(e);
                io::Error::other("a volume could not be made")
            })?;
            for (row, (voxels, measured, what)) in some.iter().zip(made) {
                file.write_all(bytemuck::cast_slice(&voxels))?;
                if let Some(what) = what {
                    let mut about = Map::from_iter([
                        ("Row".to_owned(), json!(row.row)),
                        ("Source".to_owned(), json!(row.scan.path)),
                    ]);
                    about.extend(what);
                    done.push(Value::Object(about));
                }
                rows.push(IndexRow { measured, ..row.clone() });
            }
        }
        Ok(())
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    written.map_err(Error::File)?;
    let card = Card {
        fingerprint: Fingerprint::of(&traits(&rows, &source.card().modalities)),
        distortion: Some(distortion),
        ..source.card().clone()
    };
    write(out, SCANS, &index::to_tsv(&rows))?;
    write(out, DISTORTIONS, &format!("{:#}\n", Value::Array(done)))?;
    card.write(out)?;
    Ok(true)
}

fn write(out: &Path, name: &str, text: &str) -> Result<(), Error> {
    Ok(write_bytes(&out.join(name), text.as_bytes())?)
}

/// Whether the cache is still to be made in `out`: false where it is there. A run that was stopped leaves files without
/// a card, which are taken over.
fn claim(out: &Path, distortion: &Value) -> Result<bool, Error> {
    fs::create_dir_all(out).on_file("create", out)?;
    if out.join(CARD).exists() {
        if Card::read(out)?.distortion.as_ref() == Some(distortion) {
            return Ok(false);
        }
        let what = "other distortions, or none".to_owned();
        return Err(Error::CacheDiffers { path: out.to_owned(), what });
    }
    for entry in fs::read_dir(out).on_file("read", out)? {
        let entry = entry.on_file("read", out)?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".unfinished-") {
            fs::remove_file(entry.path()).on_file("remove", &entry.path())?;
        } else if ![VOLUMES, SCANS, DISTORTIONS].iter().any(|ours| name == *ours) {
            return Err(Error::Exists { path: out.to_owned() });
        }
    }
    Ok(true)
}
