//! The commands, a file each; their doc comments are the help.
pub mod bench;
pub mod check;
pub mod data;
pub mod demo;
pub mod device;
pub mod distort;
pub mod doctor;
pub mod embed;
pub mod evaluate;
pub mod finetune;
mod inputs;
pub mod inspect;
pub mod phantom;
pub mod predict;
pub mod prepare;
pub mod pretrain;
pub mod qc;
mod qc_table;
pub mod reconstruct;
pub mod report;
pub mod run_folder;
mod sources;
mod step;
pub mod study;
pub mod watch;

use std::error::Error;
use std::process::ExitCode;

/// 3-D masked autoencoders for brain MRI: from NIfTI files to brain age.
///
/// The way through: prepare a dataset, pretrain on it, finetune for age, then predict and evaluate.
#[derive(Debug, clap::Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Data(data::Args),
    Prepare(prepare::Args),
    Pretrain(pretrain::Args),
    Finetune(finetune::Args),
    Predict(predict::Args),
    Evaluate(evaluate::Args),
    Reconstruct(reconstruct::Args),
    Embed(embed::Args),
    Report(report::Args),
    Inspect(inspect::Args),
    Phantom(phantom::Args),
    Distort(distort::Args),
    Qc(qc::Args),
    Study(study::Args),
    Watch(watch::Args),
    Check(check::Args),
    Bench(bench::Args),
    Demo(demo::Args),
    Doctor(doctor::Args),
}

impl Cli {
    /// Runs the command that was asked for.
    ///
    /// # Errors
    /// Whatever stops it, with the file, key or value it is about.
    pub fn run(&self) -> Result<ExitCode, Box<dyn Error>> {
        match &self.command {
            Command::Data(args) => data::run(args),
            Command::Prepare(args) => prepare::run(args),
            Command::Pretrain(args) => pretrain::run(args),
            Command::Finetune(args) => finetune::run(args),
            Command::Predict(args) => predict::run(args),
            Command::Evaluate(args) => evaluate::run(args),
            Command::Reconstruct(args) => reconstruct::run(args),
            Command::Embed(args) => embed::run(args),
            Command::Report(args) => report::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Phantom(args) => phantom::run(args),
            Command::Distort(args) => distort::run(args),
            Command::Qc(args) => qc::run(args),
            Command::Study(args) => study::run(args),
            Command::Watch(args) => watch::run(args),
            Command::Check(args) => check::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Demo(args) => demo::run(args),
            Command::Doctor(args) => doctor::run(args),
        }
    }
}
