//! Reading a trail for people and pipes: every event in order, the last few, and new ones as they come.
//!
//! Owns no format: lines are handed out as they were written. A last line, or frame, that is not whole yet is left for later, because
//! its writer may be in the middle of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::lines::Lines;
use super::segment::Form;

/// Hands every line, without its line end, to `sink`, epoch by epoch in chain order.
///
/// # Errors
/// A file cannot be read, there is no trail, or what `sink` returns.
pub fn for_each(dir: &Path, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let layout = Layout::read(dir)?;
    if layout.epochs.is_empty() {
        return Err(nothing_here());
    }
    layout.segments().try_for_each(|segment| lines_of(&segment.path, &mut sink))
}

/// Hands every whole line of one file to `sink`, opened where it is encrypted.
///
/// # Errors
/// The file cannot be read, a key is missing, or what `sink` returns.
pub fn lines_of(segment: &Path, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut lines = Lines::open(segment)?;
    while let Some(line) = lines.next()? {
        if line.whole {
            sink(line.bytes)?;
        }
    }
    Ok(())
}

/// How many bytes [`for_each`] would read now.
///
/// # Errors
/// A file cannot be looked at.
pub fn bytes(dir: &Path) -> io::Result<u64> {
    let layout = Layout::read(dir)?;
    layout.segments().map(|segment| Ok(std::fs::metadata(&segment.path)?.len())).sum()
}

/// A reader that knows how far it has come in each file.
pub struct Follower {
    dir: PathBuf,
    read: BTreeMap<PathBuf, u64>,
}

impl Follower {
    /// Begins at the end of the trail and gives its last `lines` lines, by time.
    ///
    /// # Errors
    /// A file cannot be read, or there is no trail.
    pub fn at_end(dir: &Path, lines: usize) -> io::Result<(Self, Vec<Vec<u8>>)> {
        let layout = Layout::read(dir)?;
        if layout.epochs.is_empty() {
            return Err(nothing_here());
        }
        let mut follower = Self { dir: dir.to_owned(), read: BTreeMap::new() };
        let mut newest: Vec<_> = layout.segments().map(|segment| segment.path.clone()).collect();
        if layout.is_store {
            // Epochs of many sidecars are written side by side, so their names do not say which has the latest events.
            newest.sort_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok());
        }
        let mut last: Vec<Vec<u8>> = Vec::new();
        for (at, path) in newest.into_iter().rev().enumerate() {
            // The newest file is read in any case: its writer may be in the middle of a line.
            if at > 0 && last.len() >= lines {
                let end = path.metadata()?.len();
                follower.read.insert(path, end);
                continue;
            }
            let mut found = Vec::new();
            follower.read_on(&path, |line| {
                found.push(line.to_vec());
                if found.len() > 2 * lines.max(1) {
                    found.drain(..lines.max(1));
                }
            })?;
            last.splice(0..0, found);
        }
        last.sort_by_cached_key(|line| time(line));
        last.drain(..last.len().saturating_sub(lines));
        Ok((follower, last))
    }

    /// Gives the lines that came since the last call.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn new_lines(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut new = Vec::new();
        for segment in Layout::read(&self.dir)?.segments() {
            match self.read_on(&segment.path, |line| new.push(line.to_vec())) {
                // Delivered segments are removed when space is short.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => outcome?,
            }
        }
        new.sort_by_cached_key(|line| time(line));
        Ok(new)
    }

    fn read_on(&mut self, path: &Path, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
        let from = self.read.get(path).copied().unwrap_or(0);
        let mut file = File::open(path)?;
        if file.metadata()?.len() <= from {
            return Ok(());
        }
        file.seek(SeekFrom::Start(from))?;
        let mut lines = Lines::of(Form::of(path), file)?;
        let mut end = from;
        while let Some(line) = lines.next()? {
            if line.whole {
                sink(line.bytes);
                end = from + line.end;
            }
        }
        self.read.insert(path.to_owned(), end);
        Ok(())
    }
}

fn time(line: &[u8]) -> String {
    let event: serde_json::Value = serde_json::from_slice(line).unwrap_or_default();
    event.get("time").and_then(|time| time.as_str()).unwrap_or_default().to_owned()
}

pub(crate) fn nothing_here() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        "there is no audit trail here: name a spool's folder or a collector's store",
    )
}
