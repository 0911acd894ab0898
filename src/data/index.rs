//! `scans.tsv` of a cache: a line for each volume, readable by people and by any table reader.
use super::{Error, fingerprint::Traits, scan::Scan, table::Ages, table::Row, table::Table};
use crate::image::{Affine, Alignment, IDENTITY, Stats};
use serde::{Deserialize, Serialize};
use std::{
    fmt::{Display, Write as _},
    path::{Path, PathBuf},
    str::FromStr,
};

/// What is known of one volume of a cache.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexRow {
    /// Its place in the cache.
    pub row: usize,
    /// The scan; paths count from the dataset's folder where they lie in it.
    pub scan: Scan,
    /// How it came to another scan's grid, if it lies on one.
    pub placed: Option<Placed>,
    /// The rest, measured while preparing it.
    pub measured: Measured,
}

impl IndexRow {
    /// The session of the T1w on whose grid it lies.
    pub(super) fn visit(&self) -> Option<&str> {
        self.placed.as_ref().map_or(&self.scan.session, |placed| &placed.session).as_deref()
    }
}

/// How a volume came to lie on the grid of a T1w.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The T1w's file, from the dataset's folder where it lies in it.
    pub t1w: PathBuf,
    /// The T1w's session.
    pub session: Option<String>,
    /// Days between the two scans, by the ages given for their sessions, where those differ.
    pub days: Option<f64>,
    /// What aligned it; `None` where both shared a grid already.
    pub alignment: Option<Alignment>,
    /// What its values were divided by, if it is PET.
    pub reference: Option<Reference>,
}

/// What the values of a PET image were divided by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The reference region's mean, which makes a standardised uptake value ratio (SUVR) of a value; otherwise the whole
    /// brain's, which does not.
    pub region: bool,
    /// The mean, in the file's units.
    pub mean: f64,
}

/// What was found while a scan was prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// BLAKE3 of the image file, in hexadecimal.
    pub blake3: String,
    /// What the prepared scan looks like.
    pub traits: Traits,
    /// What the scan was before, and warnings.
    pub stats: Stats,
}

/// Columns that say how a volume came to lie on a T1w's grid; older caches are read without them.
const PLACED: [&str; 9] = [
    "t1w",
    "t1w_session",
    "days",
    "translation_mm",
    "rotation_deg",
    "to_image",
    "mutual_information",
    "reference",
    "reference_mean",
];

/// Columns that caches have had from the first.
const REQUIRED: [&str; 21] = [
    "row",
    "subject",
    "session",
    "modality",
    "age",
    "sex",
    "quality",
    "source",
    "mask",
    "blake3",
    "foreground",
    "brain_ml",
    "shape",
    "spacing",
    "orientation",
    "box_mm",
    "percentiles",
    "dark",
    "middle",
    "bright",
    "warnings",
];
/// Columns that came later, at the end of the line; older caches are read without them.
const OPTIONAL: [&str; 3] = ["run", "site", "group"];

/// Between several warnings of one scan.
const BETWEEN: &str = " | ";

/// The table of `rows` as text.
pub(super) fn to_tsv(rows: &[IndexRow]) -> String {
    let mut text = [&REQUIRED[..], &OPTIONAL, &PLACED].concat().join("\t") + "\n";
    for IndexRow { row, scan, placed, measured } in rows {
        let Measured { blake3, traits, stats } = measured;
        let cells = [
            row.to_string(),
            scan.subject.clone(),
            known(scan.session.as_ref()),
            scan.modality.clone(),
            known(scan.age),
            known(scan.sex),
            known(scan.quality),
            scan.path.display().to_string(),
            known(scan.mask.as_ref().map(|m| m.display())),
            blake3.clone(),
            traits.foreground.to_string(),
            stats.brain_ml.to_string(),
            by(&stats.shape),
            by(&stats.spacing),
            stats.orientation.clone(),
            by(&stats.box_mm),
            by(&stats.percentiles),
            traits.dark.to_string(),
            traits.middle.to_string(),
            traits.bright.to_string(),
            known(Some(stats.warnings.join(BETWEEN)).filter(|w| !w.is_empty())),
            known(scan.run.as_ref()),
            known(scan.site.as_ref()),
            known(scan.group.as_ref()),
        ];
        let cells = cells.into_iter().chain(placed_cells(placed.as_ref()));
        // A tab or line break within a cell would shift what follows.
        let line = cells.map(|c| c.replace(['\t', '\n', '\r'], " ")).collect::<Vec<_>>().join("\t");
        let _ = writeln!(text, "{line}");
    }
    text
}

