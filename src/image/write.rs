//! Writes NIfTI-1, little-endian, whole or not at all.
use super::{Error, Volume, nifti::Fault, orientation::determinant};
use crate::file::write_whole;
use flate2::{Compression, write::GzEncoder};
use std::{
    io::{self, BufWriter, Write},
    path::Path,
};

/// How voxels are stored. Integers hold whole numbers in their range exactly; other values are scaled so that the
/// least and the greatest use the whole range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floats, as they are.
    F32,
    /// 16-bit integers.
    I16,
    /// Bytes.
    U8,
}

impl Storage {
    /// NIfTI's data type code and the bits a voxel.
    fn code(self) -> (i16, i16) {
        match self {
            Storage::F32 => (16, 32),
            Storage::I16 => (4, 16),
            Storage::U8 => (2, 8),
        }
    }
    /// Slope and intercept: value = slope · stored + intercept.
    fn scaling(self, data: &[f32]) -> Result<(f32, f32), Error> {
        let (least, greatest) = match self {
            Storage::F32 => return Ok((1.0, 0.0)),
            Storage::I16 => (f32::from(i16::MIN), f32::from(i16::MAX)),
            Storage::U8 => (0.0, 255.0),
        };
        let bad = data.iter().filter(|v| !v.is_finite()).count();
        if bad > 0 {
            return Err(Error::NotFinite { count: bad, total: data.len() });
        }
        let (low, high) = data.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        if (low >= least && high <= greatest && data.iter().all(|v| v.fract() == 0.0)) || low >= high {
            return Ok(if low == high { (1.0, low) } else { (1.0, 0.0) });
        }
        // Halves first: the range of extreme floats would overflow.
        let slope = (high / 2.0 - low / 2.0) / ((greatest - least) / 2.0);
        Ok((slope, low - slope * least))
    }
}

/// Writes `volume` to `path`, gzipped when the name ends in `.gz`. Errors: a name that is neither `.nii` nor
/// `.nii.gz`, an axis over 32,767 voxels, voxels that are not finite where they are stored as integers, I/O.
pub fn write(path: &Path, volume: &Volume, storage: Storage) -> Result<(), Error> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let gzip = name.ends_with(".nii.gz");
    if !gzip && !name.ends_with(".nii") {
        return Err(Error::Name(path.to_owned()));
    }
    let scaling = storage.scaling(&volume.data)?;
    let header =
        header(volume, storage, scaling).map_err(|fault| Error::Nifti { path: path.to_owned(), fault })?;
    let voxels = |w: &mut dyn Write| {
        w.write_all(&header)?;
        write_voxels(w, &volume.data, storage, scaling)
    };
    write_whole(path, |file| {
        if !gzip {
            return voxels(file);
        }
        // The fastest level: a tenth larger than the default, several times quicker.
        let mut w = BufWriter::with_capacity(1 << 16, GzEncoder::new(file, Compression::fast()));
        voxels(&mut w)?;
        w.into_inner()?.finish().map(|_| ())
    })?;
    Ok(())
}

fn write_voxels(
    w: &mut dyn Write,
    data: &[f32],
    storage: Storage,
    (slope, inter): (f32, f32),
) -> io::Result<()> {
    // In `f64`: v - inter is exact there, and a cast to an integer saturates.
    let stored = |v: f32| ((f64::from(v) - f64::from(inter)) / f64::from(slope)).round();
    match storage {
        Storage::F32 => data.iter().try_for_each(|v| w.write_all(&v.to_le_bytes())),
        Storage::I16 => data.iter().try_for_each(|&v| w.write_all(&(stored(v) as i16).to_le_bytes())),
        Storage::U8 => data.iter().try_for_each(|&v| w.write_all(&[stored(v) as u8])),
    }
}

