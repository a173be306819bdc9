//! Reads a file line by line in bounded memory, and says where each line begins.
//!
//! Owns the buffer alone. A line longer than a record may be is given in part and marked, so that a hostile or damaged file
//! cannot make a reader hold it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::chain::MAX_LINE;
use super::cipher::{self, Opener};

const BUFFER: usize = 256 * 1024;
/// The longest line in a file.
const MAX_STORED: usize = cipher::line_bytes(MAX_LINE);

/// A line without its line end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'b> {
    pub(crate) bytes: &'b [u8],
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// From 1.
    pub(crate) number: u64,
    /// Whether it ends with a line end; only the last line of a file, or one that is too long, may not.
    pub(crate) whole: bool,
    /// How long it is in the file, where it may be encrypted.
    stored: usize,
}

impl Line<'_> {
    /// Where the next line begins.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.stored as u64 + u64::from(self.whole)
    }
}

/// The lines of one reader.
pub(crate) struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    from: usize,
    filled: usize,
    offset: u64,
    number: u64,
    opener: Opener,
    opened: Vec<u8>,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; BUFFER],
            from: 0,
            filled: 0,
            offset: 0,
            number: 0,
            opener: Opener::default(),
            opened: Vec::new(),
        }
    }

    /// The next line, opened where it is encrypted, or `None` at the end.
    ///
    /// # Errors
    /// What the reader says, or that a key is missing.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        let mut searched = 0;
        let (len, whole) = loop {
            let unread = &self.buffer[self.from..self.filled];
            if let Some(at) = memchr::memchr(b'\n', &unread[searched..]) {
                break (searched + at, true);
            }
            searched = unread.len();
            if searched > MAX_STORED {
                break (searched, false);
            }
            if self.fill()? == 0 {
                break (searched, false);
            }
        };
        if len == 0 && !whole {
            return Ok(None);
        }
        let offset = self.offset;
        let from = self.from;
        self.from += len + usize::from(whole);
        self.offset += len as u64 + u64::from(whole);
        self.number += 1;
        let stored = &self.buffer[from..from + len];
        let is_opened = whole && self.opener.line(stored, &mut self.opened)?;
        let bytes = if is_opened { &self.opened } else { stored };
        Ok(Some(Line { bytes, offset, number: self.number, whole, stored: len }))
    }

    fn fill(&mut self) -> io::Result<usize> {
        self.buffer.copy_within(self.from..self.filled, 0);
        self.filled -= self.from;
        self.from = 0;
        loop {
            match self.source.read(&mut self.buffer[self.filled..]) {
                Ok(read) => {
                    self.filled += read;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The first line of a file; empty where there is none that is whole.
///
/// # Errors
/// The file cannot be read, or is encrypted with a key that was not given.
pub(crate) fn first_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut lines = Lines::new(File::open(path)?);
    Ok(lines.next()?.filter(|line| line.whole).map_or_else(Vec::new, |line| line.bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(content: &[u8]) -> Vec<(Vec<u8>, u64, u64, bool)> {
        let mut lines = Lines::new(content);
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push((line.bytes.to_vec(), line.offset, line.number, line.whole));
        }
        found
    }

    /// If this fails, a finding names the wrong line, or recovery cuts a segment at the wrong byte.
    #[test]
    fn lines_have_their_place() {
        assert_eq!(all(b""), []);
        let want = [
            (b"ab".to_vec(), 0, 1, true),
            (b"".to_vec(), 3, 2, true),
            (b"cde".to_vec(), 4, 3, true),
            (b"f".to_vec(), 8, 4, false),
        ];
        assert_eq!(all(b"ab\n\ncde\nf"), want);
    }

    /// If this fails, lines that straddle two reads are cut, or a file without line ends is read into memory.
    #[test]
    fn buffers_are_joined_and_bounded() {
        let mut content = Vec::new();
        for n in 0..20_000 {
            content.extend_from_slice(format!("{n}-{}\n", "x".repeat(n % 100)).as_bytes());
        }
        let lines = all(&content);
        assert_eq!(lines.len(), 20_000);
        assert!(
            lines
                .iter()
                .enumerate()
                .all(|(n, line)| line.0.starts_with(format!("{n}-").as_bytes()) && line.3)
        );
        let endless = all(&vec![b'x'; 1 << 20]);
        assert!(endless.iter().all(|line| !line.3 && line.0.len() <= BUFFER));
    }
}
