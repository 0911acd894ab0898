//! `gyrus demo`: the whole way on synthetic heads, as a user would type it.
use super::step;
use crate::{error::OnFile, file::write_whole};
use std::{error::Error, fs, io::Write, path::PathBuf, process::ExitCode, time::Instant};

/// Run everything once on synthetic heads: no data are needed, and it takes about a minute.
///
/// Each step is printed as the command line that does it. The grid is coarse and training is short: enough for ages
/// better than predicting the mean, far from what a full training reaches.
///
/// Example: gyrus demo --out gyrus-demo
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write; it must not hold a demo yet
    #[arg(long, short, value_name = "DIR", default_value = "gyrus-demo")]
    pub out: PathBuf,
    /// How many synthetic people
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(12..=1000))]
    pub subjects: u32,
    /// Seed of the people
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// What `gyrus pretrain --config` is given.
const PRETRAIN: &str = "\
# Settings of gyrus pretrain; what is not here has its default (gyrus pretrain --defaults).
[model]
patch = 8

[train]
epochs = 30
batch = 8
warmup_epochs = 3
validation = 0
";

/// What `gyrus finetune --config` is given.
const FINETUNE: &str = "\
# Settings of gyrus finetune; what is not here has its default (gyrus finetune --defaults).
[train]
epochs = 8
warmup_epochs = 1
lr = 2e-4
";

/// Why, and the command line with {out}, {subjects} and {seed} to be filled in.
const STEPS: [(&str, &str); 6] = [
    (
        "Synthetic heads stand in for a dataset",
        "phantom --out {out}/heads --subjects {subjects} --seed {seed} --spacing 4",
    ),
    ("Crop to the brain, resample, normalise", "prepare {out}/heads --out {out}/cache --grid 32 40 32"),
    (
        "Learn to fill in removed patches, without ages",
        "pretrain {out}/cache --out {out}/mae --config {out}/pretrain.toml",
    ),
    ("See what it fills in", "reconstruct {out}/mae {out}/cache --out {out}/pictures"),
    (
        "Learn ages; each person is then predicted by a model that was not trained on their age",
        "finetune {out}/cache --from {out}/mae --folds 3 --out {out}/age --config {out}/finetune.toml",
    ),
    (
        "Predict a file, by the mean of all models",
        "predict {out}/age {out}/heads/sub-001/anat/sub-001_T1w.nii.gz",
    ),
];

/// Runs the command.
///
/// # Errors
/// A folder that holds a demo already; whatever stops a step.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    if args.out.exists() {
        let out = args.out.display();
        return Err(format!("{out}: exists already; give another --out, or remove it").into());
    }
    fs::create_dir_all(&args.out).on_file("create", &args.out)?;
    for (name, text) in [("pretrain.toml", PRETRAIN), ("finetune.toml", FINETUNE)] {
        write_whole(&args.out.join(name), |file| file.write_all(text.as_bytes()))?;
    }
    let (out, started) = (args.out.to_string_lossy(), Instant::now());
    for (number, (why, line)) in STEPS.iter().enumerate() {
        let filled = |word: &str| {
            let word = word.replace("{subjects}", &args.subjects.to_string());
            word.replace("{seed}", &args.seed.to_string()).replace("{out}", &out)
        };
        println!("[{}/{}] {why}", number + 1, STEPS.len());
        let begun = Instant::now();
        step::run(&line.split_whitespace().map(filled).collect::<Vec<_>>())?;
        println!("({:.1} s)\n", begun.elapsed().as_secs_f64());
    }
    println!("Done in {:.0} s. Where to look next:", started.elapsed().as_secs_f64());
    println!("  {out}/pictures/montage.png  what the model saw and what it filled in");
    println!(
        "  {out}/age/predictions.csv   ages, true and predicted; gyrus evaluate {out}/age measures them again"
    );
    println!(
        "  {out}/heads                 a BIDS folder: put your own in its place and begin with gyrus prepare"
    );
    println!("  tensorboard --logdir {out}  the curves of all runs");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn every_step_is_a_command_that_exists() {
        for (_, line) in STEPS {
            let words = line.replace("{subjects}", "12").replace("{seed}", "0");
            Cli::try_parse_from(["gyrus"].into_iter().chain(words.split_whitespace())).unwrap();
        }
    }
}