/// The 348 bytes of nifti1.h, and the four that say "no extension".
fn header(volume: &Volume, storage: Storage, (slope, inter): (f32, f32)) -> Result<[u8; 352], Fault> {
    let mut bytes = [0; 352];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &348_i32.to_le_bytes());
    put(40, &3_i16.to_le_bytes());
    for axis in 0..7 {
        let n = volume.shape.get(axis).copied().unwrap_or(1);
        let n = i16::try_from(n);
        let n = n.map_err(|_| Fault::Unsupported("writing an axis of more than 32,767 voxels".into()))?;
        put(42 + 2 * axis, &n.to_le_bytes());
    }
    let (datatype, bits) = storage.code();
    put(70, &datatype.to_le_bytes());
    put(72, &bits.to_le_bytes());
    let handedness = determinant(&volume.affine).signum() as f32;
    put(76, &handedness.to_le_bytes());
    for (axis, size) in volume.spacing().into_iter().enumerate() {
        put(80 + 4 * axis, &(size as f32).to_le_bytes());
    }
    put(108, &352_f32.to_le_bytes());
    put(112, &slope.to_le_bytes());
    put(116, &inter.to_le_bytes());
    put(123, &[2]); // millimetres
    put(148, b"gyrus");
    if let Some(quaternion) = quaternion(volume) {
        put(252, &1_i16.to_le_bytes());
        for (i, x) in quaternion.into_iter().chain([0, 1, 2].map(|r| volume.affine[r][3])).enumerate() {
            put(256 + 4 * i, &(x as f32).to_le_bytes());
        }
    }
    put(254, &1_i16.to_le_bytes());
    for (i, x) in volume.affine[..3].iter().flatten().enumerate() {
        put(280 + 4 * i, &(*x as f32).to_le_bytes());
    }
    put(344, b"n+1\0");
    Ok(bytes)
}

