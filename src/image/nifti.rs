//! Reads NIfTI-1 and NIfTI-2: single files and pairs, plain or gzipped (told by content), either byte order, every
//! integer and float type. Whatever else a file may be is an error; memory is bounded by what the file really holds.
use super::{
    Error, Volume,
    gzip::Members,
    header::{self, Datatype, Header},
};
use crate::error::OnFile;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

/// Why a file is no image gyrus can use.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The first bytes are not a NIfTI header's.
    #[error("it does not begin with a NIfTI-1 or NIfTI-2 header")]
    NotNifti,
    /// The forerunner format, which does not record left and right reliably.
    #[error("it is ANALYZE 7.5, which does not say which side is left; convert it to NIfTI")]
    Analyze,
    /// A header field that makes no sense.
    #[error("{0}")]
    Header(String),
    /// A legal file of a kind that is not read.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// Fewer bytes than the header says.
    #[error("it ends early: {0}; copy or download it again")]
    Truncated(String),
    /// More bytes behind the voxels than belong there.
    #[error("more than 64 MiB follow the voxels: the header's dimensions do not describe this file")]
    Surplus,
    /// The bytes cannot be had, or their gzip stream is damaged.
    #[error("its bytes cannot be read or decompressed; copy or download it again")]
    Stream(#[source] io::Error),
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Fault::Truncated(e.to_string()),
            _ => Fault::Stream(e),
        }
    }
}

/// No deflate stream expands its input by more than this.
const MAX_EXPANSION: u128 = 1032;
/// Room for voxels that is set aside on the header's word, in voxels (64 MiB); more only as bytes arrive.
const RESERVE: u128 = 1 << 24;
/// Bytes read, decompressed and converted at a time: they stay in the second-level cache on the way.
const PIECE: usize = 1 << 16;
/// How much may follow the voxels.
const MAX_SURPLUS: u64 = 64 << 20;

/// Bytes from a file, with the most that they can be.
struct Source<R> {
    bytes: R,
    limit: u128,
}

/// A file, decompressed on the way where it is gzipped.
type Opened<'a> = Source<Box<dyn Read + 'a>>;

/// Reads the image in `path`: a `.nii`, or either half of a pair, gzipped or not. Scaling is applied; voxels that are
/// not finite are kept. An image of several frames is refused.
pub fn read(path: &Path) -> Result<(Header, Volume), Error> {
    read_mean(path, |header| one_frame(header).map(|()| vec![1.0]))
}

/// Reads the image in `path` as [`read`] does, and of several frames their weighted mean: `weights` sees how many
/// frames there are and gives each its weight, which is divided by their sum.
pub fn read_mean(
    path: &Path,
    weights: impl FnOnce(&Header) -> Result<Vec<f64>, Fault>,
) -> Result<(Header, Volume), Error> {
    let (mut header, mut source, names) = open_header(path)?;
    let fault = |path: &Path| {
        let path = path.to_owned();
        move |fault| Error::Nifti { path, fault }
    };
    let weights = weights(&header).map_err(fault(path))?;
    let data = if header.pair {
        let voxels = names.voxels.as_deref().ok_or_else(|| fault(path)(lonely()))?;
        drain(&mut source.bytes).map_err(fault(&names.header))?;
        let (source, gzip) = open(voxels)?;
        header.gzip = gzip;
        read_voxels(source, &header, 0, &weights).map_err(fault(voxels))?
    } else {
        let at = header.offset;
        read_voxels(source, &header, at, &weights).map_err(fault(path))?
    };
    Ok((header.clone(), Volume { shape: header.shape, affine: header.affine, data }))
}

fn one_frame(header: &Header) -> Result<(), Fault> {
    let ([x, y, z], frames) = (header.shape, header.frames);
    if frames == 1 {
        return Ok(());
    }
    let reason =
        format!("4 axes, [{x}, {y}, {z}, {frames}]; only one 3-D volume a file: extract a frame first");
    Err(Fault::Unsupported(reason))
}

/// Reads an image from the bytes of its one file, gzipped or not, as [`read`] does.
///
/// # Errors
/// Bytes that are no image gyrus can use, or the header of a pair.
pub fn from_bytes(bytes: &[u8]) -> Result<(Header, Volume), Fault> {
    let (mut source, gzip) = decompress(bytes, bytes.len() as u64)?;
    let mut header = read_header(&mut source.bytes)?;
    if header.pair {
        return Err(lonely());
    }
    header.gzip = gzip;
    one_frame(&header)?;
    let data = read_voxels(source, &header, header.offset, &[1.0])?;
    Ok((header.clone(), Volume { shape: header.shape, affine: header.affine, data }))
}

