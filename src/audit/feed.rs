//! What a shipper reads: lines of segments from a place on, and where that place is.
//!
//! Owns no state. It reads the files that the writer wrote, as far as the list of segments says that they are whole.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Take};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::cursor::Place;
use super::lines::Lines;
use super::progress::SinkState;
use super::segment::Form;
use super::sink::BatchLimit;
use super::spool::{Segment, Shared};

/// The parts of segments of other epochs that are in front of a cursor: path, first byte, end.
pub(crate) fn older_segments<'s>(
    shared: &Shared,
    segments: impl IntoIterator<Item = &'s Segment>,
    ordinal: u64,
    offset: u64,
) -> Vec<(PathBuf, u64, u64)> {
    let older = segments
        .into_iter()
        .filter(|segment| segment.ordinal >= ordinal && !segment.name.starts_with(&shared.epoch));
    older
        .map(|segment| {
            let from = if segment.ordinal == ordinal { offset } else { 0 };
            (shared.config.dir.join(&segment.name), from, segment.bytes)
        })
        .collect()
}

/// Counts lines without keeping the shipper: it can be a GiB, and is a figure in a report.
pub(crate) fn count_in_background(state: Arc<SinkState>, older: Vec<(PathBuf, u64, u64)>) {
    if older.is_empty() {
        return;
    }
    tokio::task::spawn_blocking(move || {
        for (path, from, end) in older {
            // A segment that cannot be read is told by who delivers it.
            let events = count_lines(&path, from, end).unwrap_or(0);
            state.older_events.fetch_add(events as i64, Ordering::Release);
        }
    });
}

fn count_lines(path: &Path, from: u64, end: u64) -> io::Result<u64> {
    let mut lines = lines_between(path, from, end)?;
    let mut count = 0;
    while lines.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn lines_between(path: &Path, from: u64, end: u64) -> io::Result<Lines<Take<File>>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    Lines::of(Form::of(path), file.take(end.saturating_sub(from)))
}

/// Where a cursor points among the segments that are there: when its own is gone, at the next one.
pub(crate) fn find(shared: &Shared, place: Option<Place>) -> (u64, u64) {
    let tail = shared.tail();
    let first = tail.segments.front().map_or(0, |segment| segment.ordinal);
    let Some(place) = place else { return (first, 0) };
    match tail.segments.iter().find(|segment| segment.name >= place.segment) {
        Some(segment) if segment.name == place.segment => (segment.ordinal, place.offset.min(segment.bytes)),
        Some(segment) => (segment.ordinal, 0),
        None => (first, 0),
    }
}

/// Whole lines of a segment.
pub(crate) struct Read {
    /// As they are sent, so neither packed nor encrypted.
    pub(crate) lines: Bytes,
    /// How many they are.
    pub(crate) events: u64,
    /// How long they are in the segment.
    pub(crate) stored: u64,
}

/// Reads lines into `buffer`, of the segment's bytes from `offset` to `end`: as many whole frames (or lines, where it is not packed) as `limit`
/// lets through, but one at least.
pub(crate) fn read_lines(
    path: &Path,
    offset: u64,
    end: u64,
    limit: BatchLimit,
    mut buffer: Vec<u8>,
) -> io::Result<Read> {
    buffer.clear();
    let (mut read, mut events) = (Read { lines: Bytes::new(), events: 0, stored: 0 }, 0);
    let (mut lines, mut len) = (lines_between(path, offset, end)?, 0);
    while let Some(line) = lines.next()?.filter(|line| line.whole) {
        buffer.extend_from_slice(line.bytes);
        buffer.push(b'\n');
        events += 1;
        let is_too_much = buffer.len() as u64 > limit.bytes || events > limit.events as u64;
        if is_too_much && read.events > 0 {
            break;
        }
        if line.closes {
            (len, read.events, read.stored) = (buffer.len(), events, line.end);
        }
    }
    if read.events == 0 {
        return Err(io::Error::other(format!(
            "{}: no record ends between byte {offset} and byte {end}",
            path.display()
        )));
    }
    buffer.truncate(len);
    read.lines = Bytes::from(buffer);
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::packed::pack;

    /// If this fails, a sink is sent more than it takes at once or events twice, or stops before what is packed as one.
    #[test]
    fn a_batch_is_whole_frames_and_as_many_as_are_let_through() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.ndjson.zst");
        let (mut stored, mut ends) = (Vec::new(), vec![0]);
        for lines in [&b"a\nb\n"[..], b"c\n", b"d\ne\nf\n"] {
            pack(&mut stored, lines).unwrap();
            ends.push(stored.len() as u64);
        }
        std::fs::write(&path, &stored).unwrap();
        let read = |from: usize, to: usize, events, bytes| {
            let read =
                read_lines(&path, ends[from], ends[to], BatchLimit { events, bytes }, Vec::new()).unwrap();
            (String::from_utf8(read.lines.to_vec()).unwrap(), read.events, read.stored)
        };
        assert_eq!(read(0, 3, 9, 99), ("a\nb\nc\nd\ne\nf\n".into(), 6, ends[3]));
        assert_eq!(read(0, 3, 5, 99), ("a\nb\nc\n".into(), 3, ends[2]));
        assert_eq!(read(0, 3, 9, 6), ("a\nb\nc\n".into(), 3, ends[2]));
        assert_eq!(read(2, 3, 1, 1), ("d\ne\nf\n".into(), 3, ends[3] - ends[2]), "one at least");
        assert_eq!(read(0, 1, 9, 99), ("a\nb\n".into(), 2, ends[1]), "what follows is not said to be there");
        assert_eq!(count_lines(&path, ends[1], ends[3]).unwrap(), 4);
        assert!(
            read_lines(&path, ends[1], ends[1] + 3, BatchLimit { events: 9, bytes: 99 }, Vec::new()).is_err()
        );
        let path = dir.path().join("s.ndjson");
        std::fs::write(&path, b"a\nb\nc\n").unwrap();
        let plain = read_lines(&path, 2, 6, BatchLimit { events: 1, bytes: 99 }, Vec::new()).unwrap();
        assert_eq!((&plain.lines[..], plain.stored), (&b"b\n"[..], 2));
    }
}
