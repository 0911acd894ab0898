//! The distorted cache: prepared volumes as scans again, made worse, and normalised anew.
use super::{Failure, Severity, chosen};
use crate::{
    data::{self, Cache, Changed, DISTORTIONS, IndexRow, T1W, stem},
    image::Restored,
    quality::distort::{Distorted, Recipe, distort_restored},
};
use half::{f16, slice::HalfFloatSliceExt};
use indicatif::ProgressBar;
use serde_json::{Map, json};
use std::{path::Path, process::ExitCode};

/// Writes the distorted cache, and says what it has.
pub(super) fn run(
    root: &Path,
    out: &Path,
    recipe: &Recipe,
    severity: Severity,
    seed: u64,
    share: f64,
) -> Result<ExitCode, Failure> {
    let cache = Cache::open(root)?;
    let t1w = || cache.scans().iter().filter(|row| row.scan.modality == T1W);
    if t1w().next().is_none() {
        let has = cache.modalities().join(", ");
        return Err(format!("{}: has no {T1W}, which alone is distorted, but {has}", root.display()).into());
    }
    let chosen = chosen(t1w().map(|row| &row.scan.subject), seed, share);
    let distorts = |row: &IndexRow| row.scan.modality == T1W && chosen.contains(&row.scan.subject);
    let about = json!({
        "Level": severity.text(), "Seed": seed, "Share": share, "Recipe": recipe, "Of": cache.hash(),
        "Version": env!("CARGO_PKG_VERSION"),
    });
    let change = |row: &IndexRow, voxels: &[f16]| -> Result<Option<Changed>, Failure> {
        if !distorts(row) {
            return Ok(None);
        }
        let failed = |error: &dyn std::error::Error| format!("{}: {error}", row.scan.path.display());
        let (settings, stats) = (cache.preprocessing(), &row.measured.stats);
        let restored = Restored::new(&voxels.to_f32_vec(), settings, stats).map_err(|e| failed(&e))?;
        let Distorted { volume, kept, applied } =
            distort_restored(&restored, recipe, seed, &name(&row.scan.path)).map_err(|e| failed(&e))?;
        if applied.is_empty() {
            return Ok(None);
        }
        let prepared = restored.prepare(&volume, &kept).map_err(|e| failed(&e))?;
        let done = Map::from_iter([("Applied".to_owned(), json!(applied))]);
        Ok(Some(Changed { prepared, done }))
    };
    let bar = ProgressBar::new(cache.len() as u64).with_style(crate::cli::phantom::style());
    let made = data::derive(&cache, out, about, change, || bar.inc(1))?;
    bar.finish_and_clear();
    let (path, volumes, worse) = (out.display(), cache.len(), cache.scans().iter().filter(|r| distorts(r)));
    let done = if made { "is made" } else { "is up to date" };
    println!("{path}: {done}, {volumes} volumes, {} of them distorted ({DISTORTIONS})", worse.count());
    let others = cache.len() - t1w().count();
    if others > 0 {
        println!("{others} volumes of other modalities than {T1W} are as they were");
    }
    Ok(ExitCode::SUCCESS)
}

/// What random draws go by: the file's name, as in a dataset, where it is a BIDS name and so its own; else its path.
fn name(path: &Path) -> String {
    let stem = stem(path);
    if stem.starts_with("sub-") { stem } else { path.with_file_name(stem).display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_go_by_a_name_that_no_other_has() {
        assert_eq!(name(Path::new("sub-01/anat/sub-01_T1w.nii.gz")), "sub-01_T1w");
        assert_ne!(name(Path::new("sub_1/ses_1/t1.nii.gz")), name(Path::new("sub_2/ses_1/t1.nii.gz")));
    }
}