/// Reads what the image in `path` says of itself, without its voxels.
pub fn header(path: &Path) -> Result<Header, Error> {
    let (mut header, _, names) = open_header(path)?;
    if let Some(voxels) = names.voxels.filter(|_| header.pair) {
        header.gzip = open(&voxels)?.1;
    }
    Ok(header)
}

fn lonely() -> Fault {
    Fault::Header("its header belongs to a pair, but there is no .img or .img.gz beside it".into())
}

/// The files of one image.
struct Names {
    header: PathBuf,
    /// The `.img`, where `header` is a `.hdr`.
    voxels: Option<PathBuf>,
}

/// Finds the other half where `path` is named as one half of a pair.
fn names(path: &Path) -> Names {
    let name = path.to_string_lossy();
    let bare = name.strip_suffix(".gz").unwrap_or(&name);
    let suffix = &name[bare.len()..];
    let partner = |stem: &str, kind: &str| {
        // The same compression first; the halves of a pair need not agree.
        let candidates =
            [format!("{stem}.{kind}{suffix}"), format!("{stem}.{kind}"), format!("{stem}.{kind}.gz")];
        candidates.map(PathBuf::from).into_iter().find(|p| p.exists())
    };
    if let Some(stem) = bare.strip_suffix(".hdr") {
        Names { header: path.to_owned(), voxels: partner(stem, "img") }
    } else if let Some(stem) = bare.strip_suffix(".img") {
        match partner(stem, "hdr") {
            Some(header) => Names { header, voxels: Some(path.to_owned()) },
            None => Names { header: path.to_owned(), voxels: None },
        }
    } else {
        Names { header: path.to_owned(), voxels: None }
    }
}

/// Opens the file that has the header and reads it, extensions included.
fn open_header(path: &Path) -> Result<(Header, Opened<'static>, Names), Error> {
    let names = names(path);
    let (mut source, gzip) = open(&names.header)?;
    let header = read_header(&mut source.bytes);
    let mut header = header.map_err(|fault| Error::Nifti { path: names.header.clone(), fault })?;
    header.gzip = gzip;
    Ok((header, source, names))
}

/// Opens a file, decompressing when its content is gzip; true if so.
fn open(path: &Path) -> Result<(Opened<'static>, bool), Error> {
    let file = File::open(path).on_file("read", path)?;
    let length = file.metadata().on_file("read", path)?.len();
    Ok(decompress(BufReader::with_capacity(PIECE, file), length).on_file("read", path)?)
}

/// The content of a file of `length` bytes, decompressed if it is gzip; true if so.
fn decompress<'a>(mut file: impl BufRead + 'a, length: u64) -> io::Result<(Opened<'a>, bool)> {
    let gzip = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let length = u128::from(length);
    Ok(match gzip {
        true => (Source { bytes: Box::new(Members::new(file)), limit: length * MAX_EXPANSION }, true),
        false => (Source { bytes: Box::new(file), limit: length }, false),
    })
}

/// Reads the header and the extensions behind it; a single file is left at its first voxel.
fn read_header(r: &mut impl Read) -> Result<Header, Fault> {
    let mut bytes = [0; 540];
    let cut = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => Fault::Truncated("the header is incomplete".into()),
        _ => Fault::Stream(e),
    };
    r.read_exact(&mut bytes[..4]).map_err(cut)?;
    let (length, big_endian) = header::length([bytes[0], bytes[1], bytes[2], bytes[3]])?;
    r.read_exact(&mut bytes[4..length]).map_err(cut)?;
    let mut header = Header::parse(&bytes[..length], big_endian)?;
    // A pair's extensions fill the rest of the .hdr, a single file's reach to the voxels.
    let room = if header.pair { MAX_SURPLUS } else { header.offset - length as u64 };
    let mut rest = r.take(room);
    header.extensions = count_extensions(&mut rest, big_endian)?;
    io::copy(&mut rest, &mut io::sink())?;
    if rest.limit() > 0 && !header.pair {
        return Err(Fault::Truncated(format!("it should have voxels at byte {}", header.offset)));
    }
    Ok(header)
}

/// Walks the chain of extensions: a flag, then (size, code, content) each; stops where the chain makes no sense.
fn count_extensions(r: &mut impl Read, big_endian: bool) -> Result<usize, Fault> {
    let mut count = 0;
    let mut word = [0; 4];
    if read_full(r, &mut word)? < 4 || word[0] == 0 {
        return Ok(0);
    }
    let mut head = [0; 8];
    while read_full(r, &mut head)? == 8 {
        let size = [head[0], head[1], head[2], head[3]];
        let size = if big_endian { i32::from_be_bytes(size) } else { i32::from_le_bytes(size) };
        let content = match u64::try_from(size) {
            Ok(size @ 16..) if size % 16 == 0 => size - 8,
            _ => break,
        };
        if io::copy(&mut r.take(content), &mut io::sink())? < content {
            break;
        }
        count += 1;
    }
    Ok(count)
}

