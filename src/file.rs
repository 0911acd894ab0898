//! Files that are written whole or not at all.
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use crate::error::{FileError, OnFile};

/// Writes `path` through a temporary file in the same folder: `contents` fills it, then it is synced and renamed,
/// so a reader (or a run that was killed) sees the old file or the new one, never a part.
pub fn write_whole(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<(), FileError> {
    replace(path, contents).on_file("write", path)
}

/// Writes `bytes` to `path`, whole or not at all.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, |file| file.write_all(bytes))
}

fn replace(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Opened here rather than by `tempfile`, whose files only their owner may read.
    let mut temporary = tempfile::Builder::new()
        .prefix(".unfinished-")
        .make_in(folder, |path| File::options().write(true).create_new(true).open(path))?;
    let mut buffer = BufWriter::new(temporary.as_file_mut());
    contents(&mut buffer)?;
    buffer.flush()?;
    drop(buffer);
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    // The rename itself lasts only once the folder is synced; systems that cannot open folders skip this.
    File::open(folder).map_or(Ok(()), |folder| folder.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_whole(&path, |f| f.write_all(b"old")).unwrap();
        let error = write_whole(&path, |f| {
            f.write_all(b"ne")?;
            Err(io::Error::other("disk on fire"))
        });
        assert!(error.unwrap_err().to_string().ends_with("a.txt: cannot write"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_an_ordinary_file_would_let_them_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let [ours, ordinary] = ["ours", "ordinary"].map(|name| folder.path().join(name));
        write_whole(&ours, |_| Ok(())).unwrap();
        File::create(&ordinary).unwrap();
        let mode = |path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(ours), mode(ordinary));
    }
}
