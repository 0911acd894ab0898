//! The distorted dataset: derivative BIDS with the file names of its source.
//!
//! For each scan the mask is written first, then the image, then its JSON: a JSON that says what is to be done now
//! vouches for the other two, so that a stopped run goes on. `participants.tsv` comes last of all.
use super::{
    Failure, Severity, chosen,
    people::{self, COLUMN},
};
use crate::{
    data::{Scan, stem},
    error::OnFile,
    file::write_bytes,
    image::{self, Datatype, Storage, Volume},
    quality::distort::{Distorted, Recipe, distort, keep, ras_shape},
};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// All that the new dataset follows from.
pub(super) struct Plan<'a> {
    root: &'a Path,
    out: &'a Path,
    recipe: Recipe,
    severity: Severity,
    seed: u64,
    share: f64,
    /// Whose scans are distorted.
    chosen: BTreeSet<String>,
}

const DESCRIPTION: &str = "dataset_description.json";

impl<'a> Plan<'a> {
    pub(super) fn new(
        root: &'a Path,
        out: &'a Path,
        recipe: Recipe,
        severity: Severity,
        seed: u64,
        share: f64,
        scans: &[Scan],
    ) -> Plan<'a> {
        let chosen = chosen(scans.iter().map(|s| &s.subject), seed, share);
        Plan { root, out, recipe, severity, seed, share, chosen }
    }

    /// Whether `scan` is one of those that are distorted.
    pub(super) fn distorts(&self, scan: &Scan) -> bool {
        self.chosen.contains(&scan.subject)
    }

    /// Claims the folder: writes the description of the dataset, or finds the same one there.
    pub(super) fn begin(&self) -> Result<(), Failure> {
        let path = self.out.join(DESCRIPTION);
        let text = pretty(&Value::Object(self.description()?));
        if path.exists() {
            if fs::read_to_string(&path).on_file("read", &path)? == text {
                return Ok(());
            }
            let advice = "give another --out, or remove that folder";
            let what = "holds another dataset, or one that was distorted otherwise";
            return Err(format!("{}: {what}; {advice}", self.out.display()).into());
        }
        fs::create_dir_all(self.out).on_file("create", self.out)?;
        if fs::read_dir(self.out).on_file("read", self.out)?.next().is_some() {
            let advice = "give another --out, or empty that folder";
            return Err(format!("{}: is not empty; {advice}", self.out.display()).into());
        }
        Ok(write_bytes(&path, text.as_bytes())?)
    }

    /// The source's description, of a derivative now.
    fn description(&self) -> Result<Map<String, Value>, Failure> {
        let mut about = object(&self.root.join(DESCRIPTION))?;
        let name = about.get("Name").and_then(Value::as_str).unwrap_or("A dataset").to_owned();
        let source = fs::canonicalize(self.root).on_file("read", self.root)?;
        let generated = json!([{
            "Name": "gyrus distort", "Version": env!("CARGO_PKG_VERSION"), "Level": self.severity.text(),
            "Seed": self.seed, "Share": self.share, "Recipe": self.recipe,
        }]);
        about.insert("Name".into(), format!("{name}, distorted").into());
        about.entry("BIDSVersion").or_insert_with(|| "1.9.0".into());
        about.insert("DatasetType".into(), "derivative".into());
        about.insert("GeneratedBy".into(), generated);
        about.insert("SourceDatasets".into(), json!([{ "URL": format!("file://{}", source.display()) }]));
        Ok(about)
    }

    /// Writes all scans that are not there yet; the errors are of those that cannot be used.
    pub(super) fn write_scans(&self, scans: &[Scan], advance: impl Fn() + Sync) -> Vec<Result<(), Failure>> {
        let outcomes = scans.par_iter().map(|scan| {
            let outcome = self.write_scan(scan);
            advance();
            outcome
        });
        outcomes.collect()
    }

    fn write_scan(&self, scan: &Scan) -> Result<(), Failure> {
        let stem = stem(&scan.path);
        let inside = scan.path.strip_prefix(self.root).unwrap_or(&scan.path);
        let folder = inside.parent().unwrap_or(Path::new(""));
        let whole = scan.path.to_string_lossy().ends_with(".nii");
        let image = self.out.join(folder).join(format!("{stem}{}", if whole { ".nii" } else { ".nii.gz" }));
        let sidecar = self.out.join(folder).join(format!("{stem}.json"));
        let mask = scan.mask.as_ref().map(|mask| (mask, self.mask_path(mask, &stem)));

        let chosen = self.distorts(scan);
        let recipe = if chosen { self.recipe.clone() } else { Recipe::none() };
        let hash = |path: &Path| -> Result<String, Failure> {
            Ok(blake3::hash(&fs::read(path).on_file("read", path)?).to_hex().to_string())
        };
        let mut made = json!({
            "Level": if chosen { self.severity.text() } else { "0".into() },
            "Seed": self.seed,
            "Source": inside,
            "SourceBLAKE3": hash(&scan.path)?,
            "MaskBLAKE3": scan.mask.as_ref().map(|m| hash(m)).transpose()?,
            "Version": env!("CARGO_PKG_VERSION"),
            "Recipe": recipe,
        });
        let there = image.exists() && mask.as_ref().is_none_or(|(_, to)| to.exists());
        let known = object(&sidecar).ok().and_then(|o| o.get("Distortion").cloned());
        let same = |known: &Value| {
            made.as_object().is_some_and(|made| made.iter().all(|(key, value)| known.get(key) == Some(value)))
        };
        if there && known.as_ref().is_some_and(same) {
            return Ok(());
        }

        let (header, volume) = image::read(&scan.path)?;
        let shape = ras_shape(&volume);
        let Distorted { volume: result, kept, applied } = distort(volume, &recipe, self.seed, &stem)
            .map_err(|error| format!("{}: {error}", scan.path.display()))?;
        let uncut = (0..3).all(|a| kept[a] == (0..shape[a]));
        for path in [Some(&image), mask.as_ref().map(|(_, to)| to)].into_iter().flatten() {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).on_file("create", folder)?;
        }
        if let Some((from, to)) = &mask {
            write_mask(from, to, shape, (!uncut).then_some(&kept))?;
        }
        if applied.is_empty() && ending(&scan.path) == ending(&image) {
            copy(&scan.path, &image)?;
        } else {
            image::write(&image, &result, storage(header.datatype, header.slope, &result))?;
        }
        made["Applied"] = json!(applied);
        made["KeptVoxels"] = json!(kept.each_ref().map(|range| [range.start, range.end]));
        let mut about = object(&scan.path.with_file_name(format!("{stem}.json")))?;
        about.insert("Sources".into(), json!([inside]));
        about.insert("Distortion".into(), made);
        Ok(write_bytes(&sidecar, pretty(&Value::Object(about)).as_bytes())?)
    }

    /// Masks are named after their scans, for scans that shared one may be cut differently.
    fn mask_path(&self, mask: &Path, stem: &str) -> PathBuf {
        let inside = mask.strip_prefix(self.root).unwrap_or(mask);
        let entities = stem.rsplit_once('_').map_or(stem, |(entities, _)| entities);
        let end = if ending(mask) == ".nii" { ".nii" } else { ".nii.gz" };
        self.out.join(inside).with_file_name(format!("{entities}_desc-brain_mask{end}"))
    }

    /// Carries over what describes people and masks, and says who was distorted. `participants.tsv` last.
    pub(super) fn finish(&self, scans: &[Scan]) -> Result<(), Failure> {
        for name in ["README", "README.md", "LICENSE", "CHANGES"] {
            if self.root.join(name).is_file() {
                copy(&self.root.join(name), &self.out.join(name))?;
            }
        }
        let derivatives: BTreeSet<PathBuf> = scans
            .iter()
            .filter_map(|scan| scan.mask.as_ref()?.strip_prefix(self.root).ok())
            .map(|inside| inside.iter().take(2).collect::<PathBuf>().join(DESCRIPTION))
            .filter(|inside| self.root.join(inside).is_file())
            .collect();
        for inside in derivatives {
            copy(&self.root.join(&inside), &self.out.join(&inside))?;
        }
        let mut columns = object(&self.root.join("participants.json"))?;
        let about = "how severely the scans were distorted by gyrus, 0 not at all, or a recipe; the other columns \
                     describe the scans as they were before";
        columns.insert(COLUMN.into(), json!({ "Description": about }));
        write_bytes(&self.out.join("participants.json"), pretty(&Value::Object(columns)).as_bytes())?;

        let path = self.root.join("participants.tsv");
        let table = path.exists().then(|| fs::read_to_string(&path).on_file("read", &path)).transpose()?;
        let subjects: BTreeSet<&str> = scans.iter().map(|s| s.subject.as_str()).collect();
        let level = |subject: &str| {
            if self.chosen.contains(subject) { self.severity.text() } else { "0".into() }
        };
        let text = people::with_levels(table.as_deref(), &subjects, level);
        Ok(write_bytes(&self.out.join("participants.tsv"), text.as_bytes())?)
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The JSON object in `path`; an empty one where there is no such file.
fn object(path: &Path) -> Result<Map<String, Value>, Failure> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let bytes = fs::read(path).on_file("read", path)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    Ok(serde_json::from_slice(bytes).map_err(|e| format!("{}: not a JSON object: {e}", path.display()))?)
}

