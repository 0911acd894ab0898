//! What a scan holds, whatever it is called: hashes that tell copies, also recompressed or turned ones.
use super::{Cache, Scan, prepare::hash_file, prepare_scan};
use crate::{
    error::chain,
    image::{self, Prepared, Preprocessing, Volume, orientation::to_ras},
};
use half::f16;
use std::path::Path;

/// Hashes of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// BLAKE3 of the file, in hexadecimal; `None` for a pair, whose header many images may share.
    pub file: Option<String>,
    /// BLAKE3 of the voxels, or why they could not be read.
    pub voxels: Result<String, String>,
}

impl Contents {
    /// Of the image in `path`. Its voxels are seen as RAS and with their scaling applied, so that it does not matter how
    /// they were compressed, ordered or stored.
    pub fn of(path: &Path) -> Contents {
        let voxels = image::read(path).map(|(_, volume)| hash_voxels(to_ras(volume)));
        Contents { file: hash_of_file(path), voxels: voxels.map_err(|e| reason(&e)) }
    }

    /// Of volume `row` of `cache`: the file it was prepared from, and the prepared voxels.
    pub fn of_row(cache: &Cache, row: usize) -> Contents {
        let known = &cache.scans()[row];
        let file = (!is_pair(&known.scan.path)).then(|| known.measured.blake3.clone());
        Contents { file, voxels: Ok(hash_prepared(cache.volume(row))) }
    }

    /// Of `scan` with the voxels that it has once it is prepared, as they lie in a cache.
    pub fn prepared(scan: &Scan, settings: &Preprocessing) -> Contents {
        let half = |v: &f32| f16::from_f32(*v);
        let hash = |p: Prepared| hash_prepared(&p.data.iter().map(half).collect::<Vec<_>>());
        let voxels = prepare_scan(scan, settings).map(hash).map_err(|e| reason(&e));
        Contents { file: hash_of_file(&scan.path), voxels }
    }

    /// Of an image whose voxels nothing can be compared with.
    pub fn unseen(path: &Path) -> Contents {
        Contents { file: hash_of_file(path), voxels: Err("not read".into()) }
    }
}

/// BLAKE3 of a file; of a pair's header, which many images may share, there is none.
fn hash_of_file(path: &Path) -> Option<String> {
    if is_pair(path) { None } else { hash_file(path).ok() }
}

/// Why an image could not be read, on one line.
fn reason(error: &dyn std::error::Error) -> String {
    chain(error).replace("\n  because", ", because")
}

fn is_pair(path: &Path) -> bool {
    let name = path.to_string_lossy().to_lowercase();
    [".hdr", ".img"].iter().any(|end| name.trim_end_matches(".gz").ends_with(end))
}

fn hash_voxels(volume: Volume) -> String {
    let mut hasher = blake3::Hasher::new();
    volume.shape.iter().for_each(|&n| {
        hasher.update(&(n as u64).to_le_bytes());
    });
    // -0 is 0.
    let voxels: Vec<f32> = volume.data.into_iter().map(|v| v + 0.0).collect();
    hasher.update(bytemuck::cast_slice(&voxels));
    hasher.finalize().to_hex().to_string()
}

fn hash_prepared(voxels: &[f16]) -> String {
    blake3::hash(bytemuck::cast_slice(voxels)).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Storage, write};

    #[test]
    fn recompressed_and_turned_copies_have_the_same_voxels() {
        let folder = tempfile::tempdir().unwrap();
        let affine = [[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
        let volume = Volume { shape: [3, 2, 1], affine, data: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] };
        let mut turned = Volume { data: vec![3.0, 2.0, 1.0, 6.0, 5.0, 4.0], ..volume.clone() };
        (turned.affine[0][0], turned.affine[0][3]) = (-2.0, 4.0);
        let contents = |name: &str, volume: &Volume, storage| {
            let path = folder.path().join(name);
            write(&path, volume, storage).unwrap();
            Contents::of(&path)
        };
        let first = contents("a.nii", &volume, Storage::U8);
        for other in [
            contents("b.nii.gz", &volume, Storage::U8),
            contents("c.nii", &volume, Storage::F32),
            contents("d.nii", &turned, Storage::U8),
        ] {
            assert_eq!(first.voxels, other.voxels);
            assert_ne!(first.file, other.file);
        }
        turned.data[0] = 9.0;
        assert_ne!(contents("e.nii", &turned, Storage::U8).voxels, first.voxels);
        assert!(Contents::of(&folder.path().join("none.nii")).voxels.unwrap_err().contains("none.nii"));
    }
}