fn placed_cells(placed: Option<&Placed>) -> [String; 9] {
    let Some(p) = placed else { return PLACED.map(|_| "n/a".to_owned()) };
    let a = p.alignment.as_ref();
    let reference = p.reference.map(|r| if r.region { "region" } else { "brain" });
    [
        p.t1w.display().to_string(),
        known(p.session.as_ref()),
        known(p.days),
        known(a.map(|a| by(&a.translation))),
        known(a.map(|a| by(&a.rotation))),
        known(a.map(|a| by(a.affine[..3].as_flattened()))),
        known(a.map(|a| a.mutual_information)),
        known(reference),
        known(p.reference.map(|r| r.mean)),
    ]
}

fn read_placed(row: &Row<'_>) -> Result<Option<Placed>, Error> {
    let Some(t1w) = row.text("t1w") else { return Ok(None) };
    let maybe = |column| row.parse::<f64>(column, "a number");
    let mut alignment = None;
    if row.text("to_image").is_some() {
        let mut affine: Affine = IDENTITY;
        affine[..3].as_flattened_mut().copy_from_slice(&several::<f64, 12>(row, "to_image")?);
        alignment = Some(Alignment {
            affine,
            translation: several(row, "translation_mm")?,
            rotation: several(row, "rotation_deg")?,
            mutual_information: number(row, "mutual_information")?,
        });
    }
    let region = row.text("reference") == Some("region");
    Ok(Some(Placed {
        t1w: PathBuf::from(t1w),
        session: row.text("t1w_session").map(str::to_owned),
        days: maybe("days")?,
        alignment,
        reference: maybe("reference_mean")?.map(|mean| Reference { region, mean }),
    }))
}

fn known<T: Display>(value: Option<T>) -> String {
    value.map_or("n/a".to_owned(), |v| v.to_string())
}

fn by<T: Display>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join("x")
}

/// Reads what [`to_tsv`] wrote.
pub(super) fn read(path: &Path) -> Result<Vec<IndexRow>, Error> {
    let table = Table::read(path, Ages::Refused)?;
    table.require(&REQUIRED)?;
    table.rows().map(read_row).collect()
}

fn read_row(row: Row<'_>) -> Result<IndexRow, Error> {
    let text = |column| row.text(column).map(str::to_owned).ok_or_else(|| row.refuse(column, "a text"));
    let spacing: [f64; 3] = several(&row, "spacing")?;
    let (brain_ml, foreground) = (number(&row, "brain_ml")?, number(&row, "foreground")?);
    Ok(IndexRow {
        row: number(&row, "row")?,
        scan: Scan {
            subject: text("subject")?,
            session: row.text("session").map(str::to_owned),
            run: row.text("run").map(str::to_owned),
            modality: text("modality")?,
            path: PathBuf::from(text("source")?),
            mask: row.text("mask").map(PathBuf::from),
            age: row.age()?,
            sex: row.text("sex").and_then(|s| s.parse().ok()),
            quality: row.quality(&["quality"])?,
            site: row.text("site").map(str::to_owned),
            group: row.text("group").map(str::to_owned),
        },
        placed: read_placed(&row)?,
        measured: Measured {
            blake3: text("blake3")?,
            traits: Traits {
                voxel_mm: spacing.iter().product::<f64>().cbrt(),
                thickest_mm: spacing.into_iter().fold(0.0, f64::max),
                brain_ml,
                foreground,
                dark: number(&row, "dark")?,
                middle: number(&row, "middle")?,
                bright: number(&row, "bright")?,
            },
            stats: Stats {
                shape: several(&row, "shape")?,
                spacing,
                orientation: text("orientation")?,
                brain_ml,
                box_mm: several(&row, "box_mm")?,
                percentiles: several(&row, "percentiles")?,
                warnings: row
                    .text("warnings")
                    .map_or(Vec::new(), |w| w.split(BETWEEN).map(str::to_owned).collect()),
            },
        },
    })
}

fn number<T: FromStr>(row: &Row<'_>, column: &str) -> Result<T, Error> {
    let expected = "a number";
    row.parse(column, expected)?.ok_or_else(|| row.refuse(column, expected))
}

/// `N` numbers with an x between them.
fn several<T: FromStr, const N: usize>(row: &Row<'_>, column: &str) -> Result<[T; N], Error> {
    let refuse = || row.refuse(column, "numbers with an x between them");
    let pieces = row.text(column).unwrap_or_default().split('x');
    let values: Vec<T> = pieces.map(|p| p.parse().map_err(|_| refuse())).collect::<Result<_, _>>()?;
    values.try_into().map_err(|_| refuse())
}
