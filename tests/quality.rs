//! `gyrus qc` as a user runs it: on synthetic heads, on damaged files, and on real heads that people have rated.
#![allow(clippy::unwrap_used, reason = "a test says no more than that it failed")]
use assert_cmd::{Command, assert::Assert};
use gyrus::image::{self, Storage};
use std::{collections::HashMap, fs, path::Path, path::PathBuf, time::Duration};
use tempfile::TempDir;

fn gyrus(folder: &Path, arguments: &[&str]) -> Assert {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gyrus"));
    command.current_dir(folder).args(arguments).timeout(Duration::from_secs(300)).assert()
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

/// The lines of a qc.tsv, by column.
fn table(path: &Path) -> Vec<HashMap<String, String>> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(|l| l.split('\t').map(str::to_owned).collect::<Vec<String>>());
    let header = lines.next().unwrap();
    lines
        .map(|cells| {
            assert_eq!(cells.len(), header.len());
            header.iter().cloned().zip(cells).collect()
        })
        .collect()
}

/// Eight synthetic heads, with ratings from 1 to 8.
fn heads() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    gyrus(folder.path(), &["phantom", "--out", "heads", "--subjects", "8", "--spacing", "4"]).success();
    let lines: Vec<String> = (1..=8).map(|i| format!("sub-{i:03}\t{i}")).collect();
    let ratings = format!("participant_id\trated\n{}\n", lines.join("\n"));
    fs::write(folder.path().join("ratings.tsv"), ratings).unwrap();
    folder
}

#[test]
fn every_scan_has_a_line_a_grade_and_a_picture_and_every_column_is_explained() {
    let folder = heads();
    let here = folder.path();
    let arguments = ["qc", "heads", "--out", "qc", "--ratings", "ratings.tsv", "--column", "rated"];
    gyrus(here, &arguments).success();
    let rows = table(&here.join("qc/qc.tsv"));
    assert_eq!(rows.len(), 8);
    let sidecar: serde_json::Value =
        serde_json::from_slice(&fs::read(here.join("qc/qc.json")).unwrap()).unwrap();
    for row in &rows {
        assert!(row.keys().all(|column| sidecar[column]["LongName"].is_string()));
        assert!(["Excellent", "Acceptable", "Poor", "Exclude"].contains(&row["grade"].as_str()));
        assert_eq!(row["region"], "brain mask");
        assert!(row["predicted_rating"].parse::<f64>().is_ok());
        assert_eq!(format!("sub-00{}", row["rating"]), row["participant_id"]);
    }
    assert!(fs::read(here.join("qc/contact.png")).unwrap().starts_with(b"\x89PNG"));

    // The same again gives the same bytes; by rank, one in four is excluded.
    let first = fs::read(here.join("qc/qc.tsv")).unwrap();
    gyrus(here, &arguments).success();
    assert_eq!(fs::read(here.join("qc/qc.tsv")).unwrap(), first);
    let by_rank = ["--quantiles", "25,50,75", "--by", "rating"];
    gyrus(here, &[&arguments[..], &by_rank].concat()).success();
    let excluded: Vec<String> = table(&here.join("qc/qc.tsv"))
        .into_iter()
        .filter(|r| r["grade"] == "Exclude")
        .map(|r| r["rating"].clone())
        .collect();
    assert_eq!(excluded, ["1", "2"]);
}

#[test]
fn a_scan_that_cannot_be_read_is_excluded_and_stops_no_other() {
    let folder = heads();
    let here = folder.path();
    let good = "heads/sub-001/anat/sub-001_T1w.nii.gz";
    fs::write(here.join("broken.nii.gz"), b"no image").unwrap();
    let mut constant = image::read(&here.join(good)).unwrap().1;
    constant.data.fill(7.0);
    image::write(&here.join("constant.nii.gz"), &constant, Storage::F32).unwrap();
    let run = gyrus(here, &["qc", good, "broken.nii.gz", "constant.nii.gz", "absent.nii.gz", "--out", "qc"]);
    let said = stderr(&run.code(3));
    let rows = table(&here.join("qc/qc.tsv"));
    assert_eq!(rows.len(), 4);
    for row in &rows[1..] {
        assert_eq!(
            (row["grade"].as_str(), row["score"].as_str(), row["state"].as_str()),
            ("Exclude", "0", "n/a")
        );
        assert!(row["reasons"].len() > 10 && said.contains(&row["path"]), "{row:?} {said}");
    }
    assert_ne!(rows[0]["state"], "n/a");
}

