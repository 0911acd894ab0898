//! Files seen as memory.
use crate::error::{FileError, OnFile};
use std::{fs::File, ops::Deref, path::Path};

/// A whole file, mapped for reading. The bytes start at a page boundary.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps `path`, which must not be changed or cut while it is mapped: gyrus writes such files under another
    /// name and renames them, which leaves a mapped file as it was.
    ///
    /// # Errors
    /// A file that cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<MappedFile, FileError> {
        let file = File::open(path).on_file("read", path)?;
        // SAFETY: the mapping is read-only, and by the contract above nobody writes to the file it maps.
        let map = unsafe { memmap2::Mmap::map(&file) };
        Ok(MappedFile(map.on_file("map", path)?))
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
