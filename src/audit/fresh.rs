//! What the writer wrote last, for the receivers that take it as it is packed. As long as a sink keeps up, nobody reads the spool for it.
//!
//! Owns the pieces, and how much of them is kept. They are a short cut and nothing else: what is not here is in the spool. Refuses
//! to know how far a sink is.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

use bytes::Bytes;

use super::sink::BatchLimit;
use super::spool::lock;
use crate::pieces::Pieces;

/// The most that is kept: what comes of 30,000 requests/s in an eighth of a second, twice what is sent at once. A sink that is further behind
/// reads the spool, and what it reads is unpacked, and packed again.
const KEPT_BYTES: usize = 1536 * 1024;

/// Less than this is no piece of its own: what a record repeats is in the one before, which another frame does not see.
pub(crate) const WORTH_BYTES: usize = 4 * 1024;

/// Whole records of one segment that were written at once.
pub(crate) struct Piece {
    /// The segment.
    pub(crate) ordinal: u64,
    /// Where they stand in it.
    pub(crate) place: Range<u64>,
    /// How long they are unpacked.
    pub(crate) unpacked: u64,
    /// Their numbers.
    pub(crate) seqs: Range<u64>,
    /// When the first of them happened, in nanoseconds since 1970.
    pub(crate) oldest_ns: u64,
    /// As they stand in the segment: frames of zstd.
    pub(crate) packed: Bytes,
}

/// Pieces that follow one another, as one body: frames may stand one behind the other (RFC 8878 section 3.1).
pub(crate) struct Run {
    pub(crate) body: Pieces,
    pub(crate) seqs: Range<u64>,
    pub(crate) oldest_ns: u64,
    /// How long they are in the segment.
    pub(crate) stored: u64,
}

