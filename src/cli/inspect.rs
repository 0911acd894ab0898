//! `gyrus inspect`: what image files say of themselves, and the range of their voxels.
use crate::{
    data::is_nifti,
    error::{FileError, OnFile, chain},
    image::{self, Error, Header},
};
use serde::Serialize;
use std::{error::Error as _, fmt, fs, path::PathBuf, process::ExitCode};

/// Show what NIfTI files hold: shape, spacing, orientation, data type, scaling and the range of the voxels.
///
/// The whole file is read, so damage anywhere is found. Of a folder, all NIfTI files in it and below. Exits with 1 if
/// any file could not be read.
///
/// Example: gyrus inspect sub-01/anat/*_T1w.nii.gz
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Images: .nii, .nii.gz, or either half of a .hdr/.img pair; or folders.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
    /// Print a tab-separated table, a line a file: those refused too, with the reason.
    #[arg(long, conflicts_with = "json")]
    table: bool,
}

/// One image, as it is shown.
#[derive(Serialize)]
struct Inspection<'a> {
    file: &'a PathBuf,
    #[serde(flatten)]
    header: Header,
    /// Of the voxels that are finite, after scaling; null where none is.
    min: Option<f32>,
    mean: Option<f64>,
    max: Option<f32>,
    not_finite: usize,
}

impl Inspection<'_> {
    fn of(file: &PathBuf) -> Result<Inspection<'_>, Error> {
        let (header, volume) = image::read(file)?;
        let finite = || volume.data.iter().copied().filter(|v| v.is_finite());
        let count = finite().count();
        Ok(Inspection {
            file,
            header,
            min: finite().reduce(f32::min),
            mean: (count > 0).then(|| finite().map(f64::from).sum::<f64>() / count as f64),
            max: finite().reduce(f32::max),
            not_finite: volume.data.len() - count,
        })
    }
}

/// Columns of the table.
const COLUMNS: [&str; 10] =
    ["file", "status", "format", "shape", "spacing", "orientation", "datatype", "min", "max", "note"];

impl Inspection<'_> {
    /// The cells of [`COLUMNS`] behind the file.
    fn cells(&self) -> [String; 9] {
        let h = &self.header;
        let (pair, gzip) = (if h.pair { " pair" } else { "" }, if h.gzip { " gz" } else { "" });
        let order = if h.big_endian { " big-endian" } else { "" };
        let by = |values: &[String]| values.join("x");
        let value = |v: Option<f32>| v.map_or("n/a".to_owned(), |v| v.to_string());
        let note = match self.not_finite {
            0 => String::new(),
            n => format!("{n} voxels are NaN or infinite"),
        };
        [
            "read".to_owned(),
            format!("NIfTI-{}{pair}{gzip}", h.version),
            by(&h.shape.map(|n| n.to_string())),
            by(&h.spacing.map(|mm| format!("{mm:.4}"))),
            h.orientation.clone(),
            format!("{}{order}", h.datatype),
            value(self.min),
            value(self.max),
            note,
        ]
    }
}

/// The files to look at: of a folder, all that are named as images, sorted.
fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, FileError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut within = Vec::new();
        for entry in fs::read_dir(path).on_file("read", path)? {
            within.push(entry.on_file("read", path)?.path());
        }
        within.sort();
        within.retain(|p| p.is_dir() || is_nifti(p));
        files.extend(expand(&within)?);
    }
    Ok(files)
}

impl fmt::Display for Inspection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let h = &self.header;
        let (pair, gzip) = (if h.pair { " pair" } else { "" }, if h.gzip { ", gzipped" } else { "" });
        writeln!(f, "{}", self.file.display())?;
        writeln!(f, "  format       NIfTI-{}{pair}{gzip}, {} extensions", h.version, h.extensions)?;
        writeln!(f, "  shape        {} x {} x {}", h.shape[0], h.shape[1], h.shape[2])?;
        let [x, y, z] = h.spacing;
        writeln!(f, "  spacing      {x:.4} x {y:.4} x {z:.4}, units {} and {}", h.space_unit, h.time_unit)?;
        let source = format!("{:?}", h.affine_source).to_lowercase();
        writeln!(f, "  orientation  {} (from the {source})", h.orientation)?;
        let order = if h.big_endian { "big" } else { "little" };
        writeln!(f, "  data type    {}, {order}-endian", h.datatype)?;
        writeln!(f, "  scaling      {} * stored + {}", h.slope, h.inter)?;
        if !h.description.is_empty() {
            writeln!(f, "  description  {}", h.description)?;
        }
        match (self.min, self.mean, self.max) {
            (Some(min), Some(mean), Some(max)) => {
                writeln!(f, "  values       min {min}, mean {mean:.6}, max {max}")?
            }
            _ => writeln!(f, "  values       none is finite")?,
        }
        if self.not_finite > 0 {
            writeln!(f, "  warning      {} voxels are NaN or infinite", self.not_finite)?;
        }
        Ok(())
    }
}

/// Shows every file; those that cannot be read are named on stderr, and the exit code is then 1.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut code = ExitCode::SUCCESS;
    let mut shown = Vec::new();
    let files = expand(&args.files)?;
    if args.table {
        println!("{}", COLUMNS.join("\t"));
    }
    for file in &files {
        match Inspection::of(file) {
            Ok(inspection) if args.json => shown.push(inspection),
            Ok(inspection) if args.table => {
                println!("{}\t{}", file.display(), inspection.cells().join("\t"));
            }
            Ok(inspection) => print!("{inspection}"),
            Err(e) if args.table => {
                let cause = e.source().map_or_else(|| e.to_string(), chain);
                let reason = cause.replace("\n  because", ", because").replace('\t', " ");
                println!("{}\trefused\t{}\t{reason}", file.display(), ["n/a"; 7].join("\t"));
                code = ExitCode::FAILURE;
            }
            Err(e) => {
                eprintln!("error: {}", chain(&e));
                code = ExitCode::FAILURE;
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&shown)?);
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Storage, Volume, write};

    #[test]
    fn text_and_json_say_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.nii.gz");
        let affine =
            [[0.0, 0.0, 2.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 1.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
        let data = vec![1.0, 2.0, f32::NAN, 6.0];
        write(&file, &Volume { shape: [2, 2, 1], affine, data }, Storage::F32).unwrap();
        let inspection = Inspection::of(&file).unwrap();
        let text = inspection.to_string();
        for words in [
            "2 x 2 x 1",
            "PSR",
            "1.0000 x 1.5000 x 2.0000",
            "min 1, mean 3.000000, max 6",
            "1 voxels are NaN",
        ] {
            assert!(text.contains(words), "{text}");
        }
        let json = serde_json::to_value(&inspection).unwrap();
        assert_eq!((json["orientation"].as_str(), json["mean"].as_f64()), (Some("PSR"), Some(3.0)));
        assert_eq!((json["datatype"].as_str(), json["not_finite"].as_u64()), (Some("f32"), Some(1)));
    }
}
