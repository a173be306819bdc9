//! Segment files: names, the listing of a folder, and appending so that a failed write leaves no half record behind.
//!
//! Owns the file names `<epoch>-<first seq>.ndjson.zst` and, where segments are not packed, `.ndjson`, which sort in chain order, and the
//! errors of the disk. Knows nothing of what is in a line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::Epoch;
use super::recover::CORRUPT;

/// How a segment is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Line by line: a collector's, an encrypted one, and what phiward wrote before it packed.
    Lines,
    /// See [`super::packed`].
    Packed,
}

impl Form {
    /// How the names of such segments end.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Lines => ".ndjson",
            Self::Packed => ".ndjson.zst",
        }
    }

    /// That of the file with this name, a segment or what was kept of one.
    pub(crate) fn of(path: impl AsRef<Path>) -> Self {
        let name = path.as_ref().file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.strip_suffix(CORRUPT).unwrap_or(name);
        if name.ends_with(Self::Packed.extension()) { Self::Packed } else { Self::Lines }
    }
}

/// The name of the segment of `epoch` that begins with record `first_seq`.
pub(crate) fn name(epoch: &Epoch, first_seq: u64, form: Form) -> String {
    format!("{}-{first_seq:016}{}", epoch.as_str(), form.extension())
}

/// Reads a segment's name; `None` for every other file.
pub(crate) fn parse_name(name: &str) -> Option<(Epoch, u64)> {
    let stem = name.strip_suffix(Form::of(name).extension())?;
    let (epoch, first_seq) = stem.split_at_checked(36)?;
    let digits =
        first_seq.strip_prefix('-').filter(|d| d.len() == 16 && d.bytes().all(|b| b.is_ascii_digit()))?;
    Some((Epoch::parse(epoch)?, digits.parse().ok()?))
}

