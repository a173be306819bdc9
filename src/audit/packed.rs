//! Packed segments: frames of zstd (RFC 8878), one behind the other, each of whole lines. `zstdcat` makes the lines of them.
//!
//! Owns how a reader finds the frames, and what it makes of one that was changed or cut off. Refuses to know what a line says. The writer
//! makes most frames itself (see `repeats`), because it knows what a record repeats; the rest is the library's.

use std::io::{self, Read};
use std::ops::Range;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{compress_bound, find_frame_compressed_size, get_frame_content_size};

/// How a frame begins (RFC 8878 section 3.1.1). It is not UTF-8, so it is in no line that is packed as it is.
const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// No more lines than this are packed as one: what a reader holds at a time.
const FRAME_BYTES: usize = 1024 * 1024;
/// What is longer, packed or unpacked, is taken for no frame: a hostile file must not fill the memory. A segment that somebody packed whole
/// is shorter.
const MAX_FRAME: usize = 32 * 1024 * 1024;
const READ_BYTES: usize = 128 * 1024;
/// The fastest of the usual ones: two events come out at 40 % of their length.
const LEVEL: i32 = 1;

/// Appends `lines`, whole lines all, to `out`.
///
/// # Errors
/// As [`Packer::pack`].
pub(crate) fn pack(out: &mut Vec<u8>, lines: &[u8]) -> io::Result<()> {
    Packer::default().pack(out, lines)
}

/// Packs again and again. To make the library's memory anew costs more than to pack the two events of a request.
#[derive(Default)]
pub(crate) struct Packer(Option<Compressor<'static>>);

impl Packer {
    /// Appends `lines`, whole lines all, to `out`.
    ///
    /// # Errors
    /// What the library says; it has no reason to.
    pub(crate) fn pack(&mut self, out: &mut Vec<u8>, lines: &[u8]) -> io::Result<()> {
        let compressor = match &mut self.0 {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(LEVEL)?),
        };
        let mut rest = lines;
        while !rest.is_empty() {
            let most = &rest[..rest.len().min(FRAME_BYTES)];
            let end = if most.len() == rest.len() { None } else { memchr::memrchr(b'\n', most) };
            let (frame, after) = rest.split_at(end.map_or(most.len(), |at| at + 1));
            let had = out.len();
            out.resize(had + compress_bound(frame.len()), 0);
            let written = compressor.compress_to_buffer(frame, &mut out[had..]);
            out.truncate(had + *written.as_ref().unwrap_or(&0));
            written?;
            rest = after;
        }
        Ok(())
    }

    /// Gives the memory back: nothing comes for a while.
    pub(crate) fn rest(&mut self) {
        self.0 = None;
    }
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A frame was unpacked.
    Unpacked,
    /// There is something that is no frame, and was passed over.
    Damaged,
    /// The last frame is not whole.
    Cut,
    End,
}

/// Unpacks frame by frame.
pub(crate) struct Unpacker {
    decompressor: Decompressor<'static>,
    stored: Vec<u8>,
    from: usize,
    /// Where that stands which the last step was of.
    place: Range<u64>,
}

