//! What a shipper reads: lines of segments from a place on, and where that place is.
//!
//! Owns no state. It reads the files that the writer wrote, as far as the list of segments says that they are whole.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::batch;
use super::cipher;
use super::cursor::Place;
use super::lines::Lines;
use super::progress::SinkState;
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
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut rest = file.take(end.saturating_sub(from));
    let mut buffer = vec![0; 64 * 1024];
    let mut lines = 0;
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(lines),
            read => lines += batch::count(&buffer[..read]),
        }
    }
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
    /// As they are sent, so not encrypted.
    pub(crate) lines: Bytes,
    /// How many they are.
    pub(crate) events: u64,
    /// How long they are in the segment.
    pub(crate) stored: u64,
}

/// Reads whole lines into `buffer`: at most `wanted` bytes and `most` lines.
pub(crate) fn read_lines(
    path: &Path,
    offset: u64,
    wanted: u64,
    most: usize,
    mut buffer: Vec<u8>,
) -> io::Result<Read> {
    buffer.clear();
    buffer.reserve(wanted as usize); // a batch limit: a few MiB at most
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    if file.take(wanted).read_to_end(&mut buffer)? as u64 != wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (mut events, mut end, mut encrypted) = (0, 0, false);
    for line in batch::lines(&buffer).take(most) {
        end = line.end;
        events += 1;
        encrypted |= cipher::is_encrypted(&buffer[line]);
    }
    if end == 0 {
        return Err(io::Error::other(format!(
            "{}: no record ends within {wanted} bytes after byte {offset}",
            path.display()
        )));
    }
    buffer.truncate(end);
    let stored = end as u64;
    if !encrypted {
        return Ok(Read { lines: Bytes::from(buffer), events, stored });
    }
    let mut all = Vec::with_capacity(buffer.len());
    let mut lines = Lines::new(&*buffer);
    while let Some(line) = lines.next()? {
        all.extend_from_slice(line.bytes);
        all.push(b'\n');
    }
    Ok(Read { lines: Bytes::from(all), events, stored })
}
