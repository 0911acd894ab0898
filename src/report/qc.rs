//! The page of a `gyrus qc` folder: every scan with its slices, its grade and the reasons for it.
use super::{
    chart::{Bars, Histogram, Point, Scatter},
    contact,
    html::{Cell, Column, Page, Table, details, escape, figures, fixed, note, numbers, paragraph},
    montage,
    pretraining::name,
    viewer::base64,
};
use crate::{
    error::{FileError, OnFile},
    study::agreement::{Pair, spearman},
};
use serde_json::Value;
use std::{fs, io, path::Path};

/// Scans with slices: the worst.
const SHOWN: usize = 400;
/// The bootstrap's seed: fixed, so that a table always has the same intervals.
const SEED: u64 = 0;
/// Grades from the best, each with the number of its colour and a mark of its own.
const GRADES: [(&str, usize, &str); 4] = [
    ("Excellent", 2, "\u{25cf}"),
    ("Acceptable", 0, "\u{25d0}"),
    ("Poor", 4, "\u{25b3}"),
    ("Exclude", 1, "\u{2715}"),
];
/// Columns of qc.tsv that are no measures.
const OTHERS: [&str; 11] = [
    "participant_id",
    "session_id",
    "modality",
    "path",
    "state",
    "region",
    "score",
    "grade",
    "reasons",
    "rating",
    "predicted_rating",
];

/// One line of qc.tsv.
struct Scan {
    subject: String,
    session: String,
    path: String,
    state: String,
    score: f64,
    /// Its place in [`GRADES`]; after the last where it is none of them.
    grade: usize,
    reasons: String,
    rating: f64,
    predicted: f64,
    /// As they stand in the file, in the order of the columns.
    measures: Vec<f64>,
}

/// The page of the folder that `gyrus qc --out` wrote.
///
/// # Errors
/// Files that cannot be read or do not fit each other.
pub fn page(folder: &Path) -> Result<String, FileError> {
    let (names, scans) = read(&folder.join("qc.tsv"))?;
    let about = about(&folder.join("qc.json"))?;
    let worst = |&a: &usize, &b: &usize| {
        scans[b].grade.cmp(&scans[a].grade).then(scans[a].score.total_cmp(&scans[b].score))
    };
    let mut order: Vec<usize> = (0..scans.len()).collect();
    order.sort_by(worst);
    let counts: Vec<usize> =
        (0..GRADES.len()).map(|g| scans.iter().filter(|scan| scan.grade == g).count()).collect();

    let (all, excluded) = (scans.len(), counts[3]);
    let fit = counts[0] + counts[1];
    let lead = format!(
        "{all} scans were measured and graded by documented limits: {fit} are excellent or acceptable, {} poor, \
         {excluded} not to be used.",
        counts[2]
    );
    let mut page = Page::new("Quality of scans", &name(folder), &lead);
    page.section("Grades", grades(&scans, &counts));
    page.section("Scans", table(&scans, &order, tiles(folder, scans.len(), &order)?));
    page.section("Agreement with ratings", ratings(&scans, &about));
    page.section("Measures", measures(&names, &scans, &order, &about));
    Ok(page.render())
}

fn read(path: &Path) -> Result<(Vec<String>, Vec<Scan>), FileError> {
    let bad = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let bytes = fs::read(path).on_file("read", path)?;
    let mut table = csv::ReaderBuilder::new().delimiter(b'\t').quoting(false).from_reader(bytes.as_slice());
    let header = table.headers().map_err(io::Error::from).on_file("read", path)?.clone();
    let column = |name: &str| header.iter().position(|h| h == name);
    if let Some(missing) = ["participant_id", "path", "score", "grade"].iter().find(|c| column(c).is_none()) {
        let problem = bad(format!("it has no column `{missing}`: was it written by gyrus qc?"));
        return Err(problem).on_file("read", path);
    }
    let measured: Vec<usize> = (0..header.len()).filter(|&i| !OTHERS.contains(&&header[i])).collect();
    let mut scans = Vec::new();
    for record in table.records() {
        let record = record.map_err(io::Error::from).on_file("read", path)?;
        let text = |name: &str| {
            let cell = column(name).and_then(|i| record.get(i)).unwrap_or_default();
            if cell == "n/a" { String::new() } else { cell.to_owned() }
        };
        let number = |cell: Option<&str>| cell.and_then(|c| c.parse().ok()).unwrap_or(f64::NAN);
        let named = |name: &str| number(column(name).and_then(|i| record.get(i)));
        let grade = text("grade");
        scans.push(Scan {
            subject: text("participant_id"),
            session: text("session_id"),
            path: text("path"),
            state: text("state"),
            score: named("score"),
            grade: GRADES.iter().position(|g| g.0 == grade).unwrap_or(GRADES.len()),
            reasons: text("reasons"),
            rating: named("rating"),
            predicted: named("predicted_rating"),
            measures: measured.iter().map(|&i| number(record.get(i))).collect(),
        });
    }
    Ok((measured.iter().map(|&i| header[i].to_owned()).collect(), scans))
}

