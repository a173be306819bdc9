//! Reads a file line by line in bounded memory, whether it is packed, encrypted or plain, and says where each line ends.
//!
//! Owns the buffer alone. A line longer than a record may be is given in part and marked, so that a hostile or damaged file
//! cannot make a reader hold it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::chain::MAX_LINE;
use super::cipher::{self, Opener};
use super::packed::{Step, Unpacker};
use super::segment::Form;

const BUFFER: usize = 256 * 1024;
/// The longest line in a file.
const MAX_STORED: usize = cipher::line_bytes(MAX_LINE);
/// Stands in the place of what was in a packed segment and cannot be unpacked. It is no record, and who exports a trail sees it.
const DAMAGED: &[u8] = b"(a part of this segment is damaged and cannot be unpacked)\n";

/// A line without its line end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'b> {
    pub(crate) bytes: &'b [u8],
    /// From 1.
    pub(crate) number: u64,
    /// Whether it ends with a line end; only the last line of a file, or one that is too long, may not.
    pub(crate) whole: bool,
    /// It stands for lines that cannot be unpacked.
    pub(crate) is_damage: bool,
    /// How far in the file all lines were given: behind this one, or before the frame that it is in the middle of.
    pub(crate) end: u64,
    /// Whether it is the last before `end`, so that a file which is cut there has this line and not the next one.
    pub(crate) closes: bool,
}

/// The lines of one reader.
pub(crate) struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    from: usize,
    filled: usize,
    /// Of the source, where that is not packed.
    offset: u64,
    number: u64,
    unpacker: Option<Unpacker>,
    opener: Opener,
    opened: Vec<u8>,
}

impl Lines<File> {
    /// Those of a file, by what its name says of its form: a damaged one does not say itself what it was.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::of(Form::of(path), File::open(path)?)
    }
}

impl<R: Read> Lines<R> {
    /// Those of a source in this form; where it is packed, from the beginning of a frame.
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn of(form: Form, source: R) -> io::Result<Self> {
        let unpacker = if form == Form::Packed { Some(Unpacker::new()?) } else { None };
        Ok(Self { unpacker, ..Self::new(source) })
    }

    /// Those of a source that is not packed.
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; BUFFER],
            from: 0,
            filled: 0,
            offset: 0,
            number: 0,
            unpacker: None,
            opener: Opener::default(),
            opened: Vec::new(),
        }
    }

    /// The next line, unpacked and opened where it is packed or encrypted, or `None` at the end.
    ///
    /// # Errors
    /// What the reader says, or that a key is missing.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        let (mut searched, mut step) = (0, Step::Unpacked);
        let (len, whole) = loop {
            let unread = &self.buffer[self.from..self.filled];
            if let Some(at) = memchr::memchr(b'\n', &unread[searched..]) {
                break (searched + at, true);
            }
            searched = unread.len();
            if searched > MAX_STORED {
                break (searched, false);
            }
            step = self.fill()?;
            if matches!(step, Step::End | Step::Cut) {
                break (searched, false);
            }
        };
        if len == 0 && !whole && step != Step::Cut {
            return Ok(None);
        }
        let from = self.from;
        self.from += len + usize::from(whole);
        self.offset += len as u64 + u64::from(whole);
        self.number += 1;
        let (end, closes) = self.place_after(whole);
        let stored = &self.buffer[from..from + len];
        let is_opened = whole && self.opener.line(stored, &mut self.opened)?;
        let bytes = if is_opened { &self.opened } else { stored };
        let is_damage = step == Step::Damaged;
        Ok(Some(Line { bytes, number: self.number, whole, is_damage, end, closes }))
    }

    /// [`Line::end`] and [`Line::closes`] of the line that was taken last.
    fn place_after(&self, whole: bool) -> (u64, bool) {
        let Some(unpacker) = &self.unpacker else { return (self.offset, whole) };
        let (place, is_last) = (unpacker.place(), self.from == self.filled);
        if is_last { (place.end, whole) } else { (place.start, false) }
    }

    fn fill(&mut self) -> io::Result<Step> {
        self.buffer.copy_within(self.from..self.filled, 0);
        self.filled -= self.from;
        self.from = 0;
        if let Some(unpacker) = &mut self.unpacker {
            self.buffer.truncate(self.filled);
            let step = unpacker.step(&mut self.source, &mut self.buffer)?;
            if step == Step::Damaged {
                self.buffer.extend_from_slice(DAMAGED);
            }
            self.filled = self.buffer.len();
            return Ok(step);
        }
        loop {
            match self.source.read(&mut self.buffer[self.filled..]) {
                Ok(read) => {
                    self.filled += read;
                    return Ok(if read == 0 { Step::End } else { Step::Unpacked });
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
    let mut lines = Lines::open(path)?;
    Ok(lines.next()?.filter(|line| line.whole).map_or_else(Vec::new, |line| line.bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::packed::pack;

    fn all(content: &[u8]) -> Vec<(Vec<u8>, u64, u64, bool)> {
        all_of(Form::Lines, content)
    }

    fn all_of(form: Form, content: &[u8]) -> Vec<(Vec<u8>, u64, u64, bool)> {
        let mut lines = Lines::of(form, content).unwrap();
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push((line.bytes.to_vec(), line.end, line.number, line.whole));
        }
        found
    }

    /// If this fails, a finding names the wrong line, or recovery cuts a segment at the wrong byte.
    #[test]
    fn lines_have_their_place() {
        assert_eq!(all(b""), []);
        let want = [
            (b"ab".to_vec(), 3, 1, true),
            (b"".to_vec(), 4, 2, true),
            (b"cde".to_vec(), 8, 3, true),
            (b"f".to_vec(), 9, 4, false),
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

    /// If this fails, a packed trail is not read as the lines it was made of, or is cut where a record would be lost.
    #[test]
    fn packed_lines_are_given_as_plain_ones_and_end_where_their_frame_does() {
        let (mut stored, mut ends) = (Vec::new(), Vec::new());
        for lines in [&b"ab\n\n"[..], b"c\n"] {
            pack(&mut stored, lines).unwrap();
            ends.push(stored.len() as u64);
        }
        let want = [
            (b"ab".to_vec(), 0, 1, true),
            (b"".to_vec(), ends[0], 2, true),
            (b"c".to_vec(), ends[1], 3, true),
        ];
        assert_eq!(all_of(Form::Packed, &stored), want);
        let cut = all_of(Form::Packed, &stored[..stored.len() - 1]);
        assert_eq!(cut[..2], want[..2]);
        assert_eq!(cut[2..], [(b"".to_vec(), ends[1] - 1, 3, false)]);
        let mut damaged = stored;
        for at in [0, 4] {
            damaged[at] ^= 0xff; // what the first frame is, and what it says of itself
            let found = all_of(Form::Packed, &damaged);
            assert_eq!((&found[0].0[..], found[0].3), (&DAMAGED[..DAMAGED.len() - 1], true));
            assert_eq!(found[1], (b"c".to_vec(), ends[1], 2, true));
        }
    }
}
