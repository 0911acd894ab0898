//! `gyrus report`: a page on a run.
use super::{
    device::Device,
    inputs::Inputs,
    reconstruct,
    run_folder::models,
    study::data::{is_study, open},
};
use crate::{
    data::Cache,
    error::OnFile,
    file::write_bytes,
    model::Mae,
    report::{brain_age, pretraining, pretraining::Reconstructed, qc, study},
    study::{predictions, trial::collect, trial::results::Example},
    train::{Checkpoint, checkpoint::Task, reconstruct::Reconstructor},
};
use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Write a page on a run: one HTML file that needs no network and nothing beside it.
///
/// RUN is a run of gyrus pretrain (settings, curves, reconstructions in a viewer of slices), a run of gyrus finetune
/// (errors with intervals, predicted against true age, the worst scans), the folder of gyrus qc (every scan with its slices,
/// grade and faults), or that of gyrus study (arms, their differences and what these allow one to say), finished or not.
///
/// Example: gyrus report runs/mae
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of the run.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The page; RUN/report.html by default.
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The cache that was pretrained on; looked for beside the run by default.
    #[arg(long, value_name = "CACHE")]
    pub cache: Option<PathBuf>,
    /// At most this many reconstructions, of the first scans.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=16))]
    pub count: u32,
    /// Seed of their masks.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The machine that reconstructs.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value_t)]
    pub device: Device,
}

/// Runs the command.
///
/// # Errors
/// A folder that is none of these; files of it that cannot be read; a cache that does not fit the model.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let page = page(args)?;
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    write_bytes(&out, page.as_bytes())?;
    println!("{} ({:.1} MB)", out.display(), page.len() as f64 / 1e6);
    Ok(ExitCode::SUCCESS)
}

fn page(args: &Args) -> Result<String, Box<dyn Error>> {
    let run = &args.run;
    if run.join("qc.tsv").exists() {
        return Ok(qc::page(run)?);
    }
    if is_study(run) {
        return Ok(study::page(&collect(&open(run)?)?));
    }
    let folders = models(run);
    if !folders.iter().all(|folder| folder.join("model.safetensors").exists()) {
        let wanted = "it holds no run; give a run of gyrus pretrain or gyrus finetune, or the folder that gyrus qc or \
                      gyrus study wrote";
        return Err(format!("{}: {wanted}", run.display()).into());
    }
    let mut read = folders.iter().map(|folder| Checkpoint::read(folder)).collect::<Result<Vec<_>, _>>()?;
    if let (1, Task::Pretraining(mae)) = (read.len(), read[0].card.task.clone()) {
        let checkpoint = read.remove(0);
        let (examples, why_none) = examples(args, &checkpoint, &mae)?;
        return Ok(pretraining::page(run, &checkpoint, &mae, &examples, &why_none)?);
    }
    let table = run.join("predictions.csv");
    let table = if table.exists() { predictions::read(&table)? } else { Vec::new() };
    let of_folder =
        |(folder, checkpoint): (PathBuf, Checkpoint)| brain_age::Model { folder, card: checkpoint.card };
    let models: Vec<brain_age::Model> = folders.into_iter().zip(read).map(of_folder).collect();
    Ok(brain_age::page(run, &models, &table)?)
}

/// What the model makes of the first scans of its cache; or else why nothing is shown.
fn examples(
    args: &Args,
    checkpoint: &Checkpoint,
    mae: &Mae,
) -> Result<(Vec<Reconstructed>, String), Box<dyn Error>> {
    let card = &checkpoint.card;
    let Some(cache) = args.cache.clone().or_else(|| find_cache(&args.run, &card.data.cache)) else {
        let why = "The cache that the model learned from was not found beside the run; gyrus report RUN --cache CACHE \
                   shows reconstructions.";
        return Ok((Vec::new(), why.to_owned()));
    };
    let mut reconstructor = Reconstructor::new(checkpoint, &args.device.open()?)?;
    let mut inputs = Inputs::find(&[cache], None, card)?;
    inputs.truncate(args.count as usize);
    let modalities = &mae.encoder.modalities;
    let mut examples = Vec::new();
    let skipped = reconstruct::each(inputs, &mut reconstructor, args.seed, |of| {
        let reconstruct::Made { scan, modality, original, made, .. } = of;
        let mut label = scan.subject.clone();
        label.extend(scan.session.iter().flat_map(|session| [" ", session]));
        if modalities.len() > 1 {
            label += &format!(", {modality}");
        }
        let (grid, spacing) = (card.preprocessing.grid, card.preprocessing.nominal_spacing());
        let (masked, reconstruction) = (made.masked, made.volume);
        let example = Example { label, original, masked, reconstruction, grid, spacing };
        examples.push(Reconstructed { example, mse: made.mse, psnr: made.psnr });
    })?;
    if !skipped.is_empty() {
        super::prepare::list(&skipped);
    }
    Ok((examples, "No scan of the cache could be reconstructed.".to_owned()))
}

/// The cache with this hash in the folders around a run: beside it, or beside the folder it is in.
fn find_cache(run: &Path, hash: &str) -> Option<PathBuf> {
    let run = run.canonicalize().ok()?;
    let is_it = |path: &PathBuf| {
        path.join("cache.json").exists() && Cache::open(path).is_ok_and(|cache| cache.hash() == hash)
    };
    run.ancestors().skip(1).take(2).find_map(|folder| {
        let mut beside: Vec<PathBuf> =
            fs::read_dir(folder).on_file("list", folder).ok()?.flatten().map(|entry| entry.path()).collect();
        beside.sort();
        beside.into_iter().find(is_it)
    })
}
