//! Volumes to look at: a scan of every tier, masked, and filled in by the model of the first unit.
use super::results::Example;
use super::setup::{Setup, Unit};
use super::unit::MASKS;
use crate::program::{Array, Arrays, Device, arrays};
use crate::study::Error;
use crate::train::reconstruct::Reconstructor;
use crate::train::samples::Samples;
use crate::train::{self, Checkpoint};
use std::path::Path;

const FILE: &str = "examples.safetensors";
const PARTS: [&str; 3] = ["original", "masked", "reconstruction"];

/// Writes into the study's folder the first scan of each tier among those that `unit` does not train on, as `model` sees it.
///
/// # Errors
/// A model that reconstructs nothing; what the device says; a file that cannot be written.
pub(super) fn write(setup: &Setup, unit: &Unit, model: &Checkpoint, device: &Device) -> Result<(), Error> {
    let samples = Samples::of(&setup.scans, &setup.scans.modalities()).map_err(Error::Setup)?;
    let mut reconstructor = Reconstructor::new(model, device)?;
    let excluded = setup.excluded(unit);
    let (mut labels, mut found) = (Vec::new(), Arrays::default());
    let members = setup.pool.members.iter().enumerate().filter(|(_, m)| excluded.contains(&m.subject));
    for (i, (sample, tiers)) in members.flat_map(|(i, _)| setup.versions(i).into_iter().map(move |v| (i, v)))
    {
        let new: Vec<&String> = tiers.iter().filter(|tier| !labels.contains(*tier)).collect();
        let [first, ..] = new[..] else { continue };
        let first = first.clone();
        let head = samples.volumes_of(sample);
        let made = reconstructor.reconstruct(&head, MASKS, i as u32).map_err(train::Error::from)?;
        let (Some(Some(original)), Some(Some(made))) = (head.into_iter().next(), made.into_iter().next())
        else {
            continue;
        };
        for (part, data) in PARTS.into_iter().zip([original, made.masked, made.volume]) {
            let shape = setup.scans.grid().to_vec();
            found.insert(format!("{:02} {first}/{part}", labels.len()), Array { shape, data });
        }
        labels.push(first);
    }
    let spacing = setup.scans.preprocessing().nominal_spacing().to_string();
    Ok(arrays::write(&setup.folder.join(FILE), &found, &spacing).map_err(train::Error::from)?)
}

/// What was written into `folder`, if anything was.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn read(folder: &Path) -> Result<Vec<Example>, Error> {
    let path = folder.join(FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let (mut found, spacing) = arrays::read(&path).map_err(train::Error::from)?;
    let spacing = spacing.and_then(|mm| mm.parse().ok()).unwrap_or(1.0);
    let end = format!("/{}", PARTS[0]);
    let labels: Vec<String> =
        found.keys().filter_map(|key| Some(key.strip_suffix(&end)?.to_owned())).collect();
    let mut example = |label: &String| {
        let mut part = |part: &str| found.remove(&format!("{label}/{part}"));
        let [original, masked, reconstruction] = PARTS.map(&mut part);
        let original = original?;
        let label = label.split_once(' ').map_or(label.as_str(), |(_, label)| label).to_owned();
        let grid = original.shape.clone().try_into().ok()?;
        let (masked, reconstruction) = (masked?.data, reconstruction?.data);
        Some(Example { label, grid, spacing, original: original.data, masked, reconstruction })
    };
    Ok(labels.iter().filter_map(&mut example).collect())
}
