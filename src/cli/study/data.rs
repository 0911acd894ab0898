//! A study's data: made and prepared by the commands a user would type, then opened.
use crate::cli::step;
use crate::data::{self, Assignment, Cache, Found, Parts, Persons, Ratings, Scan, T1W, stem};
use crate::error::OnFile;
use crate::file::{write_bytes, write_whole};
use crate::machine::philox::{Philox, Purpose};
use crate::quality::graded::graded;
use crate::study::trial::arm::Kind;
use crate::study::trial::design::{Grading, OPTIONAL, Phantom, Severity, Study};
use crate::study::trial::pool::{Member, Pool, by_rank};
use crate::study::trial::setup::Setup;
use crate::train::settings;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Files of a study.
const STUDY: &str = "study.toml";
const FOLDS: &str = "folds.tsv";
const SAME: &str = "same-people.tsv";
const POOL: &str = "pool.tsv";
const QC_COHORT: &str = "qc-cohort";
const QC_PRETRAINING: &str = "qc-pretraining";

/// The seed of folds and ties: the same for all repeats.
const SEED: u64 = 0;

/// Makes and prepares what is not there yet, in `folder`/data.
pub(super) fn make(study: &Study, folder: &Path) -> Outcome<()> {
    let data = folder.join("data");
    fs::create_dir_all(&data).on_file("create", &data)?;
    let place = Place { study, data: &data };
    study.phantom.iter().try_for_each(|phantom| place.phantom(phantom))?;
    let [pretraining, cohort] =
        [&study.pretraining, &study.cohort].map(|source| place.dataset(&source.dataset));
    place.measure(&cohort, QC_COHORT)?;
    let by_qc = study.grading.iter().any(|g| g.table.is_none() && is_qc(&g.by));
    let qc = data.join(if pretraining == cohort { QC_COHORT } else { QC_PRETRAINING });
    if by_qc && pretraining != cohort {
        place.measure(&pretraining, QC_PRETRAINING)?;
    }
    for severity in &study.distortion.tiers {
        place.distort(&pretraining, severity)?;
    }
    let Found { scans: originals, .. } = data::scans(&pretraining, &[T1W.into()])?;
    let tiers = grade(study, &originals, &pretraining, &qc.join("qc.tsv"))?;
    write_rows(&data.join(POOL), &place.rows(&originals, tiers)?)?;
    let scans = place.cache(&data.join(POOL), "pool", &[T1W.to_owned()])?;
    let tested = place.cache(&cohort, "cohort", &[T1W.to_owned()])?;
    if study.prepare.modalities.len() > 1 {
        place.cache(&pretraining, "pool-multimodal", &study.prepare.modalities)?;
        place.cache(&cohort, "cohort-multimodal", &study.prepare.modalities)?;
    }
    let persons = study.design.same_subject.as_deref().map(Persons::read).transpose()?;
    write_pairs(
        &folder.join(SAME),
        &same_people([&pretraining, &cohort], &scans, &tested, persons.as_ref()),
    )?;
    let aged: Vec<&Scan> = tested.scans().iter().map(|row| &row.scan).filter(|s| s.age.is_some()).collect();
    if aged.is_empty() {
        let advice = "an `age` column in participants.tsv or in the manifest";
        return Err(format!("{}: no scan has an age to test on ({advice})", cohort.display()).into());
    }
    let parts = Parts::Folds(study.design.folds);
    Ok(Assignment::new(aged, None, &persons.unwrap_or_default(), parts, SEED)?.write(&folder.join(FOLDS))?)
}

/// Whether `folder` is that of a study.
pub(in crate::cli) fn is_study(folder: &Path) -> bool {
    folder.join(STUDY).exists()
}

/// Opens the study in `folder`, whose data are made.
pub(crate) fn open(folder: &Path) -> Outcome<Setup> {
    let study = folder.join(STUDY);
    let study: Study = settings::layer(&Study::default(), &OPTIONAL, Some(&study), &[])?;
    let data = folder.join("data");
    let scans = Cache::open(&data.join("pool"))?;
    let pool = pool(&study, &read_rows(&data.join(POOL))?, &scans, &data);
    let multimodal = study.prepare.modalities.len() > 1;
    let multimodal = multimodal.then(|| -> Outcome<[Cache; 2]> {
        Ok([Cache::open(&data.join("pool-multimodal"))?, Cache::open(&data.join("cohort-multimodal"))?])
    });
    let setup = Setup {
        folder: folder.to_owned(),
        arms: study.arms(),
        reserved: reserved(&pool, study.design.reserve),
        pool,
        scans,
        cohort: Cache::open(&data.join("cohort"))?,
        multimodal: multimodal.transpose()?,
        folds: Assignment::read(&folder.join(FOLDS))?,
        same: read_pairs(&folder.join(SAME))?,
        study,
    };
    Ok(without_all(setup)?)
}

