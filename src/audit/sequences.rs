//! Frames of zstd (RFC 8878) from literals and copies, for who knows what repeats without searching.
//!
//! Owns the format, as much of it as one needs who writes: literals as they are, lengths and offsets by the tables that the RFC predefines.
//! Refuses to know what is coded. A library's coder takes twice as long, most of it for the search, and a core's first cache
//! for its table (`docs/performance.md`).

mod fse;

use fse::{BitWriter, State, Table};

/// RFC 8878 section 3.1.1.
const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// A length of four bytes, a window, no checksum, no dictionary (section 3.1.1.1.1).
const DESCRIPTOR: u8 = 2 << 6;
/// The longest content of a frame, so that no more is kept for it.
pub(crate) const MAX_CONTENT: usize = 1024 * 1024;
/// A block ends when it has so much. It may have 128 KiB at most, coded or not (section 3.1.1.2.4).
const BLOCK_BYTES: usize = 48 * 1024;
/// The longest that may be added to a block at once.
const MAX_PART: usize = 64 * 1024;
/// A shorter copy saves less in bytes than it costs in time, here and where it is decoded.
const MIN_COPY: usize = 16;

/// A frame in the making.
#[derive(Default)]
pub(crate) struct Frame {
    codes: Codes,
    literals: Vec<u8>,
    /// How many literals follow the last sequence.
    pending: u32,
    sequences: Vec<Sequence>,
    /// How much the block stands for, and all blocks.
    block: usize,
    content: usize,
    /// The offset of the last copy.
    last_offset: u32,
    coded: Vec<u8>,
    /// Where the last block begins.
    last_block: usize,
}

/// Literals and what is copied after them.
#[derive(Clone, Copy)]
struct Sequence {
    literals: u32,
    copied: u32,
    offset: u32,
}

impl Frame {
    /// Begins a frame; what was there is gone.
    pub(crate) fn begin(&mut self) {
        self.literals.clear();
        self.sequences.clear();
        self.coded.clear();
        self.coded.extend_from_slice(&MAGIC);
        self.coded.extend_from_slice(&[DESCRIPTOR, 0, 0, 0, 0, 0]);
        (self.pending, self.block, self.content, self.last_offset, self.last_block) = (0, 0, 0, 0, 0);
    }

    /// How long the content is.
    pub(crate) fn content(&self) -> usize {
        self.content
    }

    /// Adds these bytes.
    #[inline]
    pub(crate) fn literal(&mut self, bytes: &[u8]) {
        self.literals.extend_from_slice(bytes);
        self.pending += bytes.len() as u32;
        self.grow(bytes.len());
    }

    /// Adds `bytes`, which are in the content, `offset` before where they are added.
    ///
    /// # Panics
    /// In a debug build, if the content does not reach back so far.
    pub(crate) fn copy(&mut self, bytes: &[u8], offset: usize) {
        debug_assert!((1..=self.content).contains(&offset));
        let copied = bytes.len() as u32;
        let offset = offset as u32;
        match self.sequences.last_mut() {
            Some(last) if self.pending == 0 && last.offset == offset => last.copied += copied,
            _ if bytes.len() < MIN_COPY => return self.literal(bytes),
            _ => {
                self.sequences.push(Sequence { literals: std::mem::take(&mut self.pending), copied, offset })
            }
        }
        self.grow(bytes.len());
    }

    /// The frame; `None` where it has nothing, or more than it may.
    pub(crate) fn end(&mut self) -> Option<&[u8]> {
        self.end_block();
        if self.content == 0 || self.content > MAX_CONTENT {
            return None;
        }
        self.coded[self.last_block] |= 1;
        self.coded[5] = window(self.content);
        self.coded[6..10].copy_from_slice(&(self.content as u32).to_le_bytes());
        Some(&self.coded)
    }

    fn grow(&mut self, bytes: usize) {
        debug_assert!(bytes <= MAX_PART);
        self.block += bytes;
        self.content += bytes;
        if self.block >= BLOCK_BYTES {
            self.end_block();
        }
    }

    /// Codes what was gathered as a block (section 3.1.1.2).
    fn end_block(&mut self) {
        if self.block == 0 {
            return;
        }
        self.last_block = self.coded.len();
        self.coded.extend_from_slice(&[0; 3]);
        // Literals as they are, their length in 20 bits (section 3.1.1.3.1).
        self.coded.extend_from_slice(&((self.literals.len() as u32) << 4 | 3 << 2).to_le_bytes()[..3]);
        self.coded.extend_from_slice(&self.literals);
        match self.sequences.len() {
            few @ ..128 => self.coded.push(few as u8),
            more => self.coded.extend_from_slice(&[(more >> 8) as u8 + 128, more as u8]),
        }
        if !self.sequences.is_empty() {
            self.coded.push(0); // all tables are the predefined ones (section 3.1.1.3.2.1)
            self.codes.write(&self.sequences, &mut self.last_offset, &mut self.coded);
        }
        let len = (self.coded.len() - self.last_block - 3) as u32;
        self.coded[self.last_block..][..3].copy_from_slice(&(len << 3 | 2 << 1).to_le_bytes()[..3]);
        self.literals.clear();
        self.sequences.clear();
        (self.pending, self.block) = (0, 0);
    }
}

