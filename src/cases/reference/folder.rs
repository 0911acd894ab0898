//! The files of a recording, and what can be wrong with them.
use crate::error::{FileError, OnFile};
use crate::machine::Real;
use crate::model::{Encoder, Mae, Shape};
use crate::program::Cpu;
use crate::program::arrays::{self, Arrays};
use crate::tape::{Precision, Role, Tensor};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What can be wrong with a recording.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file does not hold arrays of numbers.
    #[error(transparent)]
    Arrays(#[from] arrays::Error),
    /// meta.json is not what it should be.
    #[error("{}: {source}", path.display())]
    Meta {
        /// The file.
        path: PathBuf,
        /// Where, and what is wrong.
        source: serde_json::Error,
    },
    /// A model or optimiser that this program does not have.
    #[error("{}: `{key}` is {found}, but {rule}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it has to be.
        rule: String,
    },
    /// A tensor that a recording must have.
    #[error("{}: tensor `{name}` is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor of another shape than meta.json says.
    #[error("{}: tensor `{name}` has shape {found:?}, not the {expected:?} that meta.json implies", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it has to be.
        expected: Vec<usize>,
    },
}

/// meta.json, as far as it is needed.
#[derive(Debug, Deserialize)]
pub(super) struct Meta {
    volume: [usize; 3],
    patch: usize,
    dim: usize,
    depth: usize,
    heads: usize,
    ddim: usize,
    ddepth: usize,
    dheads: usize,
    channels: usize,
    mask_ratio: f64,
    mlp_ratio: f64,
    layernorm_eps: f64,
    norm_pix_eps: f64,
    pub(super) betas: [f64; 2],
    pub(super) adam_eps: f64,
    pub(super) weight_decay: f64,
    pub(super) clip_norm: f64,
    pub(super) steps: Vec<Step>,
    pub(super) decayed: Vec<String>,
}

/// One recorded update.
#[derive(Debug, Deserialize)]
pub(super) struct Step {
    pub(super) lr: f64,
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
}

/// A recording.
pub(super) struct Folder {
    path: PathBuf,
    pub(super) meta: Meta,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = path.join("meta.json");
        let text = std::fs::read_to_string(&file).on_file("read", &file)?;
        let meta =
            serde_json::from_str(&text).map_err(|source| Error::Meta { path: file.clone(), source })?;
        let folder = Folder { path: path.to_owned(), meta };
        folder.check_settings(&file)?;
        Ok(folder)
    }
    /// Refuses what our models and operations do not have, before they panic over it.
    fn check_settings(&self, file: &Path) -> Result<(), Error> {
        let m = &self.meta;
        let require = |holds: bool, key, found: String, rule: &str| {
            let refused = || Error::Setting { path: file.to_owned(), key, found, rule: rule.to_owned() };
            if holds { Ok(()) } else { Err(refused()) }
        };
        let whole = m.patch > 0 && m.volume.iter().all(|n| *n > 0 && n.is_multiple_of(m.patch));
        require(m.channels == 1, "channels", m.channels.to_string(), "only 1 is supported")?;
        require(
            whole,
            "volume",
            format!("{:?}", m.volume),
            &format!("each axis must be a multiple of {}", m.patch),
        )?;
        for (key, dim, heads) in [("heads", m.dim, m.heads), ("dheads", m.ddim, m.dheads)] {
            let splits = heads > 0 && dim > 0 && dim.is_multiple_of(heads);
            require(splits, key, heads.to_string(), &format!("must divide the width, {dim}"))?;
        }
        require(
            (0.0..1.0).contains(&m.mask_ratio),
            "mask_ratio",
            m.mask_ratio.to_string(),
            "must be in 0 to 1",
        )?;
        let none = self.model().kept() == 0;
        require(!none, "mask_ratio", m.mask_ratio.to_string(), "a patch of each volume must be kept")?;
        require(m.mlp_ratio == 4.0, "mlp_ratio", m.mlp_ratio.to_string(), "our blocks have 4")?;
        for (key, eps) in [("layernorm_eps", m.layernorm_eps), ("norm_pix_eps", m.norm_pix_eps)] {
            require(eps == 1e-6, key, eps.to_string(), "our operations have 1e-6")?;
        }
        Ok(())
    }
    /// The masked autoencoder that was recorded.
    pub(super) fn model(&self) -> Mae {
        let m = &self.meta;
        let shape = Shape { dim: m.dim, depth: m.depth, heads: m.heads };
        Mae {
            encoder: Encoder {
                modalities: vec!["T1w".into()],
                grid: m.volume,
                patch: m.patch,
                shape,
                cls_token: true,
            },
            decoder: Shape { dim: m.ddim, depth: m.ddepth, heads: m.dheads },
            mask_ratio: m.mask_ratio,
            norm_pix: true,
        }
    }
    /// The arrays of `name`.safetensors.
    pub(super) fn arrays(&self, name: &str) -> Result<File, Error> {
        let path = self.path.join(format!("{name}.safetensors"));
        let (arrays, _) = arrays::read(&path)?;
        Ok(File { path, arrays })
    }
}

/// A file of arrays.
pub(super) struct File {
    path: PathBuf,
    arrays: Arrays<f64>,
}

impl File {
    /// The names of all arrays.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.keys().map(String::as_str)
    }
    /// The extents of an array.
    pub(super) fn shape(&self, name: &str) -> Result<&[usize], Error> {
        let missing = || Error::Missing { path: self.path.clone(), name: name.to_owned() };
        Ok(&self.arrays.get(name).ok_or_else(missing)?.shape)
    }
    /// An array that must have this shape.
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<&[f64], Error> {
        let found = self.shape(name)?;
        if found != shape {
            let (path, name) = (self.path.clone(), name.to_owned());
            return Err(Error::Shape { path, name, found: found.to_vec(), expected: shape.to_vec() });
        }
        Ok(&self.arrays[name].data)
    }
    /// The extents of an array of volumes, by sample: B.
    pub(super) fn batch(&self, volume: &str, grid: [usize; 3]) -> Result<usize, Error> {
        let batch = self.shape(volume)?.first().copied().unwrap_or(0);
        self.get(volume, &[batch, 1, grid[0], grid[1], grid[2]])?;
        Ok(batch)
    }
    /// Writes every parameter and frozen tensor of `cpu`, found here under `prefix` and its name.
    pub(super) fn load<F: Precision>(&self, cpu: &mut Cpu<F>, prefix: &str) -> Result<(), Error> {
        for t in weights(cpu) {
            let info = cpu.tape().info(t);
            let name = info.name.as_deref().expect("weights have names");
            let values = self.get(&format!("{prefix}{name}"), &info.shape)?;
            write(cpu, t, values);
        }
        Ok(())
    }
}

/// Parameters and frozen tensors.
pub(super) fn weights<F: Precision>(cpu: &Cpu<F>) -> Vec<Tensor> {
    let tape = cpu.tape();
    tape.with_role(Role::Param).chain(tape.with_role(Role::Frozen)).collect()
}

/// Writes `f64` values in the precision of `cpu`.
pub(super) fn write<F: Precision>(cpu: &mut Cpu<F>, t: Tensor, values: &[f64]) {
    cpu.write(t, &values.iter().map(|&v| F::of(v)).collect::<Vec<F>>());
}

/// What `cpu` has computed, in `f64`.
pub(super) fn read<F: Precision>(cpu: &Cpu<F>, t: Tensor) -> Vec<f64> {
    cpu.read(t).iter().map(|v| Real::f64(*v)).collect()
}
