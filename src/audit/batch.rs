//! A batch: whole lines of one segment, as they stand in the spool.
//!
//! Owns cutting it and naming it. What a line says is the business of others, but for its id and its time.

use std::ops::Range;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::{Bytes, BytesMut};

use super::chain::Record;
use super::json;
use super::sink::BatchLimit;

/// Where each line of a batch is, its line end included.
pub(crate) fn lines(batch: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    memchr::memchr_iter(b'\n', batch).map(move |at| std::mem::replace(&mut from, at + 1)..at + 1)
}

pub(crate) fn count(batch: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', batch).count() as u64
}

pub(crate) fn first_line(batch: &[u8]) -> &[u8] {
    memchr::memchr(b'\n', batch).map_or(batch, |at| &batch[..at])
}

/// Two parts with about as many lines each; `None` when there is one line alone.
pub(crate) fn halves(batch: &Bytes) -> Option<(Bytes, Bytes)> {
    let half = count(batch) / 2;
    let at = lines(batch).nth(usize::try_from(half.checked_sub(1)?).ok()?)?.end;
    Some((batch.slice(..at), batch.slice(at..)))
}

/// Parts that `limit` lets through, in order. A line that is longer is a part of its own.
pub(crate) fn within(batch: &Bytes, limit: BatchLimit) -> Vec<Bytes> {
    let (mut parts, mut from, mut end, mut events) = (Vec::new(), 0, 0, 0);
    for line in lines(batch) {
        if events > 0 && ((line.end - from) as u64 > limit.bytes || events == limit.events) {
            parts.push(batch.slice(from..end));
            (from, events) = (end, 0);
        }
        (end, events) = (line.end, events + 1);
    }
    parts.push(batch.slice(from..));
    parts
}

/// The lines with these numbers, in this order.
pub(crate) fn pick(batch: &[u8], numbers: &[usize]) -> Bytes {
    let lines: Vec<_> = lines(batch).collect();
    let mut picked = BytesMut::new();
    for line in numbers.iter().filter_map(|number| lines.get(*number)) {
        picked.extend_from_slice(&batch[line.clone()]);
    }
    picked.freeze()
}

/// The numbers of all lines but these.
pub(crate) fn others(batch: &[u8], numbers: &[usize]) -> Vec<usize> {
    (0..lines(batch).count()).filter(|number| !numbers.contains(number)).collect()
}

/// The id of a line that is a record.
pub(crate) fn event_id(line: &[u8]) -> Option<String> {
    let record = Record::parse(line.strip_suffix(b"\n").unwrap_or(line)).ok()?;
    Some(format!("{}:{}", record.epoch, record.seq))
}

/// Names a batch of neighbours: `<epoch>:<first>-<last>`. The chain is only ever appended to, so the same name is the same
/// content. A batch with lines that are no records any more is named by its digest.
pub(crate) fn id(batch: &[u8]) -> String {
    let first = lines(batch).next().and_then(|line| event_id(&batch[line]));
    let last_from = batch.len().checked_sub(2).and_then(|end| memchr::memrchr(b'\n', &batch[..=end]));
    let last = event_id(&batch[last_from.map_or(0, |at| at + 1)..]);
    match (first, last.as_deref().and_then(|id| id.split_once(':'))) {
        (Some(first), Some((_, last))) => format!("{first}-{last}"),
        _ => digest_hex(batch),
    }
}

/// The same name, for records that are known by their numbers.
pub(crate) fn id_of(epoch: &str, seqs: &Range<u64>) -> String {
    format!("{epoch}:{}-{}", seqs.start, seqs.end.saturating_sub(1))
}

/// SHA-256 in hexadecimal.
pub(crate) fn digest_hex(bytes: &[u8]) -> String {
    let mut hex = Vec::with_capacity(64);
    json::hex(&mut hex, digest(&SHA256, bytes).as_ref());
    String::from_utf8_lossy(&hex).into_owned()
}

/// When a line was written, in nanoseconds since 1970; `None` when it does not say.
pub(crate) fn time_ns(line: &[u8]) -> Option<u64> {
    const TIME: &[u8] = b"\"time\":\"";
    // The last one is that of the event itself: canonical members are sorted, and only `type` stands behind it. Quotes in
    // values are escaped, so no value can hold these bytes.
    let from = memchr::memmem::rfind(line, TIME)? + TIME.len();
    let text = std::str::from_utf8(line.get(from..)?.split(|byte| *byte == b'"').next()?).ok()?;
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, splitting or picking loses or doubles an event.
    #[test]
    fn cutting_keeps_every_line_once() {
        let batch = Bytes::from_static(b"a\nbb\nccc\n");
        let (first, second) = halves(&batch).unwrap();
        assert_eq!((&first[..], &second[..]), (&b"a\n"[..], &b"bb\nccc\n"[..]));
        let within = |events, bytes| {
            let parts = within(&batch, BatchLimit { events, bytes });
            assert_eq!(parts.concat(), batch);
            parts.iter().map(|part| count(part)).collect::<Vec<_>>()
        };
        assert_eq!(
            (within(9, 99), within(2, 99), within(9, 5), within(9, 1)),
            (vec![3], vec![2, 1], vec![2, 1], vec![1; 3])
        );
        assert_eq!(halves(&first), None);
        assert_eq!(halves(&Bytes::new()), None);
        assert_eq!(pick(&batch, &[0, 2]), &b"a\nccc\n"[..]);
        assert_eq!((count(&batch), lines(&batch).count()), (3, 3));
    }

    /// If this fails, the lag of a sink is that of another moment.
    #[test]
    fn the_time_of_a_line_is_the_events_own() {
        let line =
            br#"{"gap":{"time":"1999-01-01T00:00:00Z"},"time":"2026-11-20T14:03:22.118204771Z","type":"x"}"#;
        assert_eq!(time_ns(line), Some(1_795_183_402_118_204_771));
        assert_eq!(time_ns(b"damaged"), None);
    }
}
