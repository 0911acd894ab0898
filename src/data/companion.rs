//! Scans that are brought onto a T1w's grid: found beside it, aligned with it, resampled once, and scaled; PET by a
//! reference region.
use super::{
    Error,
    bids::{Name, list, stem},
    dataset::Wanted,
    index::Reference,
    prepare::prepare_volume,
    scan::{Found, Scan, is_nifti, scans},
    visit::T1W,
};
use crate::{
    error::OnFile,
    image::{self, Affine, Alignment, Fault, Prepared, Preprocessing, Scale, Volume, is_quantitative},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a PET image is divided by where no region is asked for: this label's, if there is a mask of it.
const USUAL_REGION: &str = "reference";

/// A T1w that others are brought to.
pub(super) struct Fixed {
    volume: Volume,
    prepared: Prepared,
}

impl Fixed {
    pub(super) fn read(scan: &Scan, settings: &Preprocessing) -> Result<Fixed, Error> {
        let (_, volume) = image::read(&scan.path)?;
        let prepared = prepare_volume(volume.clone(), scan, settings)?;
        Ok(Fixed { volume, prepared })
    }
}

/// Brings `scan` onto the grid of `fixed`, the T1w `anchor`: the volume, what aligned it if it had to be, and what PET was
/// divided by.
pub(super) fn prepare_onto(
    scan: &Scan,
    anchor: &Scan,
    fixed: &Fixed,
    wanted: &Wanted,
    settings: &Preprocessing,
) -> Result<(Prepared, Option<Alignment>, Option<Reference>), Error> {
    let pet = is_quantitative(&scan.modality);
    let (volume, mut warnings) =
        if pet { read_pet(&scan.path)? } else { (image::read(&scan.path)?.1, Vec::new()) };
    let failed = |source| Error::Scan { path: scan.path.clone(), source };
    let alignment = match image::same_grid(&volume, &fixed.volume) {
        true => None,
        false => Some(image::align(&volume, &fixed.volume, &fixed.prepared).map_err(failed)?),
    };
    warnings.extend(alignment.as_ref().and_then(Alignment::doubt));
    let to_volume = alignment.map_or(image::IDENTITY, |a| a.affine);
    let region = if pet { reference_mask(scan, anchor, wanted)? } else { None };
    let scale = match &region {
        _ if !pet => Scale::ZScore,
        None => Scale::Brain,
        Some(path) => Scale::Region(region_mean(&volume, path, &to_volume)?),
    };
    let (mut prepared, mean) =
        image::preprocess_onto(&volume, &fixed.prepared, &to_volume, scale, settings).map_err(failed)?;
    prepared.stats.warnings.splice(..0, warnings);
    let reference = mean.map(|mean| Reference { region: region.is_some(), mean });
    Ok((prepared, alignment, reference))
}

/// A PET image, of several frames their mean, weighted by `FrameDuration` of the `.json` beside it; and what to know.
fn read_pet(path: &Path) -> Result<(Volume, Vec<String>), Error> {
    let durations = frame_durations(&sidecar(path))?;
    let mut warnings = Vec::new();
    let weights = |header: &image::Header| match (header.frames, durations) {
        (1, _) => Ok(vec![1.0]),
        (frames, Some(d)) if d.len() == frames && d.iter().all(|s| *s > 0.0 && s.is_finite()) => Ok(d),
        (frames, Some(d)) => Err(Fault::Header(format!(
            "it has {frames} frames, but FrameDuration beside it is {d:?}, which should be as many times above 0"
        ))),
        (frames, None) => {
            warnings.push(format!("{frames} frames were averaged evenly: no FrameDuration is beside them"));
            Ok(vec![1.0; frames])
        }
    };
    let (_, volume) = image::read_mean(path, weights)?;
    Ok((volume, warnings))
}

/// The `.json` that belongs to the image `path`.
pub(super) fn sidecar(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.json", stem(path)))
}

fn frame_durations(path: &Path) -> Result<Option<Vec<f64>>, Error> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(path).on_file("read", path)?;
    let json: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|e| Error::Sidecar { path: path.to_owned(), reason: e.to_string() })?;
    match &json["FrameDuration"] {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::Array(list) if list.iter().all(serde_json::Value::is_number) => {
            Ok(Some(list.iter().filter_map(serde_json::Value::as_f64).collect()))
        }
        other => {
            let reason = format!("FrameDuration is {other}, but must be a list of seconds");
            Err(Error::Sidecar { path: path.to_owned(), reason })
        }
    }
}