/// The window's descriptor (section 3.1.1.1.2): a power of two that has all of the content, and a whole block.
fn window(content: usize) -> u8 {
    let log = content.next_power_of_two().trailing_zeros().max(17) as u8;
    (log - 10) << 3
}

/// The numbers of sequences as symbols and bits (section 3.1.1.3.2.1.1).
struct Codes {
    literals: Lengths,
    copied: Lengths,
    offsets: Table,
}

/// The codes of lengths, and their table.
struct Lengths {
    table: Table,
    /// The length that code 0 stands for.
    first: u32,
    /// The first length of each code, and how many bits tell which one it is.
    codes: Vec<(u32, u32)>,
    /// The code of each short length, counted from the first.
    short: [u8; SHORT],
}

/// From here on each code has the lengths of one power of two (section 3.1.1.3.2.1.1).
const SHORT: usize = 128;

/// What a sequence is in symbols, and the bits beside them.
struct Symbols {
    literals: (u8, u32, u32),
    copied: (u8, u32, u32),
    offset: (u8, u32, u32),
}

impl Default for Codes {
    fn default() -> Self {
        let ones = |count| std::iter::repeat_n(0, count);
        let literals = ones(16).chain([1, 1, 1, 1, 2, 2, 3, 3, 4, 6]).chain(7..=16);
        let copied = ones(32).chain([1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5]).chain(7..=16);
        Self {
            literals: Lengths::new(Table::new(&fse::LITERALS, 6), 0, literals),
            copied: Lengths::new(Table::new(&fse::COPIED, 6), 3, copied),
            offsets: Table::new(&fse::OFFSETS, 5),
        }
    }
}

impl Codes {
    /// The sequences as they are read back: from their end (section 3.1.1.3.2.1.2).
    fn write(&self, sequences: &[Sequence], last_offset: &mut u32, out: &mut Vec<u8>) {
        let from = out.len();
        // 17 bits of states, 32 of lengths and 20 of an offset each at most; the last states, and eight bytes of room.
        out.resize(from + 9 * sequences.len() + 16, 0);
        let mut bits = BitWriter::new(&mut out[from..]);
        let mut states: Option<[State; 3]> = None;
        let before =
            std::mem::replace(last_offset, sequences.last().map_or(*last_offset, |last| last.offset));
        for (at, sequence) in sequences.iter().enumerate().rev() {
            let before =
                at.checked_sub(1).and_then(|at| sequences.get(at)).map_or(before, |last| last.offset);
            let symbols = self.symbols(*sequence, before);
            let (literals, copied, offset) = (symbols.literals, symbols.copied, symbols.offset);
            states = Some(match states {
                None => [
                    self.offsets.first(offset.0),
                    self.copied.table.first(copied.0),
                    self.literals.table.first(literals.0),
                ],
                Some([offsets, copies, lengths]) => [
                    self.offsets.next(offsets, offset.0, &mut bits),
                    self.copied.table.next(copies, copied.0, &mut bits),
                    self.literals.table.next(lengths, literals.0, &mut bits),
                ],
            });
            bits.add(literals.1, literals.2);
            bits.add(copied.1, copied.2);
            bits.flush(); // 7 + 17 + 32 at most
            bits.add(offset.1, offset.2);
            bits.flush();
        }
        if let Some([offsets, copies, lengths]) = states {
            self.copied.table.last(copies, &mut bits);
            self.offsets.last(offsets, &mut bits);
            self.literals.table.last(lengths, &mut bits);
        }
        let len = bits.close();
        out.truncate(from + len);
    }

    fn symbols(&self, sequence: Sequence, last_offset: u32) -> Symbols {
        // The last offset again is number 1, if there are literals (section 3.1.1.5); others are told by three more than they are.
        let again = sequence.offset == last_offset && sequence.literals > 0;
        let offset = if again { 1 } else { sequence.offset + 3 };
        let code = offset.ilog2();
        Symbols {
            literals: self.literals.code(sequence.literals),
            copied: self.copied.code(sequence.copied),
            offset: (code as u8, offset - (1 << code), code),
        }
    }
}

