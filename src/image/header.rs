//! The NIfTI-1 and NIfTI-2 headers (nifti1.h, nifti2.h): one set of fields from both, and the affine they describe.
use super::{nifti::Fault, orientation, spacing};
use serde::Serialize;
use std::fmt;

/// How the file stores a voxel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Datatype {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Datatype {
    fn from_code(code: i16) -> Result<Datatype, Fault> {
        Ok(match code {
            2 => Datatype::U8,
            4 => Datatype::I16,
            8 => Datatype::I32,
            16 => Datatype::F32,
            64 => Datatype::F64,
            256 => Datatype::I8,
            512 => Datatype::U16,
            768 => Datatype::U32,
            1024 => Datatype::I64,
            1280 => Datatype::U64,
            other => {
                let name = match other {
                    1 => "binary",
                    32 => "complex64",
                    128 => "RGB",
                    1536 => "float128",
                    1792 => "complex128",
                    2048 => "complex256",
                    2304 => "RGBA",
                    _ => "unknown",
                };
                return Err(Fault::Unsupported(format!(
                    "data type {other} ({name}); voxels must be real numbers of 8 to 64 bits"
                )));
            }
        })
    }
    /// Bytes a voxel.
    pub fn size(self) -> usize {
        match self {
            Datatype::U8 | Datatype::I8 => 1,
            Datatype::U16 | Datatype::I16 => 2,
            Datatype::U32 | Datatype::I32 | Datatype::F32 => 4,
            Datatype::U64 | Datatype::I64 | Datatype::F64 => 8,
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// Where the affine comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AffineSource {
    /// The three rows of the sform.
    Sform,
    /// Quaternion, offset and pixdim.
    Qform,
    /// Neither is set: pixdim alone, x to the left and the origin in the centre, as nibabel has it.
    Pixdim,
}

/// What an image file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Header {
    /// 1 or 2: which version of NIfTI.
    pub version: u8,
    /// Header and voxels are two files (`.hdr`, `.img`).
    pub pair: bool,
    /// The voxels are compressed.
    pub gzip: bool,
    /// The bytes are in big-endian order.
    pub big_endian: bool,
    /// Voxels along each axis.
    pub shape: [usize; 3],
    /// How many such volumes follow one another: 1, or the frames of a dynamic scan.
    pub frames: usize,
    /// Millimetres between voxels along each axis: the lengths of the affine's columns.
    pub spacing: [f64; 3],
    /// Which way each axis runs: "RAS" runs to the right, the front and the top.
    pub orientation: String,
    /// Voxel indices to RAS millimetres.
    pub affine: [[f64; 4]; 4],
    /// Where the affine comes from.
    pub affine_source: AffineSource,
    /// How the file stores a voxel.
    pub datatype: Datatype,
    /// A voxel's value is `slope` · stored + `inter`; 1 where the file asks for no scaling.
    pub slope: f64,
    /// See `slope`; 0 where the file asks for no scaling.
    pub inter: f64,
    /// Unit of length: "mm", "m", "um", or "unknown", which is taken as mm.
    pub space_unit: &'static str,
    /// Unit of time: "s", "ms", "us" or "unknown".
    pub time_unit: &'static str,
    /// Free text.
    pub description: String,
    /// How many header extensions the file carries.
    pub extensions: usize,
    /// Where the voxels begin, in bytes from the start of their file.
    #[serde(skip)]
    pub(super) offset: u64,
}

/// A header's bytes, with their byte order.
struct Bytes<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl Bytes<'_> {
    /// The `N` bytes at `at`, least significant first.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut b: [u8; N] = self.bytes[at..at + N].try_into().expect("a slice of N bytes");
        if self.big_endian {
            b.reverse();
        }
        b
    }
    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.field(at))
    }
    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.field(at))
    }
    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.field(at))
    }
    fn f32(&self, at: usize) -> f64 {
        f64::from(f32::from_le_bytes(self.field(at)))
    }
    fn f64(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.field(at))
    }
}

/// The fields both versions have, in one width.
struct Fields {
    dim: [i64; 8],
    datatype: i16,
    bitpix: i16,
    pixdim: [f64; 8],
    offset: f64,
    slope: f64,
    inter: f64,
    units: i32,
    qform: i32,
    sform: i32,
    /// b, c, d, then the offset x, y, z.
    quaternion: [f64; 6],
    rows: [[f64; 4]; 3],
    description: (usize, usize),
}

