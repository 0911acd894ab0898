//! `gyrus embed`: features of scans, for other programs to learn from.
use super::{device::Device, inputs::Inputs, prepare::list};
use crate::{
    data::Scan,
    file::write_whole,
    program::{Array, Arrays, arrays},
    train::{Checkpoint, infer::Embedder, samples::Volumes},
};
use serde_json::json;
use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Write the features an encoder gives scans: the mean of its patch tokens, a row per scan.
///
/// As .csv: columns scan, subject, age, f0, f1 and so on. As .safetensors: an array "features" [scans, channels] in
/// f32, and the names of the scans in the metadata, as JSON under "gyrus". Scans that cannot be used are listed at
/// the end and left out; the exit code is then 3.
///
/// Example: gyrus embed runs/mae heads-cache --out features.csv
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A pretrained or fine-tuned run, or its model.safetensors.
    pub model: PathBuf,
    /// Caches, NIfTI files, BIDS folders, folders of NIfTI files, .csv or .tsv manifests.
    #[arg(required = true, value_name = "CACHE|FILE|DIR|CSV")]
    pub inputs: Vec<PathBuf>,
    /// File to write: .safetensors or .csv.
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// The machine that computes.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value_t)]
    pub device: Device,
}

/// Runs the command.
///
/// # Errors
/// A model that cannot be read; a cache prepared for another model; a file of another kind, or that cannot be
/// written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let ending = args.out.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !["csv", "safetensors"].contains(&ending) {
        return Err(format!("{}: give --out the ending .safetensors or .csv", args.out.display()).into());
    }
    let model = Checkpoint::read(&args.model)?;
    let mut embedder = Embedder::new(&model, &args.device.open()?)?;
    let (mut scans, mut features) = (Vec::new(), Vec::new());
    let skipped = Inputs::find(&args.inputs, None, &model.card)?.each(|inputs| {
        let heads: Vec<Volumes> = inputs.iter().map(|input| input.volumes.clone()).collect();
        features.extend(embedder.embed(&heads)?);
        scans.extend(inputs.into_iter().map(|input| input.scan));
        Ok(())
    })?;
    let dim = model.card.task.encoder().shape.dim;
    if ending == "csv" {
        write_csv(&args.out, &scans, &features, dim)?;
    } else {
        let names: Vec<String> = scans.iter().map(|scan| scan.path.display().to_string()).collect();
        let subjects: Vec<&String> = scans.iter().map(|scan| &scan.subject).collect();
        let card = json!({ "model": model.path, "scans": names, "subjects": subjects });
        let array = Array { shape: vec![scans.len(), dim], data: features.concat() };
        arrays::write(&args.out, &Arrays::from([("features".to_owned(), array)]), &card.to_string())?;
    }
    println!("{}: {} scans, {dim} features each", args.out.display(), scans.len());
    if skipped.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    list(&skipped);
    Ok(ExitCode::from(3))
}

fn write_csv(
    path: &Path,
    scans: &[Scan],
    features: &[Vec<f32>],
    dim: usize,
) -> Result<(), crate::error::FileError> {
    write_whole(path, |file| {
        let mut table = csv::Writer::from_writer(file);
        let columns = ["scan", "subject", "age"].map(str::to_owned).into_iter();
        table.write_record(columns.chain((0..dim).map(|i| format!("f{i}"))))?;
        for (scan, features) in scans.iter().zip(features) {
            let age = scan.age.map_or("n/a".to_owned(), |age| age.to_string());
            let about = [scan.path.display().to_string(), scan.subject.clone(), age].into_iter();
            table.write_record(about.chain(features.iter().map(f32::to_string)))?;
        }
        table.flush()
    })
}
