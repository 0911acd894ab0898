//! Arrays with names, as safetensors files: weights, optimiser states, reference steps.
use crate::error::{FileError, OnFile};
use crate::file::write_whole;
use crate::machine::Real;
use bytemuck::cast_slice;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, View};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    io::Write,
    path::{Path, PathBuf},
};

/// What can be wrong with a file of arrays.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not safetensors, or damaged.
    #[error("{}: not a readable safetensors file: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// An element type that is not a number this program reads.
    #[error("{}: array `{name}` holds {dtype:?}, not numbers", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The array.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
}

/// An array of `F`.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<F> {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements, last axis contiguous.
    pub data: Vec<F>,
}

/// Arrays by name.
pub type Arrays<F> = BTreeMap<String, Array<F>>;

/// The one metadata key of our files: with two, safetensors would write them in an order that changes.
const CARD: &str = "gyrus";

/// Reads all arrays of a file, whatever their number type, as `F`; and the text stored with them, if any.
pub fn read<F: Real>(path: &Path) -> Result<(Arrays<F>, Option<String>), Error> {
    let bytes = std::fs::read(path).on_file("read", path)?;
    let format = |source| Error::Format { path: path.to_owned(), source };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
    let card = header.metadata().as_ref().and_then(|m| m.get(CARD).cloned());
    let file = SafeTensors::deserialize(&bytes).map_err(format)?;
    let mut arrays = Arrays::default();
    for (name, view) in file.iter() {
        let data = numbers(view.dtype(), view.data()).ok_or_else(|| Error::Dtype {
            path: path.to_owned(),
            name: name.to_owned(),
            dtype: view.dtype(),
        })?;
        arrays.insert(name.to_owned(), Array { shape: view.shape().to_vec(), data });
    }
    Ok((arrays, card))
}

fn numbers<F: Real>(dtype: Dtype, bytes: &[u8]) -> Option<Vec<F>> {
    fn each<const N: usize, F: Real>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<F> {
        bytes.as_chunks().0.iter().map(|&b| F::of(f(b))).collect()
    }
    Some(match dtype {
        Dtype::F64 => each(bytes, f64::from_le_bytes),
        Dtype::F32 => each(bytes, |b| f32::from_le_bytes(b).into()),
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).into()),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).into()),
        Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b).into()),
        Dtype::U8 => each(bytes, |[b]| b.into()),
        _ => return None,
    })
}

struct F32<'a>(&'a Array<f32>);

impl View for F32<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.0.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(cast_slice(&self.0.data))
    }
    fn data_len(&self) -> usize {
        size_of_val(&self.0.data[..])
    }
}

/// Writes arrays, and a text about them: the whole file or nothing.
pub fn write(path: &Path, arrays: &Arrays<f32>, card: &str) -> Result<(), Error> {
    let format = |source| Error::Format { path: path.to_owned(), source };
    let views = arrays.iter().map(|(name, array)| (name, F32(array)));
    let card = HashMap::from([(CARD.to_owned(), card.to_owned())]);
    let bytes = safetensors::serialize(views, Some(card)).map_err(format)?;
    Ok(write_whole(path, |file| file.write_all(&bytes))?)
}
