//! The `gyrus` command: parse, dispatch, print what went wrong.
use clap::Parser;
use gyrus::{cli, error};
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::Cli::parse().run().unwrap_or_else(|error| {
        eprintln!("gyrus: {}", error::chain(error.as_ref()));
        ExitCode::FAILURE
    })
}