/// The mask of the reference region of `scan`: a file `*_label-LABEL_mask` beside the T1w's brain mask, or in the folder
/// of PET masks there. None where no region was asked for and there is none.
pub(super) fn reference_mask(scan: &Scan, anchor: &Scan, wanted: &Wanted) -> Result<Option<PathBuf>, Error> {
    let label = wanted.reference.as_deref().unwrap_or(USUAL_REGION);
    let beside = [&anchor.mask, &scan.mask].into_iter().flatten().filter_map(|mask| mask.parent());
    let folders = beside.flat_map(|folder| [folder.to_owned(), folder.with_file_name("pet")]);
    let own = Name::of(&scan.path);
    let suits = |path: &PathBuf| {
        let name = Name::of(path);
        // A folder may hold the masks of many people.
        let same = |key| {
            name.entity(key).is_none() || own.entity(key).is_none() || name.entity(key) == own.entity(key)
        };
        is_nifti(path) && name.stem.ends_with("_mask") && name.entity("label") == Some(label) && same("sub")
    };
    for folder in folders {
        if let Some(mask) = list(&folder)?.into_iter().find(suits) {
            return Ok(Some(mask));
        }
    }
    match &wanted.reference {
        None => Ok(None),
        Some(label) => Err(Error::NoReference { path: scan.path.clone(), label: label.clone() }),
    }
}

/// The mean of `volume` in the region `path`, which lies as the image itself where it has its voxels, else as the T1w.
fn region_mean(volume: &Volume, path: &Path, to_volume: &Affine) -> Result<f64, Error> {
    let (_, mask) = image::read(path)?;
    let to_volume = if image::same_grid(volume, &mask) { &image::IDENTITY } else { to_volume };
    image::mean_inside(volume, &mask, to_volume).ok_or_else(|| Error::Scan {
        path: path.to_owned(),
        source: image::Error::NoBrain("the reference region is empty or beside the PET image"),
    })
}

/// The scans of `dataset` that are of one of `modalities`, and with others the T1w scans that those are brought to.
pub(super) fn scans_of(dataset: &Path, modalities: &[String]) -> Result<Found, Error> {
    if modalities == [T1W] {
        return scans(dataset, modalities);
    }
    let mut wanted = modalities.to_vec();
    if !modalities.iter().any(|m| m == T1W) {
        wanted.push(T1W.to_owned());
    }
    let mut found = scans(dataset, &wanted)?;
    let order = |s: &Scan| modalities.iter().position(|m| *m == s.modality);
    found.scans.sort_by_cached_key(|s| (s.subject.clone(), s.session.clone(), order(s), s.path.clone()));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Storage;

    #[test]
    fn frames_count_by_their_durations() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub-01_trc-FDG_pet.nii");
        let frame = Volume { shape: [2, 2, 2], affine: image::IDENTITY, data: vec![1.0; 8] };
        image::write(&path, &frame, Storage::F32).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        // nifti1.h: dim[0] at 40, dim[4] at 48. The second frame is 5.
        bytes[40..42].copy_from_slice(&4_i16.to_le_bytes());
        bytes[48..50].copy_from_slice(&2_i16.to_le_bytes());
        bytes.extend([5.0_f32; 8].iter().flat_map(|v| v.to_le_bytes()));
        fs::write(&path, bytes).unwrap();
        let (even, warnings) = read_pet(&path).unwrap();
        assert_eq!(even.data, [3.0; 8]);
        assert!(warnings[0].contains("2 frames were averaged evenly"), "{warnings:?}");
        let json = |text: &str| fs::write(folder.path().join("sub-01_trc-FDG_pet.json"), text).unwrap();
        json(r#"{"FrameDuration": [300, 100]}"#);
        let (weighted, warnings) = read_pet(&path).unwrap();
        assert_eq!((weighted.data, warnings), (vec![2.0; 8], vec![]));
        for (text, words) in [
            (r#"{"FrameDuration": [300]}"#, "it has 2 frames"),
            (r#"{"FrameDuration": [300, 0]}"#, "above 0"),
            (r#"{"FrameDuration": 300}"#, "a list of seconds"),
            ("{", "EOF"),
        ] {
            json(text);
            let said = crate::error::chain(&read_pet(&path).unwrap_err());
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn the_reference_region_is_found_by_label_beside_the_brain_mask() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, b"").unwrap();
            path
        };
        let mask = at("d/sub-01/anat/sub-01_desc-brain_mask.nii.gz");
        at("d/sub-01/anat/sub-02_label-reference_mask.nii.gz");
        let anchor = Scan { mask: Some(mask), ..Scan::unknown(at("sub-01/anat/sub-01_T1w.nii.gz")) };
        let scan = Scan::unknown(at("sub-01/pet/sub-01_trc-FDG_pet.nii.gz"));
        let find = |label: Option<&str>| {
            let wanted = Wanted { reference: label.map(str::to_owned), ..Wanted::default() };
            reference_mask(&scan, &anchor, &wanted)
        };
        assert_eq!(find(None).unwrap(), None, "another subject's does not count");
        assert!(matches!(find(Some("pons")), Err(Error::NoReference { .. })));
        let pons = at("d/sub-01/pet/sub-01_label-pons_mask.nii.gz");
        let usual = at("d/sub-01/anat/sub-01_label-reference_mask.nii.gz");
        assert_eq!((find(None).unwrap(), find(Some("pons")).unwrap()), (Some(usual), Some(pons)));
    }
}
