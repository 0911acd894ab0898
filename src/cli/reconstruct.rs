//! `gyrus reconstruct`: what a masked autoencoder sees, and what it makes of it.
use super::{device::Device, inputs::Inputs, prepare::list};
use crate::{
    data::{Scan, Skipped},
    error::OnFile,
    image::{self, Storage, Volume},
    report::montage::{self, Sample},
    train::{
        Checkpoint,
        reconstruct::{Reconstruction, Reconstructor},
    },
};
use std::{error::Error, fs, path::Path, path::PathBuf, process::ExitCode};

/// Draw scans, what a pretrained model sees of them, and what it makes of that.
///
/// Writes montage.png: in columns the original, the input with patches removed, the reconstruction (predicted where
/// patches were removed, the original elsewhere) and the difference. A model trained with norm_pix predicts patches
/// without their mean and spread: the true ones are put back, so overall brightness is given away, and only the
/// structure within a patch is the model's work.
///
/// Example: gyrus reconstruct runs/mae heads-cache --out pictures
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A pretrained run, or its model.safetensors.
    pub model: PathBuf,
    /// Caches, NIfTI files, BIDS folders, folders of NIfTI files, .csv or .tsv manifests.
    #[arg(required = true, value_name = "CACHE|FILE|DIR|CSV")]
    pub inputs: Vec<PathBuf>,
    /// Folder to write into.
    #[arg(long, short, value_name = "DIR")]
    pub out: PathBuf,
    /// At most this many scans, the first ones.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub count: u32,
    /// Seed of the masks.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write each scan's three volumes as NIfTI too. They lie where the scan lies; rows of a cache, which does not
    /// keep that, lie around the origin. Removed voxels are NaN in the masked one.
    #[arg(long)]
    pub nifti: bool,
    /// The machine that computes.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value_t)]
    pub device: Device,
}

/// Runs the command.
///
/// # Errors
/// A model that cannot be read or reconstructs nothing; a cache prepared for another model; no scan that can be used;
/// files that cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let model = Checkpoint::read(&args.model)?;
    let mut reconstructor = Reconstructor::new(&model, &args.device.open()?)?;
    let mut inputs = Inputs::find(&args.inputs, None, &model.card)?;
    inputs.truncate(args.count as usize);
    let modalities = reconstructor.modalities().to_vec();
    let mut done = Vec::new();
    let skipped = each(inputs, &mut reconstructor, args.seed, |made| {
        let Made { number, scan, affine, modality, original, made } = made;
        let (mut name, mut file) = (scan.path.display().to_string(), format!("{number}_{}", scan.subject));
        if modalities.len() > 1 {
            name += &format!(", {modality}");
            file += &format!("_{modality}");
        }
        done.push(Drawn { name, file, affine, original, made });
    })?;
    if !done.is_empty() {
        write(args, &done, model.card.preprocessing.grid)?;
        if (0..modalities.len()).any(|m| reconstructor.needs_true_statistics(m)) {
            println!(
                "The model was trained with norm_pix: each removed patch of MRI has its true mean and spread in the \
                 picture and in these numbers."
            );
        }
    }
    if skipped.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    list(&skipped);
    Ok(ExitCode::from(3))
}

/// A volume of an input, and what a model made of it.
pub(super) struct Made<'a> {
    /// The input's number, from 1.
    pub(super) number: u32,
    pub(super) scan: &'a Scan,
    pub(super) affine: [[f64; 4]; 4],
    pub(super) modality: &'a str,
    pub(super) original: Vec<f32>,
    pub(super) made: Reconstruction,
}

/// Removes patches of every volume of `inputs` and has them filled in. Returns the inputs that could not be used.
pub(super) fn each(
    inputs: Inputs<'_>,
    reconstructor: &mut Reconstructor,
    seed: u64,
    mut take: impl FnMut(Made<'_>),
) -> Result<Vec<Skipped>, Box<dyn Error>> {
    let modalities = reconstructor.modalities().to_vec();
    let mut number = 0;
    inputs.each(|inputs| {
        for input in inputs {
            let made = reconstructor.reconstruct(&input.volumes, seed, number)?;
            number += 1;
            for (modality, (original, made)) in modalities.iter().zip(input.volumes.into_iter().zip(made)) {
                let (Some(original), Some(made)) = (original, made) else { continue };
                let (scan, affine) = (&input.scan, input.affine);
                take(Made { number, scan, affine, modality, original, made });
            }
        }
        Ok(())
    })
}

/// A volume and what was made of it.
struct Drawn {
    /// What it is called in the table.
    name: String,
    /// What its files' names begin with.
    file: String,
    affine: [[f64; 4]; 4],
    original: Vec<f32>,
    made: Reconstruction,
}

/// Writes the pictures of `done` and prints how near they come.
fn write(args: &Args, done: &[Drawn], grid: [usize; 3]) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(&args.out).on_file("create", &args.out)?;
    let samples: Vec<Sample> = done
        .iter()
        .map(|Drawn { original, made, .. }| Sample {
            original,
            masked: &made.masked,
            reconstruction: &made.volume,
        })
        .collect();
    let picture = args.out.join("montage.png");
    montage::write(&picture, &montage::draw(&samples, grid, 1))?;
    let title = "removed brain voxels of";
    let width = done.iter().map(|drawn| drawn.name.len()).fold(title.len(), usize::max);
    println!("{}\n{title:width$}  {:>9}  {:>9}", picture.display(), "MSE", "PSNR (dB)");
    for Drawn { name, file, affine, original, made } in done {
        println!("{name:width$}  {:>9.4}  {:>9.2}", made.mse, made.psnr);
        if args.nifti {
            let volumes =
                [("original", original), ("masked", &made.masked), ("reconstruction", &made.volume)];
            for (what, data) in volumes {
                write_nifti(&args.out.join(format!("{file}_{what}.nii.gz")), data, grid, *affine)?;
            }
        }
    }
    Ok(())
}

/// Writes `data`, which is `[x][y][z]` with z fastest; NIfTI's first axis is the fastest.
fn write_nifti(
    path: &Path,
    data: &[f32],
    [nx, ny, nz]: [usize; 3],
    affine: [[f64; 4]; 4],
) -> Result<(), image::Error> {
    let places = (0..nz).flat_map(|z| (0..ny).flat_map(move |y| (0..nx).map(move |x| (x * ny + y) * nz + z)));
    let volume = Volume { shape: [nx, ny, nz], affine, data: places.map(|at| data[at]).collect() };
    image::write(path, &volume, Storage::F32)
}