/// Whether a grading goes by what `gyrus qc` says.
fn is_qc(by: &str) -> bool {
    ["score", "grade"].contains(&by)
}

/// Leaves out the arm of all scans where every arm has all of them.
fn without_all(mut setup: Setup) -> Result<Setup, crate::study::Error> {
    let units = setup.units();
    let draw = setup.draw(&units[0])?;
    let excluded = setup.excluded(&units[0]);
    let there = setup.pool.members.iter().filter(|m| !excluded.contains(&m.subject)).count();
    if draw.scans() == there {
        setup.arms.retain(|arm| arm.kind != Kind::All);
    }
    Ok(setup)
}

/// Where data are made.
struct Place<'a> {
    study: &'a Study,
    data: &'a Path,
}

impl Place<'_> {
    /// The folder or table of a dataset: a phantom's is in the study.
    fn dataset(&self, dataset: &Path) -> PathBuf {
        let phantom = self.study.phantom.iter().any(|p| Path::new(&p.name) == dataset);
        if phantom { self.data.join(dataset) } else { dataset.to_owned() }
    }

    fn phantom(&self, phantom: &Phantom) -> Outcome<()> {
        let out = self.data.join(&phantom.name);
        if out.exists() {
            return Ok(());
        }
        // Made under another name: what is there by its own is whole.
        let unfinished = self.data.join(format!(".unfinished-{}", phantom.name));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).on_file("remove", &unfinished)?;
        }
        let Phantom { subjects, seed, spacing, variation, missing, .. } = phantom;
        let modalities = self.study.prepare.modalities.join(",");
        let line = format!(
            "phantom --subjects {subjects} --seed {seed} --spacing {spacing} --variation {variation} --modalities {modalities} --missing {missing} --out"
        );
        step::run(&[&words(&line)[..], &[text(&unfinished)]].concat())?;
        Ok(fs::rename(&unfinished, &out).on_file("rename", &unfinished)?)
    }

    fn measure(&self, dataset: &Path, name: &str) -> Outcome<()> {
        let out = self.data.join(name);
        if out.join("contact.png").exists() {
            return Ok(());
        }
        step::run(&["qc".into(), text(dataset), "--out".into(), text(&out)])
    }

    fn distort(&self, dataset: &Path, severity: &Severity) -> Outcome<()> {
        let how = match severity {
            Severity::Level(level) => ["--level".to_owned(), level.to_string()],
            Severity::Recipe(path) => ["--recipe".to_owned(), text(path)],
        };
        let seed = ["--seed".to_owned(), self.study.distortion.seed.to_string()];
        let out = ["--out".to_owned(), text(&self.data.join(severity.name()))];
        step::run(&[&["distort".to_owned(), text(dataset)][..], &how, &seed, &out].concat())
    }

    fn cache(&self, dataset: &Path, name: &str, modalities: &[String]) -> Outcome<Cache> {
        let out = self.data.join(name);
        let [x, y, z] = self.study.prepare.grid;
        let mut line = words(&format!("prepare --grid {x} {y} {z} --modalities {}", modalities.join(",")));
        if self.study.prepare.spacing > 0.0 {
            line.extend(["--spacing".to_owned(), self.study.prepare.spacing.to_string()]);
        }
        line.extend([text(dataset), "--out".into(), text(&out)]);
        step::run(&line)?;
        Ok(Cache::open(&out)?)
    }

    /// The scans of the pool, as they are and distorted.
    fn rows(&self, originals: &[Scan], tiers: Vec<String>) -> Outcome<Vec<Row>> {
        let key = |scan: &Scan| (scan.subject.clone(), stem(&scan.path));
        let of: HashMap<_, PathBuf> = originals.iter().map(|scan| (key(scan), full(&scan.path))).collect();
        let row = |(scan, tiers)| Row { tiers, ..Row::new(scan) };
        let mut rows: Vec<Row> = originals.iter().zip(tiers).map(row).collect();
        for tier in &self.study.distortion.tiers {
            let Found { scans, .. } = data::scans(&self.data.join(tier.name()), &[T1W.into()])?;
            let copy = |scan: &Scan| {
                let copy_of = Some(of.get(&key(scan))?.clone());
                Some(Row { copy_of, severity: tier.name(), ..Row::new(scan) })
            };
            rows.extend(scans.iter().filter_map(copy));
        }
        Ok(rows)
    }
}