/// The segments in a folder with their lengths, in chain order.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().filter(|name| parse_name(name).is_some()) {
            // The writer of the folder may remove a delivered segment while a tool lists it.
            match entry.metadata() {
                Ok(meta) => found.push((name.to_owned(), meta.len())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Gives back what a process that was killed had taken ahead of the end of the segment `path`.
pub(crate) fn release(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(file.metadata()?.len())
}

/// A folder as a file, so that its entries can be synced like a segment's bytes.
pub(crate) fn open_dir(dir: &Path) -> io::Result<File> {
    File::open(dir)
}

/// A segment that is being appended to.
pub(crate) struct SegmentFile {
    file: Arc<File>,
    path: PathBuf,
    len: u64,
    /// How far the disk has space for it already.
    allocated: u64,
    ragged: bool,
}

impl SegmentFile {
    /// Makes a new, empty segment.
    ///
    /// # Errors
    /// It cannot be made, or exists.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).mode(0o640).open(&path)?;
        Ok(Self { file: Arc::new(file), path, len: 0, allocated: 0, ragged: false })
    }

    /// Opens a segment to append after its first `len` bytes; what follows them is cut off.
    ///
    /// # Errors
    /// It cannot be opened or cut.
    pub(crate) fn open(path: PathBuf, len: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(&path)?;
        if file.metadata()?.len() != len {
            file.set_len(len)?;
        }
        Ok(Self { file: Arc::new(file), path, len, allocated: len, ragged: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// How many more bytes the disk has a place for, whatever else is written to it.
    pub(crate) fn ahead(&self) -> u64 {
        self.allocated.saturating_sub(self.len)
    }

    /// Takes space for the next `bytes`, without making the file longer.
    ///
    /// # Errors
    /// What the disk says; what was taken before stays.
    pub(crate) fn allocate(&mut self, disk: &Disk, bytes: u64) -> io::Result<()> {
        disk.allocate(&self.file, self.len, bytes)?;
        self.allocated = self.allocated.max(self.len + bytes);
        Ok(())
    }

    /// Gives back what was taken ahead.
    pub(crate) fn release(&mut self) {
        if self.ahead() > 0 && self.file.set_len(self.len).is_ok() {
            self.allocated = self.len;
        }
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Appends all of `bytes`, or leaves the segment as it was (at the latest when it is called again).
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn append(&mut self, disk: &Disk, bytes: &[u8]) -> io::Result<()> {
        if self.ragged {
            self.file.set_len(self.len)?;
            self.ragged = false;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match disk.write(&self.file, rest) {
                Ok(0) => return self.failed(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.failed(error),
            }
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn failed(&mut self, error: io::Error) -> io::Result<()> {
        self.allocated = self.len; // cutting gives back what follows
        self.ragged = self.file.set_len(self.len).is_err();
        Err(error)
    }
}

/// Writing and syncing. The crate's tests can make them fail; otherwise it is empty.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    pub(crate) write_error: std::sync::Mutex<Option<io::ErrorKind>>,
    #[cfg(test)]
    pub(crate) allocate_error: std::sync::Mutex<Option<io::ErrorKind>>,
    #[cfg(test)]
    pub(crate) sync_error: std::sync::Mutex<Option<io::ErrorKind>>,
}

impl Disk {
    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(kind) = *self.write_error.lock().unwrap() {
            // A full disk takes what fits before it says so.
            file.write_all(&bytes[..bytes.len().min(7)])?;
            return Err(kind.into());
        }
        file.write(bytes)
    }

    fn allocate(&self, file: &File, from: u64, bytes: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(kind) = *self.allocate_error.lock().unwrap() {
            return Err(kind.into());
        }
        Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, from, bytes)?)
    }

    /// Writes over bytes that are there.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(kind) = *self.write_error.lock().unwrap() {
            return Err(kind.into());
        }
        file.write_all_at(bytes, offset)
    }

    /// `fdatasync`. An error is for good: Linux reports it once and may have dropped the pages, so trying again would
    /// return success for data that is not on the disk (the "fsyncgate" of PostgreSQL, 2018).
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        if let Some(kind) = *self.sync_error.lock().unwrap() {
            return Err(kind.into());
        }
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, segments are read out of order or foreign files are taken for segments.
    #[test]
    fn names_are_read_back_and_nothing_else_is_a_segment() {
        let epoch = Epoch::generate(1_795_183_402_118, None);
        let later = Epoch::generate(1, Some(&epoch));
        for form in [Form::Lines, Form::Packed] {
            let name = |epoch, seq| name(epoch, seq, form);
            assert_eq!(parse_name(&name(&epoch, 4711)), Some((epoch.clone(), 4711)));
            assert_eq!(Form::of(name(&epoch, 4711)), form);
            assert_eq!(Form::of(Path::new("/a").join(name(&epoch, 4711) + CORRUPT)), form);
            assert!(name(&epoch, 9) < name(&epoch, 10));
            assert!(name(&epoch, u64::from(u32::MAX)) < name(&later, 0));
        }
        // An earlier phiward's last one and the first of this one.
        assert!(name(&epoch, 9, Form::Packed) < name(&epoch, 10, Form::Lines));
        for other in ["lock", "x.ndjson", "x.ndjson.zst", "../etc/passwd.ndjson", "cursor-collector.json"] {
            assert_eq!(parse_name(other), None);
        }
    }

    /// If this fails, a full disk leaves half a record in the middle of a segment.
    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        let mut segment = SegmentFile::create(dir.path().join("s")).unwrap();
        segment.append(&disk, b"first\n").unwrap();
        *disk.write_error.lock().unwrap() = Some(io::ErrorKind::StorageFull);
        assert!(segment.append(&disk, b"second line\n").is_err());
        assert_eq!(std::fs::read(segment.path()).unwrap(), b"first\n");
        *disk.write_error.lock().unwrap() = None;
        segment.append(&disk, b"second line\n").unwrap();
        assert_eq!(std::fs::read(segment.path()).unwrap(), b"first\nsecond line\n");
    }
}
