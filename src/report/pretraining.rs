//! The page of a pretraining run.
use super::{
    chart::Lines,
    html::{Cell, Column, Page, Table, details, figures, fixed, numbers, paragraph},
    run::{Log, facts, settings, smooth, thousands},
    viewer,
};
use crate::{
    error::FileError,
    model::Mae,
    study::trial::results::Example,
    train::{Card, Checkpoint},
};
use std::path::Path;

/// What the model made of a scan.
#[derive(Clone, Debug)]
pub struct Reconstructed {
    /// The scan, for the viewer.
    pub example: Example,
    /// Mean squared error over the removed brain voxels, of intensities with SD 1; NaN where none was removed.
    pub mse: f64,
    /// Peak signal-to-noise ratio over the same voxels, dB.
    pub psnr: f64,
}

/// The page of the run in `folder`, whose model is `checkpoint`, a masked autoencoder `mae`; with examples of what it
/// `made` of scans. `why_none` says why there are no examples, where there are none.
///
/// # Errors
/// Files of the run that cannot be read.
pub fn page(
    folder: &Path,
    checkpoint: &Checkpoint,
    mae: &Mae,
    made: &[Reconstructed],
    why_none: &str,
) -> Result<String, FileError> {
    let card = &checkpoint.card;
    let log = Log::read(folder)?;
    let (progress, subjects) = (card.progress, card.data.subjects.len());
    let encoder = &mae.encoder;
    let weights: usize = checkpoint.arrays.values().map(|a| a.data.len()).sum();
    let lead = format!(
        "A masked autoencoder of {} that learned from the scans of {subjects} people: {:.0} % of the patches of each \
         scan were removed, and it learned to fill them in.",
        encoder.modalities.join(", "),
        100.0 * mae.mask_ratio
    );
    let mut page = Page::new("Pretraining", &name(folder), &lead);

    let last = log.course("loss", progress.epochs).last().map_or(f64::NAN, |p| p[1]);
    let watched = progress.best.map_or(String::new(), |_| format!("after epoch {}", progress.best_epoch));
    let mut few = vec![
        (thousands(subjects), "people learned from", String::new()),
        (thousands(progress.epochs), "epochs", format!("{} updates", thousands(progress.steps as usize))),
        (fixed(last, 3), "loss at the end", String::new()),
    ];
    if let Some(best) = progress.best {
        few.push((fixed(best, 3), "lowest loss of held-out scans", watched));
    }
    few.push((thousands(weights), "weights", String::new()));
    page.section("In short", numbers(&few));
    page.section("Loss", losses(&log, mae, progress.epochs));
    page.section("Reconstructions", reconstructions(made, mae, why_none));
    page.section("Model and data", model(card, mae, weights));
    page.section("Settings", details("All settings of the run", &settings(folder)?));
    Ok(page.render())
}

/// What a run is called: its folder.
pub(super) fn name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned())
}

fn losses(log: &Log, mae: &Mae, epochs: usize) -> String {
    let mut curves = vec![smooth("learned from", log.course("loss", epochs))];
    let watched = log.course("watched_loss", epochs);
    if !watched.is_empty() {
        curves.push(smooth("held out", watched));
    }
    for modality in mae.encoder.modalities.iter().filter(|_| mae.encoder.modalities.len() > 1) {
        curves.push(smooth(modality, log.course(&format!("loss/{modality}"), epochs)));
    }
    let caption =
        "Mean squared error of removed patches. Single updates are faint, their moving mean is strong.";
    let loss = Lines { title: "Loss", caption, axes: ["epoch", "loss"], log: true, curves: &curves };
    let rate = [smooth("learning rate", log.course("lr", epochs))];
    let rate =
        Lines { title: "Learning rate", caption: "", axes: ["epoch", "rate"], log: false, curves: &rate };
    let norm = [smooth("norm", log.course("grad_norm", epochs))];
    let caption = "Norm of all gradients before it was clipped.";
    let norm = Lines { title: "Gradients", caption, axes: ["epoch", "norm"], log: true, curves: &norm };
    figures(&[loss.render(), norm.render(), rate.render()], false)
}

fn reconstructions(made: &[Reconstructed], mae: &Mae, why_none: &str) -> String {
    if made.is_empty() {
        return paragraph(why_none);
    }
    let mut caption =
        "What was removed is shown as slate in the middle. Reconstructions are predicted where patches \
                       were removed, and the original elsewhere."
            .to_owned();
    if mae.norm_pix {
        caption += " The model learned patches without their mean and spread (norm_pix): the true ones were put back, so \
                    brightness is given away, and only structure within patches is the model's work.";
    }
    let columns = [("Scan", Column::Path), ("MSE", Column::Number), ("PSNR, dB", Column::Number)];
    let mut table = Table::new("Error over the removed brain voxels, of intensities with SD 1", &columns);
    for Reconstructed { example, mse, psnr } in made {
        table.row(vec![Cell::text(&example.label), Cell::number(*mse, 3), Cell::number(*psnr, 1)]);
    }
    let examples: Vec<&Example> = made.iter().map(|m| &m.example).collect();
    viewer::figure(&examples, &caption) + &table.render()
}

fn model(card: &Card, mae: &Mae, weights: usize) -> String {
    let (encoder, decoder) = (&mae.encoder, mae.decoder);
    let [x, y, z] = encoder.grid;
    let people = card.data.subjects.join(", ");
    facts(
        "The model and what it learned from",
        &[
            ("Sees", format!("{}, {}", encoder.modalities.join(", "), card.preprocessing)),
            (
                "Patches",
                format!("{}³ of {x}×{y}×{z} voxels, {:.0} % removed", encoder.patch, 100.0 * mae.mask_ratio),
            ),
            ("Encoder", format!("{} blocks, width {}", encoder.shape.depth, encoder.shape.dim)),
            ("Decoder", format!("{} blocks, width {}", decoder.depth, decoder.dim)),
            ("Weights", thousands(weights)),
            ("Cache", card.data.cache.clone()),
            ("Split", card.data.split.clone()),
            ("Version", format!("gyrus {}", card.data.version)),
        ],
    ) + &details("The people it learned from", &paragraph(&people))
}
