//! `gyrus data`: what a dataset holds, how it is split, and what it shares with another.
use super::sources::Source;
use crate::{
    data::{Assignment, DISTORTIONS, Identities, Leakage, Parts, Persons, Range, Scan, Survey},
    error::OnFile,
    file::write_bytes,
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Show what a dataset holds and what is doubtful about it; or split it; or compare it with another.
///
/// Counts subjects, sessions, modalities, ages, sex, sites and ratings, finds copies (also recompressed ones) and
/// doubts ages that look like months, days or placeholders. The exit code is 3 if an image cannot be read.
///
/// With --split, writes which part each subject is in, alike in age, sex and site: gyrus pretrain and gyrus finetune
/// follow it with --split FILE.
///
/// With --leakage, says which subjects, files and voxels two datasets, caches or runs share; the exit code is 1 if they
/// share any. A cache has voxels as they are once prepared, which are the same only with the same brain mask.
///
/// Example: gyrus data DATASET --split folds:5 --out split.tsv
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Dataset (BIDS folder, FOMO-style tree, folder, manifest) or cache
    #[arg(required_unless_present = "leakage", conflicts_with = "leakage")]
    pub dataset: Option<PathBuf>,
    /// Write what is shown as JSON, too
    #[arg(long, value_name = "FILE", conflicts_with = "split")]
    pub json: Option<PathBuf>,
    /// Folder that gyrus qc wrote, for grades
    #[arg(long, value_name = "DIR", conflicts_with_all = ["split", "leakage"])]
    pub qc: Option<PathBuf>,
    /// Read no images: copies and damage are not looked for
    #[arg(long, conflicts_with_all = ["split", "leakage"])]
    pub no_images: bool,
    /// Table of subjects who are one person: columns person and subject, or subject_1 and subject_2, and perhaps their
    /// dataset
    #[arg(long, value_name = "FILE")]
    pub same_subject: Option<PathBuf>,
    /// Divide the subjects: folds:K or holdout:F
    #[arg(long, value_name = "PARTS", requires = "out", conflicts_with = "leakage")]
    pub split: Option<Parts>,
    /// What the split is drawn from
    #[arg(long, default_value_t = 0, requires = "split")]
    pub seed: u64,
    /// Table to write the split to
    #[arg(long, value_name = "FILE", requires = "split")]
    pub out: Option<PathBuf>,
    /// Compare two datasets, caches or runs
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub leakage: Vec<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Paths that are no dataset, cache or run; tables that cannot be read; files that cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let persons = args.same_subject.as_deref().map(Persons::read).transpose()?.unwrap_or_default();
    if let [a, b] = &args.leakage[..] {
        return compare(a, b, &persons, args.json.as_deref());
    }
    let path = args.dataset.as_deref().expect("clap requires a dataset");
    let source = Source::open(path)?;
    if let Source::Run { .. } = source {
        return Err(format!("{}: is a run, which keeps no scans; give its cache", path.display()).into());
    }
    match (args.split, &args.out) {
        (Some(parts), Some(out)) => split(&source, parts, args.seed, &persons, out),
        _ => show(&source, path, args),
    }
}