/// How an image's name ends.
fn ending(path: &Path) -> &'static str {
    let name = path.to_string_lossy();
    [".nii.gz", ".nii"].into_iter().find(|end| name.ends_with(end)).unwrap_or("")
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    Ok(write_bytes(to, &fs::read(from).on_file("read", from)?)?)
}

/// Carries a mask over, or the part of it that lies in what is left of the scan's field of view.
fn write_mask(
    from: &Path,
    to: &Path,
    shape: [usize; 3],
    kept: Option<&[std::ops::Range<usize>; 3]>,
) -> Result<(), Failure> {
    if kept.is_none() && ending(from) == ending(to) {
        return copy(from, to);
    }
    let (_, mask) = image::read(from)?;
    // A mask on a grid of its own still covers the scan's: it is looked up by place.
    let mask = kept.and_then(|kept| keep(&mask, shape, kept)).unwrap_or(mask);
    Ok(image::write(to, &mask, Storage::U8)?)
}

/// The source's data type, where its steps are still as fine on the new range of values, else floats.
fn storage(datatype: Datatype, slope: f64, volume: &Volume) -> Storage {
    let (low, high) = volume.data.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    let range = f64::from(high) - f64::from(low);
    let (storage, steps) = match datatype {
        Datatype::U8 => (Storage::U8, 255.0),
        Datatype::I8 | Datatype::I16 | Datatype::U16 => (Storage::I16, 65_535.0),
        _ => return Storage::F32,
    };
    if range <= steps * slope.abs() { storage } else { Storage::F32 }
}