#[test]
fn thresholds_are_printed_changed_and_refused_by_name() {
    let folder = heads();
    let here = folder.path();
    let printed = gyrus(here, &["qc", "--print-thresholds"]).success();
    fs::write(here.join("same.toml"), &printed.get_output().stdout).unwrap();
    let grades = |file: &str| {
        gyrus(here, &["qc", "heads", "--out", "qc", "--thresholds", file]).success();
        table(&here.join("qc/qc.tsv")).into_iter().map(|r| r["grade"].clone()).collect::<Vec<String>>()
    };
    grades("same.toml");
    fs::write(here.join("strict.toml"), "[limits]\nnoise = { good = 0, bad = 1e-6 }\n").unwrap();
    assert_eq!(grades("strict.toml"), vec!["Exclude"; 8]);
    fs::write(here.join("wrong.toml"), "[limits]\nnoize = { good = 0, bad = 1 }\n").unwrap();
    let said = stderr(&gyrus(here, &["qc", "heads", "--out", "qc", "--thresholds", "wrong.toml"]).code(1));
    assert!(said.contains("wrong.toml") && said.contains("did you mean noise?"), "{said}");
    let said = stderr(&gyrus(here, &["qc", "heads", "--out", "qc", "--column", "rated"]).code(1));
    assert!(said.contains("participants.tsv") && said.contains("no column \"rated\""), "{said}");
}

/// Each distortion by itself, and the measure that has to rise with its strength. (Motion: what it leaves in the air rises
/// no more beyond 7 mm. Cuts: below its widest section a head is narrower again.)
const FAULTS: [(&str, &str, [f64; 4], &str); 11] = [
    ("bias", "[bias_field]\nsd = @", [0.1, 0.2, 0.3, 0.4], "bias_field"),
    ("noise", "[noise]\nsigma = @", [0.02, 0.04, 0.06, 0.08], "noise"),
    ("fwhm", "[blur]\nfwhm_mm = @", [3.0, 5.0, 7.0, 9.0], "blur"),
    ("fwhm_ratio", "[anisotropy]\nfactor = @\naxis = \"z\"", [2.0, 3.0, 4.0, 5.0], "thick slices"),
    (
        "comb",
        "[ghosting]\nintensity = @\nghosts = 4\nrestore = 0.02\naxis = \"y\"",
        [0.2, 0.4, 0.6, 0.8],
        "ghosts",
    ),
    ("efc", "[motion]\nmoves = 3\ndegrees = @\nmm = @\naxis = \"y\"", [2.0, 4.0, 7.0, 10.0], "motion"),
    ("spike", "[spikes]\ncount = 1\nintensity = @\nwavelength_mm = 20", [0.5, 1.0, 2.0, 3.0], "a spike"),
    ("fwhm_z", "[gibbs]\nmm = @\naxis = \"z\"", [4.0, 5.0, 7.0, 9.0], "ringing"),
    ("missing_slices", "[slab_loss]\nfraction = @\naxis = \"z\"", [0.1, 0.2, 0.3, 0.4], "a lost slab"),
    ("cut_area", "[truncation]\nmm = @\nsides = [\"top\"]", [10.0, 20.0, 30.0, 40.0], "a cut field of view"),
    ("cut_area", "[wrap_around]\nmm = @\nsides = [\"back\"]", [10.0, 20.0, 30.0, 40.0], "wrap-around"),
];