/// The sidecar; one that is missing says nothing.
fn about(path: &Path) -> Result<Value, FileError> {
    match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Value::Null),
        bytes => serde_json::from_slice(&bytes.on_file("read", path)?)
            .map_err(io::Error::from)
            .on_file("read", path),
    }
}

/// The tiles of the worst scans, in the order of `order`, as a PNG; `None` where the folder has no thumbnails.
fn tiles(folder: &Path, count: usize, order: &[usize]) -> Result<Option<Vec<u8>>, FileError> {
    let path = folder.join("thumbnails.png");
    if !path.exists() {
        return Ok(None);
    }
    let wrong = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let picture = image::open(&path).map_err(|e| wrong(e.to_string())).on_file("read", &path)?.to_luma8();
    let shown = &order[..order.len().min(SHOWN)];
    let picked = contact::pick(&picture, count, shown)
        .ok_or_else(|| wrong("it does not belong to qc.tsv; run gyrus qc again".to_owned()))
        .on_file("read", &path)?;
    Ok(Some(montage::png(&picked)))
}

fn grades(scans: &[Scan], counts: &[usize]) -> String {
    let bars: Vec<(String, usize, usize)> =
        GRADES.iter().zip(counts).map(|((name, colour, _), n)| ((*name).to_owned(), *n, *colour)).collect();
    let bars = Bars { title: "Scans of each grade", caption: "", bars: &bars };
    let scores: Vec<f64> = scans.iter().map(|scan| scan.score).collect();
    let caption = "100 is without a fault; every measure at its limit \"bad\" halves the score.";
    let scores = Histogram {
        title: "Scores",
        caption,
        axes: ["score", "scans"],
        values: &scores,
        range: Some([0.0, 100.0]),
        bins: 25,
    };
    figures(&[bars.render(), scores.render()], false)
}

fn scan_name(scan: &Scan) -> String {
    [scan.subject.as_str(), &scan.session].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" ")
}

fn grade(scan: &Scan) -> Cell {
    let Some((name, colour, mark)) = GRADES.get(scan.grade) else { return Cell::text("n/a") };
    let html = format!("<span class=\"grade c{colour}\" data-mark=\"{mark}\">{name}</span>");
    Cell::html(html, Some((GRADES.len() - scan.grade) as f64))
}

fn table(scans: &[Scan], order: &[usize], tiles: Option<Vec<u8>>) -> String {
    let rated = scans.iter().any(|scan| scan.rating.is_finite());
    let mut columns = vec![("Scan", Column::Text), ("Grade", Column::Rank), ("Score", Column::Number)];
    if tiles.is_some() {
        columns.insert(1, ("Axial, coronal, sagittal", Column::Picture));
    }
    if rated {
        columns.extend([("Rating", Column::Number), ("Predicted rating", Column::Number)]);
    }
    columns.extend([("Faults", Column::Words), ("State", Column::Text)]);
    let mut table = Table::new("All scans, worst first; a click on a heading sorts", &columns);
    for (i, &number) in order.iter().enumerate() {
        let scan = &scans[number];
        let who = scan_name(scan);
        let (name, path) = (escape(&who), escape(&scan.path));
        let mut cells = vec![Cell::html(format!("<span title=\"{path}\">{name}</span>"), None)];
        if tiles.is_some() {
            let [x, y] = contact::tile(i);
            let picture = format!(
                "<span class=\"thumb\" role=\"img\" aria-label=\"Slices of {name}\" \
                 style=\"background-position:-{x}px -{y}px\"></span>"
            );
            cells.push(if i < SHOWN { Cell::html(picture, None) } else { Cell::text("") });
        }
        cells.extend([grade(scan), Cell::number(scan.score, 1)]);
        if rated {
            cells.extend([Cell::number(scan.rating, 2), Cell::number(scan.predicted, 2)]);
        }
        cells.extend([Cell::text(&scan.reasons), Cell::text(&scan.state)]);
        table.row(cells);
    }
    let said = match &tiles {
        None => {
            note("Slices are shown where gyrus qc has written thumbnails.png; run it again to have them.")
        }
        Some(_) if scans.len() > SHOWN => note(&format!("Slices are shown for the worst {SHOWN} scans.")),
        Some(_) => String::new(),
    };
    let style = tiles.map_or(String::new(), |png| {
        format!("<style>.thumb{{background-image:url(data:image/png;base64,{})}}</style>\n", base64(&png))
    });
    style + &said + &table.render()
}