/// b, c, d of the unit quaternion of the affine's rotation (Shepperd's method, the largest of a, b, c, d first); `None`
/// where the affine shears, which a qform cannot say.
fn quaternion(volume: &Volume) -> Option<[f64; 3]> {
    let z = determinant(&volume.affine).signum();
    let size = volume.spacing();
    let scale = [size[0], size[1], z * size[2]];
    let r: [[f64; 3]; 3] = std::array::from_fn(|i| std::array::from_fn(|j| volume.affine[i][j] / scale[j]));
    let dot = |a: usize, b: usize| (0..3).map(|i| r[i][a] * r[i][b]).sum::<f64>().abs();
    if dot(0, 1).max(dot(0, 2)).max(dot(1, 2)) > 1e-4 {
        return None;
    }
    let trace = r[0][0] + r[1][1] + r[2][2];
    let squares = [trace, r[0][0], r[1][1], r[2][2]];
    let largest = (0..4).max_by(|&a, &b| squares[a].total_cmp(&squares[b])).expect("four candidates");
    // Each row is 4 · (one component) · (a, b, c, d).
    let products = match largest {
        0 => [1.0 + trace, r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]],
        1 => [r[2][1] - r[1][2], 1.0 + 2.0 * r[0][0] - trace, r[0][1] + r[1][0], r[0][2] + r[2][0]],
        2 => [r[0][2] - r[2][0], r[0][1] + r[1][0], 1.0 + 2.0 * r[1][1] - trace, r[1][2] + r[2][1]],
        _ => [r[1][0] - r[0][1], r[0][2] + r[2][0], r[1][2] + r[2][1], 1.0 + 2.0 * r[2][2] - trace],
    };
    let length = products.iter().map(|p| p * p).sum::<f64>().sqrt();
    // The header has no room for a: it is taken as positive.
    let sign = if products[0] < 0.0 { -1.0 } else { 1.0 };
    Some([1, 2, 3].map(|i| sign * products[i] / length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{AffineSource, read};
    use std::fs;

    /// An oblique, left-handed volume with 24 voxels from `value`.
    fn volume(value: impl Fn(usize) -> f32) -> Volume {
        let (s, c) = 0.3_f64.sin_cos();
        let affine =
            [[-2.0 * c, -s, 0.0, 9.0], [-2.0 * s, c, 0.0, -4.0], [0.0, 0.0, 1.5, 2.5], [0.0, 0.0, 0.0, 1.0]];
        Volume { shape: [2, 3, 4], affine, data: (0..24).map(value).collect() }
    }

    #[test]
    fn what_is_written_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        for (storage, step) in [(Storage::F32, 0.0), (Storage::I16, 1e-4), (Storage::U8, 0.02)] {
            for name in ["sub-01.v2.nii", "sub-01.nii.gz"] {
                let path = folder.path().join(name);
                let v = volume(|i| (i as f32).sin() * 3.0 - 0.5);
                write(&path, &v, storage).unwrap();
                let (header, back) = read(&path).unwrap();
                assert_eq!((back.shape, header.affine_source), (v.shape, AffineSource::Sform));
                assert!(v.data.iter().zip(&back.data).all(|(a, b)| (a - b).abs() <= step), "{storage:?}");
                for (a, b) in v.affine.iter().flatten().zip(back.affine.iter().flatten()) {
                    assert!((a - b).abs() < 1e-6);
                }
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file stays behind");
    }

    #[test]
    fn whole_numbers_stay_exact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.nii");
        for (storage, v) in
            [(Storage::I16, volume(|i| i as f32 * 1000.0 - 9.0)), (Storage::U8, volume(|i| i as f32 * 11.0))]
        {
            write(&path, &v, storage).unwrap();
            assert_eq!(read(&path).unwrap().1.data, v.data);
        }
        let flat = volume(|_| 0.25);
        write(&path, &flat, Storage::U8).unwrap();
        assert_eq!(read(&path).unwrap().1.data, flat.data);
    }

    /// With the sform's code cleared, the qform alone gives the same affine.
    #[test]
    fn qform_says_what_sform_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.nii");
        for turn in 0..48 {
            let mut v = volume(|i| i as f32);
            // Turn about each axis by angles that make each of a, b, c, d the largest in turn.
            let (s, c) = (f64::from(turn) * 0.4).sin_cos();
            let (i, j) = [(0, 1), (1, 2), (2, 0)][turn as usize % 3];
            for column in 0..3 {
                let (a, b) = (v.affine[i][column], v.affine[j][column]);
                (v.affine[i][column], v.affine[j][column]) = (c * a - s * b, s * a + c * b);
            }
            write(&path, &v, Storage::F32).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            bytes[254..256].fill(0);
            fs::write(&path, bytes).unwrap();
            let (header, back) = read(&path).unwrap();
            assert_eq!(header.affine_source, AffineSource::Qform);
            for (a, b) in v.affine.iter().flatten().zip(back.affine.iter().flatten()) {
                assert!((a - b).abs() < 1e-5, "turn {turn}: {:?} {:?}", v.affine, back.affine);
            }
        }
    }

    #[test]
    fn an_independent_reader_agrees() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.nii.gz");
        write(&path, &volume(|i| i as f32), Storage::I16).unwrap();
        let header = ::nifti::NiftiHeader::from_file(&path).unwrap();
        assert_eq!(header.dim().unwrap(), [2, 3, 4]);
        assert_eq!((header.sform_code, header.qform_code, header.bitpix), (1, 1, 16));
        assert_eq!(header.xyzt_to_space().unwrap(), ::nifti::Unit::Mm);
    }

    #[test]
    fn refusals_name_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let v = volume(|i| if i == 3 { f32::NAN } else { 1.0 });
        let refused =
            |name: &str, storage| write(&folder.path().join(name), &v, storage).unwrap_err().to_string();
        assert!(refused("a.mgz", Storage::F32).contains("a.mgz"));
        assert!(refused("a.nii", Storage::U8).contains("1 of 24"));
        assert!(refused("no/such/folder/a.nii", Storage::F32).contains("a.nii"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