/// Fills `buffer` as far as the input reaches; how far.
fn read_full(r: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match r.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Reads on to the end, so that a gzip checksum behind the voxels is verified.
fn drain(r: &mut impl Read) -> Result<(), Fault> {
    let surplus = io::copy(&mut r.take(MAX_SURPLUS + 1), &mut io::sink())?;
    if surplus > MAX_SURPLUS { Err(Fault::Surplus) } else { Ok(()) }
}

/// Reads the voxels, of which `before` bytes have been passed: the mean of the frames by their `weights`.
fn read_voxels(
    source: Source<impl Read>,
    header: &Header,
    before: u64,
    weights: &[f64],
) -> Result<Vec<f32>, Fault> {
    let Source { mut bytes, limit } = source;
    let needed = header.voxel_bytes();
    if needed + u128::from(header.offset) > limit {
        let [x, y, z] = header.shape;
        let reason = format!("{x} x {y} x {z} voxels take {needed} bytes, more than the file can hold");
        return Err(Fault::Truncated(reason));
    }
    let skip = header.offset - before;
    if io::copy(&mut (&mut bytes).take(skip), &mut io::sink())? < skip {
        return Err(Fault::Truncated(format!("it should have voxels at byte {}", header.offset)));
    }
    let data = match weights {
        [_] => read_frame(&mut bytes, header)?,
        weights => {
            let total: f64 = weights.iter().sum();
            let mut sums: Vec<f64> = Vec::new();
            for weight in weights {
                let frame = read_frame(&mut bytes, header)?;
                sums.resize(frame.len(), 0.0);
                sums.iter_mut().zip(frame).for_each(|(sum, v)| *sum += weight / total * f64::from(v));
            }
            sums.into_iter().map(|v| v as f32).collect()
        }
    };
    drain(&mut bytes)?;
    Ok(data)
}

/// Reads one volume, converting it piece by piece.
fn read_frame(bytes: &mut impl Read, header: &Header) -> Result<Vec<f32>, Fault> {
    let size = header.datatype.size();
    let count = (header.voxel_bytes() / header.frames as u128 / size as u128) as usize;
    let mut data = Vec::with_capacity(count.min(RESERVE as usize));
    let mut piece = vec![0; PIECE];
    while data.len() < count {
        let want = ((count - data.len()) * size).min(piece.len());
        let got = read_full(bytes, &mut piece[..want])?;
        convert(&piece[..got], header, &mut data);
        if got < want {
            let reason = format!("{count} voxels of {size} bytes are promised, {} are there", data.len());
            return Err(Fault::Truncated(reason));
        }
    }
    Ok(data)
}

/// Appends the voxels in `bytes`, scaled.
fn convert(bytes: &[u8], header: &Header, out: &mut Vec<f32>) {
    match header.datatype {
        Datatype::U8 => each(bytes, header, out, |b| f64::from(u8::from_le_bytes(b))),
        Datatype::I8 => each(bytes, header, out, |b| f64::from(i8::from_le_bytes(b))),
        Datatype::U16 => each(bytes, header, out, |b| f64::from(u16::from_le_bytes(b))),
        Datatype::I16 => each(bytes, header, out, |b| f64::from(i16::from_le_bytes(b))),
        Datatype::U32 => each(bytes, header, out, |b| f64::from(u32::from_le_bytes(b))),
        Datatype::I32 => each(bytes, header, out, |b| f64::from(i32::from_le_bytes(b))),
        Datatype::U64 => each(bytes, header, out, |b| u64::from_le_bytes(b) as f64),
        Datatype::I64 => each(bytes, header, out, |b| i64::from_le_bytes(b) as f64),
        Datatype::F32 => each(bytes, header, out, |b| f64::from(f32::from_le_bytes(b))),
        Datatype::F64 => each(bytes, header, out, f64::from_le_bytes),
    }
}

/// Appends slope · value + inter for each `N` bytes; `value` takes them least significant first. In `f64`, where
/// 32-bit integers and their scaling are exact enough to round once.
#[inline(always)]
fn each<const N: usize>(bytes: &[u8], header: &Header, out: &mut Vec<f32>, value: impl Fn([u8; N]) -> f64) {
    let (voxels, _) = bytes.as_chunks::<N>();
    let Header { slope, inter, .. } = *header;
    if header.big_endian {
        let reversed = |mut b: [u8; N]| {
            b.reverse();
            b
        };
        out.extend(voxels.iter().map(|&b| (value(reversed(b)) * slope + inter) as f32));
    } else if (slope, inter) == (1.0, 0.0) {
        out.extend(voxels.iter().map(|&b| value(b) as f32));
    } else {
        out.extend(voxels.iter().map(|&b| (value(b) * slope + inter) as f32));
    }
}

#[cfg(test)]
#[path = "nifti_tests.rs"]
mod tests;
