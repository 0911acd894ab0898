//! `gyrus qc`: what scans are worth, measured.
use super::qc_table::{self, Row};
use crate::{
    data::{self, Found, Member as Person, Ratings, Scan, Skipped, Split, T1W},
    error::{OnFile, chain},
    file::write_bytes,
    image::{self, orientation::to_ras},
    quality::{self, Grade, Member, Thresholds},
    report::{contact, montage},
    study::agreement::{Pair, spearman, spearman_given},
};
use indicatif::ProgressBar;
use rayon::prelude::*;
use std::{
    collections::HashSet,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Folds of the calibration, and what they are drawn from.
const FOLDS: usize = 10;
const SEED: u64 = 0;
/// Scans on the contact sheet: the worst.
const SHEET: usize = 400;

/// Measure the quality of scans and grade them: Excellent, Acceptable, Poor or Exclude, with reasons.
///
/// Writes qc.tsv (a line a scan), qc.json (what the columns are), contact.png (worst first) and thumbnails.png (small
/// slices in the order of the lines); gyrus report OUT makes a page of them. Brain masks are used where the dataset has them; measures that are undefined for a scan, such as those of air for a skull-stripped one,
/// are n/a. A scan that cannot be read is excluded, with the reason; the exit code is then 3.
///
/// Example: gyrus qc DATASET --out qc --column quality_rating
#[derive(clap::Args, Debug)]
pub struct Args {
    /// BIDS folders, manifests or NIfTI files
    #[arg(required_unless_present = "print_thresholds", value_name = "DATASET|FILE")]
    pub inputs: Vec<PathBuf>,
    /// Folder to write
    #[arg(long, required_unless_present = "print_thresholds")]
    pub out: Option<PathBuf>,
    /// TOML file with limits and grades other than the default ones
    #[arg(long, value_name = "FILE")]
    pub thresholds: Option<PathBuf>,
    /// Print the thresholds in the form that --thresholds reads, and stop
    #[arg(long)]
    pub print_thresholds: bool,
    /// Grade by rank instead: the percentiles below which scans are excluded, poor and acceptable, e.g. 10,30,70
    #[arg(long, value_delimiter = ',', num_args = 1, value_name = "A,B,C", value_parser = percent)]
    pub quantiles: Vec<f64>,
    /// Column of ratings (more is better) to fit a score to, cross-validated by subject
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
    /// Table with that column, e.g. of MRIQC; without it, participants.tsv of the dataset
    #[arg(long, value_name = "FILE", requires = "column")]
    pub ratings: Option<PathBuf>,
    /// What --quantiles rank
    #[arg(long, value_enum, default_value_t = By::Score, requires = "quantiles")]
    pub by: By,
}

/// What grades by rank go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// The score
    Score,
    /// The cross-validated prediction of the ratings; the score where there is none
    Prediction,
    /// The ratings; scans without one keep the grade of their score
    Rating,
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or_else(|| "must be from 0 to 100".into())
}