impl Lengths {
    /// Each code has twice as many lengths as its number of bits says.
    fn new(table: Table, first: u32, bits: impl Iterator<Item = u32>) -> Self {
        let codes: Vec<_> = bits
            .scan(first, |next, bits| Some((std::mem::replace(next, *next + (1 << bits)), bits)))
            .collect();
        let short = std::array::from_fn(|length| {
            codes.partition_point(|(from, _)| *from <= first + length as u32).saturating_sub(1) as u8
        });
        Self { table, first, codes, short }
    }

    /// The code of a length, what it is beyond the code's first, and in how many bits.
    #[inline]
    fn code(&self, length: u32) -> (u8, u32, u32) {
        let counted = length - self.first;
        let code = match self.short.get(counted as usize) {
            Some(code) => *code,
            // The last code is of 16 bits.
            None => (self.codes.len() as u32 - 17 + counted.ilog2()) as u8,
        };
        let (from, bits) = self.codes[usize::from(code)];
        (code, length - from, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(frame: &[u8], len: usize) -> Vec<u8> {
        zstd::bulk::decompress(frame, len).unwrap()
    }

    /// Adds a copy from `offset` before.
    fn copy(frame: &mut Frame, content: &mut Vec<u8>, len: usize, offset: usize) {
        let from = content.len() - offset;
        let bytes: Vec<u8> = (0..len).map(|at| content[from + at % offset]).collect();
        frame.copy(&bytes, offset);
        content.extend_from_slice(&bytes);
    }

    /// If this fails, a collector gets other records than were written, and tells of a trail that was tampered with.
    #[test]
    fn what_a_library_reads_is_what_was_coded() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut frame = Frame::default();
        for round in 0..200 {
            frame.begin();
            let mut content = Vec::new();
            let longest = [4, 40, 400, 4000, MAX_PART][round % 5];
            for _ in 0..random.usize(1..[2, 20, 2000][round % 3]) {
                if content.len() > MAX_CONTENT - 4 * MAX_PART {
                    break;
                }
                let len = random.usize(..=longest);
                let bytes: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
                frame.literal(&bytes);
                content.extend_from_slice(&bytes);
                for _ in 0..random.usize(..3) {
                    if !content.is_empty() {
                        let offset = random.usize(1..=content.len().min(1 + longest * 30));
                        copy(&mut frame, &mut content, random.usize(..=longest), offset);
                    }
                }
            }
            assert_eq!(frame.content(), content.len());
            match frame.end() {
                Some(coded) => assert_eq!(decoded(coded, content.len()), content, "round {round}"),
                None => assert!(content.is_empty()),
            }
        }
    }

    /// If this fails, a length at the edge of its code is read back as another.
    #[test]
    fn every_length_and_offset_has_its_code() {
        let edges = (0..17).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 3]);
        let lengths: Vec<usize> = (0..300).chain(edges).filter(|length| *length <= MAX_PART).collect();
        for length in lengths {
            let mut frame = Frame::default();
            frame.begin();
            let mut content: Vec<u8> = (0..length + 9).map(|at| (at * 7) as u8).collect();
            content.chunks(MAX_PART).for_each(|part| frame.literal(part));
            let offset = content.len();
            copy(&mut frame, &mut content, length, offset);
            frame.literal(b"x");
            content.push(b'x');
            copy(&mut frame, &mut content, 50, length + 1);
            copy(&mut frame, &mut content, length.max(8), 1);
            assert_eq!(decoded(frame.end().unwrap(), content.len()), content, "length {length}");
        }
    }

    /// If this fails, a frame says nothing of its length, so that a receiver keeps room for the longest, or it grows what it codes.
    #[test]
    fn a_frame_says_how_long_it_is_and_what_it_copies_costs_little() {
        let mut frame = Frame::default();
        frame.begin();
        let mut content: Vec<u8> = (0..1000).map(|at| (at * 7) as u8).collect();
        frame.literal(&content);
        for number in 0..500_u16 {
            frame.literal(&number.to_le_bytes());
            content.extend_from_slice(&number.to_le_bytes());
            copy(&mut frame, &mut content, 998, 1000);
        }
        let coded = frame.end().unwrap();
        assert_eq!(zstd::bulk::Decompressor::upper_bound(coded), Some(501_000));
        assert!(coded.len() < 1000 + 500 * 8, "{}", coded.len());
        assert_eq!(decoded(coded, content.len()), content);
    }

    /// If this fails, a frame has no end in memory, or an empty one is sent.
    #[test]
    fn there_is_no_frame_of_nothing_or_of_too_much() {
        let mut frame = Frame::default();
        frame.begin();
        assert!(frame.end().is_none());
        frame.begin();
        (0..MAX_CONTENT / MAX_PART).for_each(|_| frame.literal(&[0; MAX_PART]));
        assert!(frame.end().is_some());
        frame.literal(b"x");
        assert!(frame.end().is_none());
    }
}