fn fields_1(b: &Bytes) -> Fields {
    Fields {
        dim: std::array::from_fn(|i| i64::from(b.i16(40 + 2 * i))),
        datatype: b.i16(70),
        bitpix: b.i16(72),
        pixdim: std::array::from_fn(|i| b.f32(76 + 4 * i)),
        offset: b.f32(108),
        slope: b.f32(112),
        inter: b.f32(116),
        units: i32::from(b.bytes[123]),
        description: (148, 228),
        qform: i32::from(b.i16(252)),
        sform: i32::from(b.i16(254)),
        quaternion: std::array::from_fn(|i| b.f32(256 + 4 * i)),
        rows: std::array::from_fn(|r| std::array::from_fn(|c| b.f32(280 + 16 * r + 4 * c))),
    }
}

fn fields_2(b: &Bytes) -> Fields {
    Fields {
        datatype: b.i16(12),
        bitpix: b.i16(14),
        dim: std::array::from_fn(|i| b.i64(16 + 8 * i)),
        pixdim: std::array::from_fn(|i| b.f64(104 + 8 * i)),
        offset: b.i64(168) as f64,
        slope: b.f64(176),
        inter: b.f64(184),
        description: (240, 320),
        qform: b.i32(344),
        sform: b.i32(348),
        quaternion: std::array::from_fn(|i| b.f64(352 + 8 * i)),
        rows: std::array::from_fn(|r| std::array::from_fn(|c| b.f64(400 + 32 * r + 8 * c))),
        units: b.i32(500),
    }
}

/// Length and byte order of the header that begins with these four bytes: 348 is NIfTI-1, 540 is NIfTI-2.
pub(super) fn length(first: [u8; 4]) -> Result<(usize, bool), Fault> {
    let (little, big) = (i32::from_le_bytes(first), i32::from_be_bytes(first));
    match (little, big) {
        (348 | 540, _) => Ok((little as usize, false)),
        (_, 348 | 540) => Ok((big as usize, true)),
        _ => Err(Fault::NotNifti),
    }
}

impl Header {
    /// Reads a whole header, of the length and byte order that [`length`] told.
    pub(super) fn parse(bytes: &[u8], big_endian: bool) -> Result<Header, Fault> {
        let b = Bytes { bytes, big_endian };
        let version = if bytes.len() == 540 { 2 } else { 1 };
        let magic = if version == 2 { &bytes[4..12] } else { &bytes[344..348] };
        let pair = match (magic, version) {
            (b"n+1\0", 1) | (b"n+2\0\r\n\x1a\n", 2) => false,
            (b"ni1\0", 1) | (b"ni2\0\r\n\x1a\n", 2) => true,
            ([0, 0, 0, 0], 1) => return Err(Fault::Analyze),
            _ => return Err(Fault::NotNifti),
        };
        let f = if version == 2 { fields_2(&b) } else { fields_1(&b) };
        let (shape, frames) = shape(&f.dim)?;
        let datatype = Datatype::from_code(f.datatype)?;
        if usize::try_from(f.bitpix) != Ok(8 * datatype.size()) {
            let reason =
                format!("bitpix is {} where data type {datatype} has {}", f.bitpix, 8 * datatype.size());
            return Err(Fault::Header(reason));
        }
        let (slope, inter) = match (f.slope, f.inter) {
            (slope, _) if slope == 0.0 || !slope.is_finite() => (1.0, 0.0),
            (_, inter) if !inter.is_finite() => {
                return Err(Fault::Header(format!("scl_slope is {} but scl_inter is {inter}", f.slope)));
            }
            scaling => scaling,
        };
        let (affine, affine_source) = affine(&f, shape)?;
        let text = &bytes[f.description.0..f.description.1];
        let text = text.split(|&c| c == 0).next().unwrap_or_default();
        Ok(Header {
            version,
            pair,
            gzip: false,
            big_endian,
            shape,
            frames,
            spacing: spacing(&affine),
            orientation: orientation::code(&affine),
            affine,
            affine_source,
            datatype,
            slope,
            inter,
            space_unit: ["unknown", "m", "mm", "um"].get((f.units & 7) as usize).unwrap_or(&"unknown"),
            time_unit: ["unknown", "s", "ms", "us"].get((f.units >> 3 & 7) as usize).unwrap_or(&"unknown"),
            description: String::from_utf8_lossy(text).trim().to_string(),
            extensions: 0,
            offset: offset(f.offset, pair, bytes.len() as u64 + 4)?,
        })
    }
    /// Bytes of all voxels, of all frames.
    pub(super) fn voxel_bytes(&self) -> u128 {
        let voxels = self.shape.iter().map(|&n| n as u128).product::<u128>();
        voxels * self.frames as u128 * self.datatype.size() as u128
    }
}

