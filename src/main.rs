//! The `gyrus` command: parse, dispatch, print what went wrong.
use clap::Parser;
use gyrus::{cli, error};
use std::{panic, process, process::ExitCode};

fn main() -> ExitCode {
    end_quietly_with_the_reader();
    cli::Cli::parse().run().unwrap_or_else(|error| {
        eprintln!("gyrus: {}", error::chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

/// What a shell reports of a program that SIGPIPE ended: 128 + 13.
const READER_GONE: i32 = 141;

/// `println!` panics when nobody reads any more, as in `gyrus inspect .. | head -1`, and no `Result` comes of it. So the
/// panic's message, which is the standard library's, is looked at, as rustc itself does it: where the pipe is broken the
/// program ends as other filters do, without a word. Any other panic is told as ever.
fn end_quietly_with_the_reader() {
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let printing = |text: &str| text.starts_with("failed printing to std");
        // EPIPE, on every Unix.
        let broken = |text: &str| text.ends_with("(os error 32)");
        if info.payload_as_str().is_some_and(|text| printing(text) && broken(text)) {
            process::exit(READER_GONE);
        }
        told(info);
    }));
}