fn show(source: &Source, path: &Path, args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let scans: Vec<Scan> = source.scans().into_iter().map(|scan| relative(scan, path)).collect();
    let contents = if args.no_images {
        vec![None; scans.len()]
    } else {
        source.contents().into_iter().map(Some).collect()
    };
    let survey = Survey::new(&scans, &contents);
    let grades = args.qc.as_deref().map(|folder| grades(folder, &source.scans())).transpose()?;
    print!("{}", text(&survey, path, args.no_images));
    let distortion = source.distortion();
    if let Some(how) = distortion {
        let said = |key: &str| how[key].to_string().replace('"', "");
        let how = ["Level", "Seed", "Share"].map(|key| format!("{} {}", key.to_lowercase(), said(key)));
        line("distorted", &format!("{}; {DISTORTIONS} says more", how.join(", ")));
    }
    if let Some(Grades { counts, score, without }) = &grades {
        line("grades", &counted(counts));
        line("scores", &range(score.as_ref(), ""));
        if *without > 0 {
            line("", &format!("{without} scans have no grade"));
        }
    }
    list("copies, the same to the byte", survey.same_files.iter().map(|names| names.join(" = ")));
    list(
        "copies of the same voxels in other files",
        survey.same_voxels.iter().map(|names| names.join(" = ")),
    );
    list("cannot be read", survey.unreadable.iter().map(|s| s.reason.clone()));
    list("doubtful", survey.doubts.iter().cloned());
    if let Some(file) = &args.json {
        let mut value = json!(survey);
        if let Some(how) = distortion {
            value["distortion"] = how.clone();
        }
        if let Some(Grades { counts, score, without }) = grades {
            value["grades"] = json!({ "counts": counts, "score": score, "without": without });
        }
        write_bytes(file, (serde_json::to_string_pretty(&value)? + "\n").as_bytes())?;
    }
    Ok(if survey.unreadable.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// `scan` with its path counted from the dataset.
fn relative(scan: &Scan, dataset: &Path) -> Scan {
    let path = scan.path.strip_prefix(dataset).ok().filter(|p| !p.as_os_str().is_empty());
    Scan { path: path.unwrap_or(&scan.path).to_owned(), ..scan.clone() }
}

fn text(survey: &Survey, path: &Path, no_images: bool) -> String {
    let Survey { scans, subjects, visits, several_sessions, repeats, .. } = survey;
    let mut text = format!("{}: {scans} scans of {subjects} subjects in {visits} visits\n", path.display());
    let mut add = |what: &str, value: String| {
        let _ = writeln!(text, "  {what:<12}{value}");
    };
    add("modalities", counted(&survey.modalities));
    add(
        "sessions",
        format!("{several_sessions} subjects have several; {repeats} scans repeat one of their visit"),
    );
    add("ages", range(survey.ages.as_ref(), " years"));
    let most = survey.decades.values().copied().max().unwrap_or(1);
    for (decade, count) in &survey.decades {
        let bar = "#".repeat((count * 40).div_ceil(most));
        add("", format!("{:>4}-{:<4}{count:>7} {bar}", decade, decade + 9));
    }
    add("sex", counted(&survey.sexes));
    for (what, counts) in [("sites", &survey.sites), ("groups", &survey.groups)] {
        if counts.len() > 1 || !counts.contains_key("unknown") {
            add(what, counted(counts));
        }
    }
    if let Some(ratings) = &survey.ratings {
        add("ratings", range(Some(ratings), ""));
    }
    if !no_images {
        let copies = survey.same_files.len() + survey.same_voxels.len();
        let (read, failed) = (survey.images_read, survey.unreadable.len());
        add("images", format!("{read} read, {failed} cannot be; {copies} groups of copies"));
    }
    text
}

fn line(what: &str, value: &str) {
    println!("  {what:<12}{value}");
}

fn list(what: &str, items: impl ExactSizeIterator<Item = String>) {
    if items.len() > 0 {
        println!("{what}:");
        items.for_each(|item| println!("  {item}"));
    }
}

/// "12 T1w, 3 T2w", the most first.
fn counted(counts: &BTreeMap<String, usize>) -> String {
    let mut all: Vec<(&String, &usize)> = counts.iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    all.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

fn range(range: Option<&Range>, unit: &str) -> String {
    range.map_or("none".into(), |r| {
        format!("{}: {:.1} to {:.1}{unit}, mean {:.1}, SD {:.1}", r.count, r.min, r.max, r.mean, r.sd)
    })
}

/// What `gyrus qc` said of the scans of a dataset.
struct Grades {
    counts: BTreeMap<String, usize>,
    score: Option<Range>,
    /// Scans that its table does not have.
    without: usize,
}

/// Grades of `scans` in `folder/qc.tsv`, whose paths are as they were given to `gyrus qc`.
fn grades(folder: &Path, scans: &[&Scan]) -> Result<Grades, Box<dyn Error>> {
    let path = folder.join("qc.tsv");
    let file = std::fs::File::open(&path).on_file("read", &path)?;
    let mut table = csv::ReaderBuilder::new().delimiter(b'\t').quoting(false).from_reader(file);
    let header = table.headers()?.clone();
    let column = |name: &str| {
        let missing = || format!("{}: no column \"{name}\"; was it written by gyrus qc?", path.display());
        header.iter().position(|h| h == name).ok_or_else(missing)
    };
    let [at, grade, score] = [column("path")?, column("grade")?, column("score")?];
    // A folder may have been moved or named otherwise since: the end of a path is compared by whole names.
    let mut known: BTreeMap<PathBuf, (String, Option<f64>)> = BTreeMap::new();
    for row in table.records() {
        let row = row?;
        let cell = |i: usize| row.get(i).unwrap_or_default();
        known.insert(PathBuf::from(cell(at)), (cell(grade).to_owned(), cell(score).parse().ok()));
    }
    let same = |scan: &Scan| {
        let exact = known.get(&scan.path);
        exact.or_else(|| {
            let ends = |(path, _): &(&PathBuf, _)| path.ends_with(&scan.path) || scan.path.ends_with(path);
            known.iter().find(ends).map(|(_, said)| said)
        })
    };
    let (mut counts, mut scores, mut without) = (BTreeMap::new(), Vec::new(), 0);
    for scan in scans {
        match same(scan) {
            Some((grade, score)) => {
                *counts.entry(grade.clone()).or_default() += 1;
                scores.extend(score);
            }
            None => without += 1,
        }
    }
    if counts.is_empty() {
        return Err(format!("{}: has none of the scans", path.display()).into());
    }
    Ok(Grades { counts, score: Range::of(&scores), without })
}

fn split(
    source: &Source,
    parts: Parts,
    seed: u64,
    persons: &Persons,
    out: &Path,
) -> Result<ExitCode, Box<dyn Error>> {
    let scans = source.scans();
    if let Some(odd) = scans.iter().find(|s| s.age.is_some_and(|a| !(0.0..=120.0).contains(&a))) {
        let age = odd.age.unwrap_or_default();
        return Err(format!("{}: an age of {age}, but ages are years, 0 to 120", odd.path.display()).into());
    }
    let dataset = source.dataset();
    let assignment = Assignment::new(scans.iter().copied(), dataset.as_deref(), persons, parts, seed)?;
    assignment.write(out)?;
    println!("{}: {}", out.display(), assignment.hash());
    for part in assignment.parts() {
        let here = || scans.iter().filter(|s| assignment.part_of(&s.subject) == Some(part));
        let subjects: BTreeSet<&str> = here().map(|s| s.subject.as_str()).collect();
        let mut one: BTreeMap<&str, &Scan> = BTreeMap::new();
        here().for_each(|scan| {
            one.entry(&scan.subject).or_insert(scan);
        });
        let ages: Vec<f64> = one.values().filter_map(|s| s.age).map(f64::from).collect();
        let mut sexes = BTreeMap::new();
        one.values().for_each(|s| {
            *sexes.entry(s.sex.map_or("unknown".to_owned(), |s| s.to_string())).or_default() += 1;
        });
        let (people, count, ages) = (subjects.len(), here().count(), Range::of(&ages));
        let age = ages.map_or("no ages".into(), |r| format!("mean age {:.1}, SD {:.1}", r.mean, r.sd));
        println!("  {part:<12}{people} subjects, {count} scans, {age}, {}", counted(&sexes));
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(a: &Path, b: &Path, persons: &Persons, json: Option<&Path>) -> Result<ExitCode, Box<dyn Error>> {
    let (first, second) = (Source::open(a)?, Source::open(b)?);
    let (ours, theirs) = (first.identities(&second, persons), second.identities(&first, persons));
    let leakage = Leakage::between(&ours, &theirs);
    let people = |i: &Identities| i.subjects.iter().map(|(person, _)| person).collect::<BTreeSet<_>>().len();
    println!(
        "{} ({} subjects) and {} ({} subjects)",
        a.display(),
        people(&ours),
        b.display(),
        people(&theirs)
    );
    report("subjects", Some(&leakage.subjects[..]));
    report("files", leakage.files.as_deref());
    report("voxels", leakage.voxels.as_deref());
    if let Some(file) = json {
        write_bytes(file, (serde_json::to_string_pretty(&leakage)? + "\n").as_bytes())?;
    }
    Ok(if leakage.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(what: &str, shared: Option<&[(String, String)]>) {
    let Some(shared) = shared else {
        let why = "not compared: a run keeps only names, and caches only compare if prepared alike";
        return line(what, why);
    };
    line(what, &format!("{} shared", shared.len()));
    for (ours, theirs) in shared {
        line("", &if ours == theirs { ours.clone() } else { format!("{ours} = {theirs}") });
    }
}