/// Runs `gyrus qc`.
///
/// # Errors
/// Unusable thresholds or ratings; datasets without scans; files that cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let thresholds = match &args.thresholds {
        None => Thresholds::default(),
        Some(path) => {
            let text = fs::read_to_string(path).on_file("read", path)?;
            Thresholds::read(&text).map_err(|e| format!("{}: {}", path.display(), chain(&e)))?
        }
    };
    if args.print_thresholds {
        print!("{}", toml::to_string(&thresholds)?);
        return Ok(ExitCode::SUCCESS);
    }
    let out = args.out.as_deref().expect("clap requires a folder");
    let quantiles = match args.quantiles[..] {
        [] => None,
        [a, b, c] if a <= b && b <= c => Some([a, b, c]),
        _ => return Err("--quantiles: give three percentiles, ascending, e.g. 10,30,70".into()),
    };
    let (scans, ratings) = find(args)?;
    fs::create_dir_all(out).on_file("create", out)?;

    let bar = ProgressBar::new(scans.len() as u64).with_style(super::phantom::style());
    let mut rows: Vec<Row> = scans
        .into_par_iter()
        .zip(ratings)
        .map(|(scan, rating)| {
            let row = look_at(scan, rating, &thresholds);
            bar.inc(1);
            row
        })
        .collect();
    bar.finish_and_clear();

    let weights = if args.column.is_some() { calibrate(&mut rows)? } else { Vec::new() };
    if let Some(percentiles) = quantiles {
        grade_by_rank(&mut rows, percentiles, args.by);
    }
    write_bytes(&out.join("qc.tsv"), qc_table::tsv(&rows, args.column.is_some())?.as_bytes())?;
    let sidecar = qc_table::sidecar(args.column.as_deref());
    write_bytes(&out.join("qc.json"), format!("{sidecar:#}\n").as_bytes())?;
    sheet(&rows, &out.join("contact.png"))?;
    let tiles = contact::tiles(rows.iter().map(|row| row.thumbnail.as_ref()));
    montage::write(&out.join("thumbnails.png"), &tiles)?;
    say(&rows, args, &weights, out)?;
    let unread = rows.iter().filter(|r| r.measured.is_err()).count();
    Ok(if unread > 0 { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

/// Scans, and the rating of each.
type Rated = (Vec<Scan>, Vec<Option<f64>>);

/// The scans of all inputs, each once, and their ratings.
fn find(args: &Args) -> Result<Rated, Box<dyn Error>> {
    let mut seen = HashSet::new();
    let (mut scans, mut ratings) = (Vec::new(), Vec::new());
    for input in &args.inputs {
        let found = match data::scans(input, &[T1W.into()]) {
            // A file that is missing or damaged must not stop the others: reading it will say what it is.
            Err(_) if is_image(input) => vec![Scan::unknown(input.clone())],
            other => {
                let Found { scans, unsaid } = other?;
                unsaid.into_iter().for_each(|path| eprintln!("warning: {}", Skipped::unsaid(path).reason));
                scans
            }
        };
        let table = match (&args.column, &args.ratings) {
            (None, _) => None,
            (Some(column), Some(path)) => Some(Ratings::read(path, column)?),
            (Some(column), None) if input.is_dir() => {
                Some(Ratings::read(&input.join("participants.tsv"), column)?)
            }
            (Some(column), None) => {
                let input = input.display();
                return Err(
                    format!("{input}: has no participants.tsv for \"{column}\"; give --ratings").into()
                );
            }
        };
        for scan in found.into_iter().filter(|scan| seen.insert(scan.path.clone())) {
            ratings.push(table.as_ref().and_then(|t| t.get(&scan)));
            scans.push(scan);
        }
    }
    Ok((scans, ratings))
}

fn is_image(path: &Path) -> bool {
    let name = path.to_string_lossy().to_ascii_lowercase();
    name.ends_with(".nii") || name.ends_with(".nii.gz") || name.ends_with(".hdr") || name.ends_with(".img")
}

/// Reads and measures one scan.
fn look_at(scan: Scan, rating: Option<f64>, thresholds: &Thresholds) -> Row {
    let mut thumbnail = None;
    let mut measure = || -> Result<quality::Measured, image::Error> {
        let volume = to_ras(image::read(&scan.path)?.1);
        thumbnail = Some(contact::Thumbnail::of(&volume));
        let mask = scan.mask.as_deref().map(image::read).transpose()?.map(|(_, mask)| mask);
        quality::measure(&volume, mask)
    };
    let measured = measure().map_err(|e| chain(&e).replace("\n  because", ":"));
    let (score, grade, reasons) = match &measured {
        Ok(m) => {
            let standing = thresholds.standing(&m.measures);
            (standing.score, standing.grade, standing.reasons)
        }
        Err(reason) => (0.0, Grade::Exclude, vec![reason.clone()]),
    };
    Row { scan, measured, score, grade, reasons, rating, predicted: None, thumbnail }
}

/// Fits a score to the ratings and predicts each rated scan's from other subjects'. Returns the weights.
fn calibrate(rows: &mut [Row]) -> Result<Vec<(&'static str, f64)>, Box<dyn Error>> {
    let rated: Vec<usize> =
        (0..rows.len()).filter(|&i| rows[i].rating.is_some() && rows[i].measured.is_ok()).collect();
    let subjects: HashSet<&str> = rated.iter().map(|&i| rows[i].scan.subject.as_str()).collect();
    let folds = FOLDS.min(subjects.len());
    if folds < 3 {
        let found = subjects.len();
        return Err(
            format!("{found} subjects have both a rating and measures; a fit needs at least 3").into()
        );
    }
    let people: Vec<Person> = rated
        .iter()
        .map(|&row| Person { row, subject: &rows[row].scan.subject, age: rows[row].scan.age })
        .collect();
    let split = Split::folds(&people, folds, SEED)?;
    let mut fold = vec![0; rows.len()];
    (0..folds).for_each(|part| split.rows(part).into_iter().for_each(|row| fold[row] = part));
    let members: Vec<Member> = rated
        .iter()
        .filter_map(|&i| {
            let measures = &rows[i].measured.as_ref().ok()?.measures;
            Some(Member { measures, rating: rows[i].rating?, fold: fold[i] })
        })
        .collect();
    let fit =
        quality::calibrate(&members).ok_or("the ratings are all alike: nothing can be fitted to them")?;
    for (&row, rating) in rated.iter().zip(&fit.ratings) {
        rows[row].predicted = Some(*rating);
    }
    Ok(fit.weights)
}

fn grade_by_rank(rows: &mut [Row], percentiles: [f64; 3], by: By) {
    let value = |row: &Row| match by {
        By::Score => Some(row.score),
        By::Prediction => row.predicted,
        By::Rating => row.rating,
    };
    let ranked: Vec<usize> =
        (0..rows.len()).filter(|&i| rows[i].measured.is_ok() && value(&rows[i]).is_some()).collect();
    let values: Vec<f64> = ranked.iter().filter_map(|&i| value(&rows[i])).collect();
    for (&row, grade) in ranked.iter().zip(quality::grade_by_quantiles(&values, percentiles)) {
        rows[row].grade = grade;
    }
}

/// The contact sheet, from the worst.
fn sheet(rows: &[Row], path: &Path) -> Result<(), Box<dyn Error>> {
    let mut order: Vec<&Row> = rows.iter().collect();
    order.sort_by(|a, b| a.grade.cmp(&b.grade).then(a.score.total_cmp(&b.score)));
    let cell = |row: &&Row| contact::Cell {
        thumbnail: row.thumbnail.clone(),
        lines: [
            [Some(row.scan.subject.clone()), row.scan.session.clone()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" "),
            format!("{} {:.0}", row.grade, row.score),
        ],
        colour: match row.grade {
            Grade::Excellent => [110, 200, 120],
            Grade::Acceptable => [150, 180, 230],
            Grade::Poor => [235, 180, 80],
            Grade::Exclude => [235, 90, 80],
        },
    };
    let cells: Vec<contact::Cell> = order.iter().take(SHEET).map(cell).collect();
    Ok(montage::write(path, &contact::draw(&cells))?)
}

/// What was found, in a few lines.
fn say(rows: &[Row], args: &Args, weights: &[(&str, f64)], out: &Path) -> Result<(), Box<dyn Error>> {
    println!("{}: {} scans", out.display(), rows.len());
    for grade in [Grade::Excellent, Grade::Acceptable, Grade::Poor, Grade::Exclude] {
        println!("  {:10} {}", grade.to_string(), rows.iter().filter(|r| r.grade == grade).count());
    }
    if rows.len() > SHEET {
        println!("contact.png shows the worst {SHEET}");
    }
    for row in rows {
        if let Err(reason) = &row.measured {
            eprintln!("cannot be measured: {}: {reason}", row.scan.path.display());
        }
    }
    let Some(column) = &args.column else { return Ok(()) };
    let rated: Vec<(&Row, f64, f64)> =
        rows.iter().filter_map(|row| Some((row, row.rating?, row.predicted?))).collect();
    println!("{column}, {} rated scans; Spearman's correlation (95 % interval over subjects):", rated.len());
    let report = |name: &str, of: &dyn Fn(&(&Row, f64, f64)) -> f64| {
        let pair = |r: &(&'_ Row, f64, f64)| (of(r), r.1, r.0.scan.age);
        let all: Vec<Pair> =
            rated.iter().map(|r| Pair { subject: &r.0.scan.subject, a: pair(r).0, b: r.1 }).collect();
        let e = spearman(&all, SEED);
        println!("  {name:33} {:.2} ({:.2} to {:.2})", e.value, e.low, e.high);
        let aged: Vec<(Pair, f64)> =
            all.iter().zip(&rated).filter_map(|(p, r)| Some((*p, f64::from(r.0.scan.age?)))).collect();
        if aged.len() >= 3 {
            let (pairs, ages): (Vec<Pair>, Vec<f64>) = aged.into_iter().unzip();
            let e = spearman_given(&pairs, &ages, SEED);
            let n = pairs.len();
            println!("    age taken out ({n} of known age)  {:.2} ({:.2} to {:.2})", e.value, e.low, e.high);
        }
    };
    report("score, fitted to nothing", &|r| r.0.score);
    report("prediction, cross-validated", &|r| r.2);
    let heaviest: Vec<String> = weights.iter().take(5).map(|(name, w)| format!("{name} {w:+.3}")).collect();
    println!("heaviest weights: {}", heaviest.join(", "));
    Ok(())
}