impl Unpacker {
    /// # Errors
    /// There is no memory.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { decompressor: Decompressor::new()?, stored: Vec::new(), from: 0, place: 0..0 })
    }

    pub(crate) fn place(&self) -> Range<u64> {
        self.place.clone()
    }

    /// Appends what is in the next frame to `out`.
    ///
    /// # Errors
    /// What the reader says.
    pub(crate) fn step(&mut self, source: &mut impl Read, out: &mut Vec<u8>) -> io::Result<Step> {
        let len = self.whole_frame(source)?;
        if len.is_none() && self.rest().is_empty() {
            return Ok(Step::End);
        }
        match len {
            Some(len) if self.unpack(len, out) => {
                self.take(len);
                Ok(Step::Unpacked)
            }
            _ => self.pass_over(source, if len.is_some() { Step::Damaged } else { Step::Cut }),
        }
    }

    fn rest(&self) -> &[u8] {
        &self.stored[self.from..]
    }

    /// The length of the frame that is next; `None` where there is none, or not all of it.
    fn whole_frame(&mut self, source: &mut impl Read) -> io::Result<Option<usize>> {
        loop {
            let rest = self.rest();
            let may_be_one = rest.len() < MAGIC.len() || rest.starts_with(&MAGIC) && rest.len() <= MAX_FRAME;
            if !may_be_one {
                return Ok(None);
            }
            if let Ok(len) = find_frame_compressed_size(rest) {
                return Ok(Some(len));
            }
            if !self.fill(source)? {
                return Ok(None);
            }
        }
    }

    fn unpack(&mut self, len: usize, out: &mut Vec<u8>) -> bool {
        let frame = &self.stored[self.from..self.from + len];
        let had = out.len();
        let unpacked = match get_frame_content_size(frame) {
            Ok(Some(content)) if content <= MAX_FRAME as u64 => {
                out.resize(had + content as usize, 0);
                let written = self.decompressor.decompress_to_buffer(frame, &mut out[had..]);
                written.is_ok_and(|written| written as u64 == content)
            }
            // Not written by phiward, but by who has packed it anew.
            Ok(None) => zstd::stream::read::Decoder::new(frame).is_ok_and(|decoder| {
                let read = decoder.single_frame().take(MAX_FRAME as u64 + 1).read_to_end(out);
                read.is_ok_and(|read| read <= MAX_FRAME)
            }),
            _ => false,
        };
        if !unpacked {
            out.truncate(had);
        }
        unpacked
    }

    /// Passes over what is no frame, to where one may begin again. `at_end` is what it is where nothing follows.
    fn pass_over(&mut self, source: &mut impl Read, at_end: Step) -> io::Result<Step> {
        let mut searched = 1; // there is a byte, or it would be the end
        loop {
            let found = memchr::memmem::find(&self.rest()[searched..], &MAGIC);
            if let Some(at) = found {
                self.take(searched + at);
                return Ok(Step::Damaged);
            }
            let read = self.rest().len();
            searched = read.saturating_sub(MAGIC.len() - 1).max(1);
            if read > MAX_FRAME {
                self.take(searched);
                return Ok(Step::Damaged);
            }
            if !self.fill(source)? {
                self.take(read);
                return Ok(at_end);
            }
        }
    }

    fn take(&mut self, bytes: usize) {
        self.from += bytes;
        self.place = self.place.end..self.place.end + bytes as u64;
    }

    /// Reads on; false at the end.
    fn fill(&mut self, source: &mut impl Read) -> io::Result<bool> {
        self.stored.drain(..std::mem::take(&mut self.from));
        let had = self.stored.len();
        self.stored.resize(had + READ_BYTES, 0);
        let read = loop {
            match source.read(&mut self.stored[had..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        self.stored.truncate(had + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn steps(stored: &[u8]) -> Vec<(Step, Vec<u8>, Range<u64>)> {
        // Frames and what is between them come in any pieces.
        let mut source = stored.chunks(7).fold(Box::new(io::empty()) as Box<dyn Read>, |before, piece| {
            Box::new(before.chain(piece)) as Box<dyn Read + '_>
        });
        let mut unpacker = Unpacker::new().unwrap();
        let mut steps = Vec::new();
        loop {
            let mut out = Vec::new();
            match unpacker.step(&mut source, &mut out).unwrap() {
                Step::End => return steps,
                step => steps.push((step, out, unpacker.place())),
            }
        }
    }

    fn packed(lines: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        pack(&mut out, lines).unwrap();
        out
    }

    /// If this fails, records are lost where a segment is read, or its end is cut at the wrong byte.
    #[test]
    fn frames_are_unpacked_and_have_their_place() {
        let (first, second) = (packed(b"a\nb\n"), packed(b"c\n"));
        let (one, two) = (first.len() as u64, (first.len() + second.len()) as u64);
        let want =
            vec![(Step::Unpacked, b"a\nb\n".to_vec(), 0..one), (Step::Unpacked, b"c\n".to_vec(), one..two)];
        assert_eq!(steps(&[&first[..], &second].concat()), want);
        assert_eq!(steps(b""), []);
        let long = b"0123456789abcdef\n".repeat(2 * FRAME_BYTES / 17);
        let frames = steps(&packed(&long));
        assert!(frames.len() > 1 && frames.iter().all(|(_, lines, _)| lines.ends_with(b"\n")));
        assert_eq!(frames.into_iter().flat_map(|(_, lines, _)| lines).collect::<Vec<_>>(), long);
    }

    /// If this fails, a trail that somebody packed by other means is called damaged.
    #[test]
    fn a_frame_that_does_not_say_its_length_is_unpacked_too() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(b"a\nb\n").unwrap();
        let stored = encoder.finish().unwrap();
        assert_eq!(get_frame_content_size(&stored).unwrap(), None);
        assert_eq!(steps(&stored)[0].1, b"a\nb\n");
    }

    /// If this fails, one changed byte hides all records behind it, or a crash in the middle of a write looks like tampering.
    #[test]
    fn what_is_no_frame_is_passed_over_and_an_end_that_is_missing_is_told() {
        let (first, second) = (packed(&b"abc\n".repeat(9)), packed(b"c\n"));
        let both = [&first[..], &second].concat();
        for cut in 1..second.len() {
            let steps = steps(&both[..both.len() - cut]);
            assert_eq!(
                steps.iter().map(|step| step.0).collect::<Vec<_>>(),
                [Step::Unpacked, Step::Cut],
                "{cut}"
            );
            assert_eq!(steps[1].2.end, (both.len() - cut) as u64);
        }
        let mut missed = 0;
        for at in 0..first.len() {
            let mut changed = both.clone();
            changed[at] ^= 0x10;
            let steps = steps(&changed);
            let last = steps.last().unwrap();
            missed += usize::from((last.0, &last.1[..]) != (Step::Unpacked, b"c\n"));
            let is_odd = steps.iter().any(|step| {
                step.0 == Step::Damaged || step.1.starts_with(b"a") && step.1 != b"abc\n".repeat(9)
            });
            assert!(is_odd || steps.len() == 2, "byte {at}: {steps:?}");
        }
        assert_eq!(missed, 0, "what follows is found");
        let garbage = [&first[..], &[0; 4096], &second].concat();
        assert_eq!(
            steps(&garbage).iter().map(|step| step.0).collect::<Vec<_>>(),
            [Step::Unpacked, Step::Damaged, Step::Unpacked]
        );
    }

    /// If this fails, a hostile file takes the memory of who reads it.
    #[test]
    fn a_frame_that_holds_too_much_is_none() {
        let bomb = zstd::bulk::compress(&vec![b'x'; MAX_FRAME + 1], 1).unwrap();
        assert_eq!(steps(&bomb)[0].0, Step::Damaged);
        let silent = zstd::stream::encode_all(io::repeat(b'x').take(MAX_FRAME as u64 + 1), 1).unwrap();
        assert_eq!(steps(&silent)[0].0, Step::Damaged);
    }
}