#[test]
fn every_distortion_moves_the_measure_that_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    gyrus(here, &["phantom", "--out", "heads", "--subjects", "5", "--spacing", "2.5"]).success();
    let median = |dataset: &str, measure: &str| {
        gyrus(here, &["qc", dataset, "--out", "qc"]).success();
        let rows = table(&here.join("qc/qc.tsv"));
        let mut values: Vec<f64> = rows.iter().map(|r| r[measure].parse().unwrap()).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    for (measure, recipe, strengths, what) in FAULTS {
        let mut values = vec![median("heads", measure)];
        for strength in strengths {
            fs::write(here.join("recipe.toml"), recipe.replace('@', &format!("{strength:?}"))).unwrap();
            gyrus(here, &["distort", "heads", "--recipe", "recipe.toml", "--out", "worse"]).success();
            values.push(median("worse", measure));
            fs::remove_dir_all(here.join("worse")).unwrap();
        }
        assert!(values.is_sorted_by(|a, b| a < b), "{what}: {measure} {values:?}");
    }
}

/// The real heads beside the checkout; a printed line where they are not.
fn real_heads() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let data = std::env::var_os("GYRUS_SHARED").map_or_else(beside, PathBuf::from).join("data/ixi-2mm");
    if !data.is_dir() {
        println!("skipped: {} is not there", data.display());
        return None;
    }
    Some(data)
}

/// The area under the curve by level, of the score of sixteen heads against those of their distorted copies.
#[test]
fn distorted_real_heads_score_lower_at_every_level() {
    let Some(data) = real_heads() else { return };
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let masks = fs::read_dir(data.join("derivatives")).unwrap().next().unwrap().unwrap().file_name();
    let masks = Path::new("derivatives").join(masks);
    fs::create_dir_all(here.join("few").join(&masks)).unwrap();
    let mut subjects: Vec<_> = fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name()).collect();
    subjects.retain(|name| name.to_string_lossy().starts_with("sub-"));
    subjects.sort();
    for subject in &subjects[..16] {
        for inside in [Path::new("").join(subject), masks.join(subject)] {
            std::os::unix::fs::symlink(data.join(&inside), here.join("few").join(&inside)).unwrap();
        }
    }
    let scores = |dataset: &str| -> Vec<f64> {
        gyrus(here, &["qc", dataset, "--out", "qc"]).success();
        table(&here.join("qc/qc.tsv")).iter().map(|r| r["score"].parse().unwrap()).collect()
    };
    let clean = scores("few");
    for (level, least) in [("1", 0.7), ("2", 0.85), ("3", 0.95), ("4", 0.99)] {
        gyrus(here, &["distort", "few", "--level", level, "--seed", "5", "--out", level]).success();
        let worse = scores(level);
        let pairs = clean.iter().flat_map(|c| worse.iter().map(move |w| (c, w)));
        let above = pairs.map(|(c, w)| if c > w { 1.0 } else { 0.5 * f64::from(u8::from(c == w)) });
        let area = above.sum::<f64>() / (clean.len() * worse.len()) as f64;
        assert!(area >= least, "level {level}: {area}");
    }
}

#[test]
fn on_real_heads_the_score_agrees_with_people() {
    let Some(data) = real_heads() else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = data.to_str().unwrap();
    gyrus(folder.path(), &["qc", data, "--out", "qc", "--column", "quality_rating"]).success();
    let rows = table(&folder.path().join("qc/qc.tsv"));
    assert_eq!(rows.len(), 124);
    assert!(rows.iter().all(|r| r["state"] == "defaced"));
    assert!(rows.iter().all(|r| ["qi1", "fber", "snr_dietrich"].iter().all(|m| r[*m] == "n/a")));
    let column = |name: &str| ranks(&rows.iter().map(|r| r[name].parse().unwrap()).collect::<Vec<f64>>());
    let rating = column("rating");
    let (fitted, unfitted) =
        (correlation(&column("predicted_rating"), &rating), correlation(&column("score"), &rating));
    assert!(fitted >= 0.5, "cross-validated: {fitted}");
    assert!(unfitted >= 0.4, "fitted to nothing: {unfitted}");
}

fn ranks(x: &[f64]) -> Vec<f64> {
    let rank = |v: &f64| {
        let below = x.iter().filter(|w| *w < v).count() as f64;
        below + (x.iter().filter(|w| *w == v).count() as f64 + 1.0) / 2.0
    };
    x.iter().map(rank).collect()
}

fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let sum = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(x, y)| f(x - mx, y - my)).sum::<f64>();
    sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
}
