//! One command of several, run as a user would type it.
use super::Cli;
use clap::Parser;
use std::error::Error;

/// Prints the command line `gyrus` `words` and runs it. Inputs that had to be left out were said, and stop nothing.
///
/// # Errors
/// What the command says.
///
/// # Panics
/// On words that are no command line.
pub(super) fn run(words: &[String]) -> Result<(), Box<dyn Error>> {
    let quoted = |word: &String| {
        if word.contains(char::is_whitespace) { format!("'{word}'") } else { word.clone() }
    };
    println!("$ gyrus {}", words.iter().map(quoted).collect::<Vec<_>>().join(" "));
    let line = std::iter::once("gyrus".to_owned()).chain(words.iter().cloned());
    Cli::try_parse_from(line).expect("steps are well formed").run()?;
    Ok(())
}