/// A scan of the pool: a line of its table, which is a manifest too.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    path: PathBuf,
    mask: Option<PathBuf>,
    subject: String,
    session: Option<String>,
    run: Option<String>,
    modality: String,
    age: Option<f32>,
    sex: Option<String>,
    site: Option<String>,
    group: Option<String>,
    quality: Option<f32>,
    /// The distorted tier, or nothing.
    severity: String,
    /// The scan that it was distorted from.
    copy_of: Option<PathBuf>,
    /// Its tier in each grading, between bars.
    tiers: String,
}

impl Row {
    fn new(scan: &Scan) -> Row {
        Row {
            path: full(&scan.path),
            mask: scan.mask.as_deref().map(full),
            subject: scan.subject.clone(),
            session: scan.session.clone(),
            run: scan.run.clone(),
            modality: scan.modality.clone(),
            age: scan.age,
            sex: scan.sex.map(|sex| sex.to_string()),
            site: scan.site.clone(),
            group: scan.group.clone(),
            quality: scan.quality,
            severity: String::new(),
            copy_of: None,
            tiers: String::new(),
        }
    }
}

/// The path from the root, as far as that can be said.
fn full(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn write_rows(path: &Path, rows: &[Row]) -> Outcome<()> {
    write_whole(path, |file| {
        let mut table = csv::WriterBuilder::new().delimiter(b'\t').from_writer(file);
        rows.iter().try_for_each(|row| table.serialize(row))?;
        table.flush()
    })?;
    Ok(())
}

fn read_rows(path: &Path) -> Outcome<Vec<Row>> {
    let mut table = csv::ReaderBuilder::new().delimiter(b'\t').from_path(path)?;
    table
        .deserialize()
        .collect::<Result<Vec<Row>, _>>()
        .map_err(|e| format!("{}: {e}", path.display()).into())
}

fn write_pairs(path: &Path, pairs: &BTreeMap<String, BTreeSet<String>>) -> Outcome<()> {
    let line =
        |(a, b): (&String, &BTreeSet<String>)| b.iter().map(|b| format!("{a}\t{b}\n")).collect::<String>();
    let lines: String = pairs.iter().map(line).collect();
    Ok(write_bytes(path, format!("cohort\tpretraining\n{lines}").as_bytes())?)
}

fn read_pairs(path: &Path) -> Outcome<BTreeMap<String, BTreeSet<String>>> {
    let text = fs::read_to_string(path).on_file("read", path)?;
    let mut pairs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (a, b) in text.lines().skip(1).filter_map(|line| line.split_once('\t')) {
        pairs.entry(a.to_owned()).or_default().insert(b.to_owned());
    }
    Ok(pairs)
}

/// The tier of each scan in every grading, between bars.
fn grade(study: &Study, scans: &[Scan], dataset: &Path, qc: &Path) -> Outcome<Vec<String>> {
    let mut all: Vec<Vec<&str>> = vec![Vec::new(); scans.len()];
    for Grading { name, by, table, less_is_better, tiers } in &study.grading {
        let tier: Vec<Option<usize>> = if by == "grade" && table.is_none() {
            let grades: HashMap<PathBuf, String> =
                graded(qc)?.into_iter().map(|g| (full(&g.path), g.grade)).collect();
            let of = |scan: &Scan| tiers.iter().position(|tier| Some(tier) == grades.get(&full(&scan.path)));
            scans.iter().map(of).collect()
        } else {
            let participants = dataset.join("participants.tsv");
            let source = if is_qc(by) { qc } else { &participants };
            let ratings = Ratings::read(table.as_deref().unwrap_or(source), by)?;
            let sign = if *less_is_better { -1.0 } else { 1.0 };
            let values: Vec<Option<f64>> = scans.iter().map(|s| Some(sign * ratings.get(s)?)).collect();
            by_rank(&values, tiers.len(), SEED)
        };
        if let Some(t) = (0..tiers.len()).find(|t| !tier.contains(&Some(*t))) {
            return Err(format!("grading \"{name}\": no scan is in tier \"{}\" (by {by})", tiers[t]).into());
        }
        let label = |tier: Option<usize>| tier.map_or("", |t| tiers[t].as_str());
        all.iter_mut().zip(tier).for_each(|(of_scan, tier)| of_scan.push(label(tier)));
    }
    Ok(all.into_iter().map(|of_scan| of_scan.join("|")).collect())
}

/// The scans that could be prepared, with their tiers and their copies.
fn pool(study: &Study, rows: &[Row], cache: &Cache, root: &Path) -> Pool {
    let root = full(root);
    let sample_of: HashMap<PathBuf, usize> =
        cache.scans().iter().map(|row| (root.join(&row.scan.path), row.row)).collect();
    let severities: Vec<String> = study.distortion.tiers.iter().map(Severity::name).collect();
    let mut copies: HashMap<&Path, Vec<Option<usize>>> = HashMap::new();
    for row in rows {
        if let (Some(original), Some(at)) = (&row.copy_of, severities.iter().position(|s| *s == row.severity))
        {
            let of = copies.entry(original).or_insert_with(|| vec![None; severities.len()]);
            of[at] = sample_of.get(&row.path).copied();
        }
    }
    let member = |row: &Row| {
        let names = row.tiers.split('|');
        let tier = |(grading, name): (&Grading, &str)| grading.tiers.iter().position(|tier| tier == name);
        Some(Member {
            sample: *sample_of.get(&row.path)?,
            subject: row.subject.clone(),
            age: row.age,
            site: row.site.clone(),
            tiers: study.grading.iter().zip(names).map(tier).collect(),
            copies: copies.get(&*row.path).cloned().unwrap_or_else(|| vec![None; severities.len()]),
        })
    };
    let members = rows.iter().filter(|row| row.copy_of.is_none()).filter_map(member).collect();
    Pool { members, gradings: study.grading.iter().map(|g| g.tiers.len()).collect() }
}

/// For each subject of the cohort those of the pool who are the same person: by name in one dataset, by the table of who is
/// who, or because a file of both is the same.
fn same_people(
    datasets: [&Path; 2],
    pool: &Cache,
    cohort: &Cache,
    persons: Option<&Persons>,
) -> BTreeMap<String, BTreeSet<String>> {
    let one = datasets[0] == datasets[1];
    let named = datasets.map(|d| d.file_name().map(|name| name.to_string_lossy().into_owned()));
    let person = |dataset: &Option<String>, subject: &str| {
        persons.map_or_else(|| subject.to_owned(), |p| p.of(dataset.as_deref(), subject))
    };
    let mut by_person: HashMap<String, BTreeSet<String>> = HashMap::new();
    let mut by_file: HashMap<&str, BTreeSet<String>> = HashMap::new();
    for row in pool.scans() {
        let subject = &row.scan.subject;
        by_person.entry(person(&named[0], subject)).or_default().insert(subject.clone());
        by_file.entry(&row.measured.blake3).or_default().insert(subject.clone());
    }
    let mut same: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in cohort.scans() {
        let subject = &row.scan.subject;
        let by_name =
            (one || persons.is_some()).then(|| by_person.get(&person(&named[1], subject))).flatten();
        for found in by_name.into_iter().chain(by_file.get(row.measured.blake3.as_str())) {
            same.entry(subject.clone()).or_default().extend(found.iter().cloned());
        }
    }
    same
}

/// People of the pool that nothing is pretrained on, so that there is somebody to reconstruct.
fn reserved(pool: &Pool, share: f64) -> BTreeSet<String> {
    let subjects: BTreeSet<&String> = pool.members.iter().map(|m| &m.subject).collect();
    let mut subjects: Vec<&String> = subjects.into_iter().collect();
    Philox::new(SEED, Purpose::Draw, 2, 0).shuffle(&mut subjects);
    subjects.truncate((share * subjects.len() as f64).round() as usize);
    subjects.into_iter().cloned().collect()
}

/// The settings that a study is held to, and where it is repeated from; another study in the same place is refused.
pub(super) fn claim(study: &Study, folder: &Path) -> Outcome<()> {
    let path = folder.join(STUDY);
    let text = toml::to_string(study)?;
    if path.exists() {
        if fs::read_to_string(&path).on_file("read", &path)? != text {
            let advice = "give another --out, or the study it was begun with";
            return Err(format!("{}: holds another study; {advice}", folder.display()).into());
        }
        return Ok(());
    }
    fs::create_dir_all(folder).on_file("create", folder)?;
    Ok(write_bytes(&path, text.as_bytes())?)
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