/// Three axes and the number of frames along the fourth; further ones only where they hold one.
fn shape(dim: &[i64; 8]) -> Result<([usize; 3], usize), Fault> {
    let n = usize::try_from(dim[0]).ok().filter(|n| (1..=7).contains(n));
    let n = n.ok_or_else(|| Fault::Header(format!("dim[0], the number of axes, is {}", dim[0])))?;
    let used = &dim[1..=n];
    // 2³¹ keeps the product of seven within u128 and every axis within what a file could hold.
    if used.iter().any(|&d| d <= 0 || d > 1 << 31) {
        return Err(Fault::Header(format!("dim is {used:?}; every axis must have at least one voxel")));
    }
    if used.iter().skip(4).any(|&d| d != 1) {
        let reason = format!("{n} axes, {used:?}; only one 3-D volume a file: extract a frame first");
        return Err(Fault::Unsupported(reason));
    }
    // More frames than NIfTI-1 can count are a damaged header, not a scan.
    if used.get(3).is_some_and(|&frames| frames > 32_767) {
        return Err(Fault::Header(format!("dim is {used:?}; that many frames are no scan")));
    }
    let axis = |i: usize| used.get(i).map_or(1, |&d| d as usize);
    Ok((std::array::from_fn(axis), axis(3)))
}

/// Where the voxels begin. 0 in a single file stands for "right behind the header", `least`.
fn offset(stated: f64, pair: bool, least: u64) -> Result<u64, Fault> {
    // Above 2⁵³ a double no longer counts bytes.
    let whole = stated.is_finite() && stated.fract() == 0.0 && (0.0..9e15).contains(&stated);
    match stated as u64 {
        0 if whole && !pair => Ok(least),
        at if whole && (pair || at >= least) => Ok(at),
        _ => Err(Fault::Header(format!("vox_offset is {stated}"))),
    }
}

/// Voxel indices to RAS millimetres: the sform, else the qform, else pixdim alone.
fn affine(f: &Fields, shape: [usize; 3]) -> Result<([[f64; 4]; 4], AffineSource), Fault> {
    let mut m = [[0.0; 4]; 4];
    m[3][3] = 1.0;
    let source = if f.sform > 0 {
        m[..3].copy_from_slice(&f.rows);
        AffineSource::Sform
    } else if f.qform > 0 {
        let rotation = rotation(f.quaternion[0], f.quaternion[1], f.quaternion[2])?;
        // pixdim[0] is the handedness; 0 counts as +1 (nifti1.h).
        let z = if f.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
        let size = [f.pixdim[1].abs(), f.pixdim[2].abs(), z * f.pixdim[3].abs()];
        for (i, row) in m[..3].iter_mut().enumerate() {
            *row = [
                rotation[i][0] * size[0],
                rotation[i][1] * size[1],
                rotation[i][2] * size[2],
                f.quaternion[3 + i],
            ];
        }
        AffineSource::Qform
    } else {
        for i in 0..3 {
            let size = if i == 0 { -f.pixdim[1].abs() } else { f.pixdim[i + 1].abs() };
            m[i][i] = size;
            m[i][3] = -size * (shape[i] as f64 - 1.0) / 2.0;
        }
        AffineSource::Pixdim
    };
    if m.iter().flatten().any(|x| !x.is_finite()) {
        return Err(Fault::Header(
            format!("the {source:?} holds numbers that are not finite").to_lowercase(),
        ));
    }
    // Relative to the voxel's size, so that a unit of metres or microns does not matter.
    let volume = spacing(&m).iter().product::<f64>();
    let flatness = orientation::determinant(&m).abs() / volume;
    if volume.is_nan() || volume <= 0.0 || flatness < 1e-3 || !flatness.is_finite() {
        return Err(Fault::Header(
            format!("the {source:?} is singular: its axes span no volume").to_lowercase(),
        ));
    }
    Ok((m, source))
}

/// The rotation of the unit quaternion (a, b, c, d), of which the header stores three.
fn rotation(b: f64, c: f64, d: f64) -> Result<[[f64; 3]; 3], Fault> {
    let square = b * b + c * c + d * d;
    if square.is_nan() || square > 1.02 {
        return Err(Fault::Header(format!("the qform's quaternion ({b}, {c}, {d}) is longer than 1")));
    }
    // Rounding puts a half turn slightly over 1: renormalise, as nifti_clib does.
    let (a, n) = if square > 1.0 - 1e-7 { (0.0, square.sqrt()) } else { ((1.0 - square).sqrt(), 1.0) };
    let (b, c, d) = (b / n, c / n, d / n);
    Ok([
        [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])
}