/// The newest pieces, in the order of the chain.
#[derive(Default)]
pub(crate) struct Fresh(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

impl Fresh {
    /// Keeps a piece, in the place of the oldest ones.
    pub(crate) fn push(&self, piece: Piece) {
        let mut kept = lock(&self.0);
        kept.bytes += piece.packed.len();
        kept.pieces.push_back(piece);
        while kept.bytes > KEPT_BYTES {
            kept.drop_first();
        }
    }

    /// What begins at byte `offset` of the segment, as far as `limit` goes.
    pub(crate) fn run(&self, ordinal: u64, offset: u64, limit: BatchLimit) -> Option<Run> {
        let kept = lock(&self.0);
        let begins = |piece: &Piece, at| (piece.ordinal, piece.place.start) == (ordinal, at);
        let from = kept.pieces.iter().position(|piece| begins(piece, offset))?;
        let first = kept.pieces.get(from)?;
        let (mut body, mut end, mut next_seq) = (Pieces::default(), offset, first.seqs.start);
        let mut unpacked = 0;
        for piece in kept.pieces.range(from..) {
            unpacked += piece.unpacked;
            let fits = || unpacked <= limit.bytes && piece.seqs.end - first.seqs.start <= limit.events as u64;
            if !begins(piece, end) || !fits() {
                break;
            }
            body.push(piece.packed.clone());
            (end, next_seq) = (piece.place.end, piece.seqs.end);
        }
        let run =
            Run { body, seqs: first.seqs.start..next_seq, oldest_ns: first.oldest_ns, stored: end - offset };
        Some(run).filter(|run| run.stored > 0)
    }

    /// How far the segment is to be read from byte `offset`, where no piece begins, so that one begins where reading ends.
    pub(crate) fn next_edge(&self, ordinal: u64, offset: u64) -> Option<u64> {
        let kept = lock(&self.0);
        let mut edges = kept
            .pieces
            .iter()
            .filter(|piece| piece.ordinal == ordinal)
            .flat_map(|piece| [piece.place.start, piece.place.end]);
        edges.find(|edge| *edge > offset)
    }

    /// Forgets what stands before byte `offset` of the segment.
    pub(crate) fn drop_before(&self, ordinal: u64, offset: u64) {
        let mut kept = lock(&self.0);
        while kept.pieces.front().is_some_and(|piece| (piece.ordinal, piece.place.end) <= (ordinal, offset)) {
            kept.drop_first();
        }
    }
}

impl Kept {
    fn drop_first(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.bytes -= piece.packed.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Buf;

    const USUAL: BatchLimit = BatchLimit { events: 2048, bytes: 1024 * 1024 };

    /// Ten records of 100 bytes, from record `first` of segment `ordinal` on. Their place is as long as they, to be reckoned with.
    fn piece(ordinal: u64, first: u64, packed: usize) -> Piece {
        let (place, seqs) = (first * 100..first * 100 + 1000, first..first + 10);
        Piece {
            ordinal,
            place,
            unpacked: 1000,
            seqs,
            oldest_ns: first,
            packed: vec![first as u8; packed].into(),
        }
    }

    fn kept(pieces: impl IntoIterator<Item = Piece>) -> Fresh {
        let fresh = Fresh::default();
        pieces.into_iter().for_each(|piece| fresh.push(piece));
        fresh
    }

    /// If this fails, a body says it has events that it has not, or a receiver gets more than it takes at a time.
    #[test]
    fn a_run_ends_where_something_is_missing_or_enough() {
        let fresh = kept([piece(1, 0, 2), piece(1, 10, 3), piece(1, 30, 4), piece(2, 0, 5)]);
        let run = fresh.run(1, 0, USUAL).unwrap();
        assert_eq!((run.seqs, run.stored, run.oldest_ns), (0..20, 2000, 0));
        let mut body = run.body;
        assert_eq!(body.copy_to_bytes(body.remaining()), [0, 0, 10, 10, 10][..]);
        assert_eq!(fresh.run(1, 3000, USUAL).unwrap().seqs, 30..40, "the next one is of another segment");
        assert_eq!(fresh.run(2, 0, USUAL).unwrap().body.remaining(), 5);
        for limit in [BatchLimit { events: 19, ..USUAL }, BatchLimit { bytes: 1999, ..USUAL }] {
            assert_eq!(fresh.run(1, 0, limit).unwrap().seqs, 0..10, "{limit:?}");
        }
        assert!(fresh.run(1, 0, BatchLimit { events: 9, ..USUAL }).is_none(), "not even one");
        assert!(fresh.run(1, 500, USUAL).is_none() && fresh.run(3, 0, USUAL).is_none(), "none begins there");
    }

    /// If this fails, a sink that has once read from the spool does so for as long as there is load.
    #[test]
    fn what_is_read_from_the_spool_ends_where_a_piece_begins() {
        let fresh = kept([piece(1, 10, 1), piece(1, 20, 1), piece(2, 0, 1)]);
        let edges = [0, 999, 1000, 1500, 2500, 3000].map(|offset| fresh.next_edge(1, offset));
        assert_eq!(edges, [Some(1000), Some(1000), Some(2000), Some(2000), Some(3000), None]);
        assert_eq!(fresh.next_edge(3, 0), None);
    }

    /// If this fails, a sink that falls behind takes memory without bound, or one that keeps up is not given what is there.
    #[test]
    fn the_oldest_go_first_when_they_are_taken_or_too_many() {
        let fresh = kept([piece(1, 0, 1), piece(1, 10, 1), piece(2, 0, 1)]);
        fresh.drop_before(1, 1000);
        assert!(fresh.run(1, 0, USUAL).is_none() && fresh.run(1, 1000, USUAL).is_some());
        fresh.drop_before(2, 0);
        assert!(fresh.run(1, 1000, USUAL).is_none() && fresh.run(2, 0, USUAL).is_some());
        fresh.push(piece(2, 10, KEPT_BYTES));
        assert!(fresh.run(2, 0, USUAL).is_none() && fresh.run(2, 1000, USUAL).is_some());
    }
}