fn ratings(scans: &[Scan], about: &Value) -> String {
    let rated: Vec<&Scan> =
        scans.iter().filter(|s| s.rating.is_finite() && s.predicted.is_finite()).collect();
    if rated.len() < 3 {
        return String::new();
    }
    let agreement = |of: fn(&Scan) -> f64| {
        let pairs: Vec<Pair> =
            rated.iter().map(|s| Pair { subject: &s.subject, a: of(s), b: s.rating }).collect();
        let e = spearman(&pairs, SEED);
        (fixed(e.value, 2), format!("{} to {}", fixed(e.low, 2), fixed(e.high, 2)))
    };
    let (score, predicted) = (agreement(|s| s.score), agreement(|s| s.predicted));
    let points: Vec<Point> = rated
        .iter()
        .map(|s| {
            let label = format!(
                "{}: rated {}, predicted {}",
                scan_name(s),
                fixed(s.rating, 2),
                fixed(s.predicted, 2)
            );
            Point { x: s.rating, y: s.predicted, label }
        })
        .collect();
    let scatter = Scatter {
        title: "Predicted and given rating",
        caption: "Each prediction is from a fit to the measures and ratings of other people.",
        axes: ["rating", "predicted rating"],
        points: &points,
        fit: None,
        range: None,
        small: false,
    };
    let source = about["rating"]["Description"].as_str().unwrap_or_default();
    paragraph(&format!(
        "{} scans have a rating ({source}). Agreement is Spearman's correlation with its 95 % interval over people.",
        rated.len()
    )) + &numbers(&[
        (score.0, "score, fitted to nothing", score.1),
        (predicted.0, "prediction, cross-validated", predicted.1),
    ]) + &scatter.render()
}

fn measures(names: &[String], scans: &[Scan], order: &[usize], about: &Value) -> String {
    let word = |name: &str, key: &str| about[name][key].as_str().unwrap_or_default().to_owned();
    let columns = [
        ("Column", Column::Text),
        ("Measure", Column::Words),
        ("Unit", Column::Text),
        ("5th", Column::Number),
        ("Median", Column::Number),
        ("95th percentile", Column::Number),
        ("Known for", Column::Number),
        ("What it is", Column::Words),
    ];
    let mut summary = Table::new("What was measured, and how these scans spread", &columns);
    for (i, name) in names.iter().enumerate() {
        let mut values: Vec<f64> = scans.iter().map(|s| s.measures[i]).filter(|v| v.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = (q * values.len().saturating_sub(1) as f64).round() as usize;
            values.get(rank).copied().unwrap_or(f64::NAN)
        };
        let mut cells =
            vec![Cell::text(name), Cell::text(&word(name, "LongName")), Cell::text(&word(name, "Units"))];
        cells.extend([0.05, 0.5, 0.95].map(|q| figure(at(q))));
        cells.extend([Cell::count(values.len()), Cell::text(&word(name, "Description"))]);
        summary.row(cells);
    }
    let mut columns = vec![("Scan", Column::Text)];
    columns.extend(names.iter().map(|name| (name.as_str(), Column::Number)));
    let mut all = Table::new("Every measure of every scan", &columns);
    for scan in order.iter().map(|&i| &scans[i]) {
        let mut cells = vec![Cell::text(&scan_name(scan))];
        cells.extend(scan.measures.iter().map(|v| figure(*v)));
        all.row(cells);
    }
    details("What was measured", &summary.render()) + &details("Every measure of every scan", &all.render())
}

/// Four figures, whatever the size.
fn figure(value: f64) -> Cell {
    let size = if value == 0.0 || !value.is_finite() { 0 } else { value.abs().log10().floor() as i32 };
    Cell::number((value * 1e6).round() / 1e6, usize::try_from(3 - size).unwrap_or_default().min(6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(table: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("qc.tsv"), table).unwrap();
        folder
    }

    const TABLE: &str = "participant_id\tsession_id\tpath\tstate\tcnr\tscore\tgrade\treasons\n\
                         sub-1\tn/a\ta.nii\twhole head\t1.25\t80\tExcellent\tn/a\n\
                         sub-2\tses-<b>\tb.nii\tn/a\tn/a\t0\tExclude\tno \"NIfTI\"\n";

    #[test]
    fn scans_stand_worst_first_and_everything_is_escaped() {
        let folder = folder(TABLE);
        let html = page(folder.path()).unwrap();
        assert!(html.find("sub-2 ses-&lt;b&gt;").unwrap() < html.find(">sub-1<").unwrap());
        assert!(html.contains("no &quot;NIfTI&quot;") && html.contains("run it again to have them"));
        assert!(html.contains("1 are excellent or acceptable, 0 poor, 1 not to be used"));
        assert!(!html.contains("Agreement with ratings"));
    }

    #[test]
    fn thumbnails_of_another_table_are_refused() {
        let folder = folder(TABLE);
        let tiles = contact::tiles((0..30).map(|_| None));
        montage::write(&folder.path().join("thumbnails.png"), &tiles).unwrap();
        let error = crate::error::chain(&page(folder.path()).unwrap_err());
        assert!(error.contains("thumbnails.png") && error.contains("does not belong to qc.tsv"), "{error}");
    }

    #[test]
    fn a_table_of_something_else_is_refused() {
        let error = crate::error::chain(&page(folder("a\tb\n1\t2\n").path()).unwrap_err());
        assert!(error.contains("no column `participant_id`"), "{error}");
    }
}
