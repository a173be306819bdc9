//! How chained records are packed and get into the segment, what a disk that refuses them means, and who is told when they are there.
//!
//! Owns the order: the bytes first, by one `write`, then the segment's length as others know it, the marks and the pieces for delivery.
//! Refuses to know what a record says.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Due, FRAME_BYTES, KEPT_BYTES, Writer};
use crate::audit::batch;
use crate::audit::fresh::{self, Piece};
use crate::audit::journal::Mark;
use crate::audit::segment::{self, SegmentFile};
use crate::audit::spool::{Health, Segment};

/// How long to wait before a refused write is tried again.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(200);

impl Writer {
    /// Writes what is due, unless it is too early to try again, and tells of it.
    pub(super) fn flush(&mut self) {
        let saved = self.pack();
        self.shared.free.fetch_add(saved, Ordering::AcqRel);
        if self.due.stored.is_empty() || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if self.shared.health() == Health::Poisoned {
            return self.lose();
        }
        // Before the new segment is there nothing is written, so whatever it is (too many open files, say), it can be tried again.
        let outcome = self.roll_if_full().map_err(|error| (error, true)).and_then(|()| {
            self.segment.append(&self.shared.disk, &self.due.stored).map_err(|error| {
                let retry = can_be_retried(&error);
                (error, retry)
            })
        });
        match outcome {
            Ok(()) => self.written(),
            Err((error, retry)) => self.refused(&error, retry),
        }
    }

    fn refused(&mut self, error: &io::Error, retry: bool) {
        if retry {
            if self.retry_at.is_none() {
                tracing::error!(path = %self.segment.path().display(), %error, "the audit spool cannot be written; it is tried again");
                self.shared.set_health(Health::Stalled, Some(self.describe(error)));
            }
            self.retry_at = Some(Instant::now() + RETRY_AFTER);
        } else {
            tracing::error!(path = %self.segment.path().display(), %error, "the audit spool failed; check the disk and restart");
            self.shared.set_health(Health::Poisoned, Some(self.describe(error)));
            self.lose();
        }
    }

    pub(super) fn describe(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.segment.path().display())
    }

    /// Makes a frame of the records that were chained since the last one. They are still in this core's cache, which nothing of them is
    /// when delivery would read them. Gives by how much shorter it is.
    pub(super) fn pack(&mut self) -> i64 {
        if self.out.is_empty() {
            return 0;
        }
        let from = self.due.stored.len();
        // A single request has little that it repeats.
        let is_little = from == 0 && self.out.len() < fresh::WORTH_BYTES;
        let frame = self.repeats.as_mut().and_then(|repeats| repeats.end(self.out.len()));
        match frame.filter(|_| !is_little) {
            Some(frame) => {
                debug_assert!(
                    zstd::bulk::decompress(frame, self.out.len()).is_ok_and(|lines| lines == self.out)
                );
                self.due.stored.extend_from_slice(frame);
            }
            None => {
                if let Err(error) = self.packer.pack(&mut self.due.stored, &self.out) {
                    // It never does: there is nothing about the records that the library could not take.
                    tracing::error!(%error, "audit records cannot be packed");
                    self.shared.set_health(Health::Poisoned, Some(error.to_string()));
                }
            }
        }
        if from == 0 {
            self.due.oldest_ns = batch::time_ns(batch::first_line(&self.out)).unwrap_or(0);
        }
        let saved = self.out.len() as i64 - (self.due.stored.len() - from) as i64;
        self.out.clear();
        self.out.shrink_to(2 * FRAME_BYTES);
        saved
    }

    /// Begins the next segment, with the first record that is due, when this one holds enough.
    fn roll_if_full(&mut self) -> io::Result<()> {
        let full = self.segment_holds + self.due.bytes > self.shared.segment_bytes();
        // On a full disk this one has space, and a new one has none.
        if self.segment.len() == 0 || !full || self.ahead.is_short() {
            return Ok(());
        }
        let dir = &self.shared.config.dir;
        let first_seq = self.chain.next_seq() - self.due.events;
        let name = segment::name(self.chain.epoch(), first_seq, self.shared.config.form());
        let path: PathBuf = dir.join(&name);
        let opened_dir = segment::open_dir(dir)?;
        let mut ended = std::mem::replace(&mut self.segment, SegmentFile::create(path)?);
        ended.release();
        self.segment_holds = 0;
        let mut tail = self.shared.tail();
        let ordinal = tail.segments.back().map_or(0, |last| last.ordinal + 1);
        tail.segments.push_back(Segment { ordinal, name, bytes: 0 });
        tail.unsynced.push(Arc::new(opened_dir)); // the entry of the new file must reach the disk as its bytes must
        drop(tail);
        self.reclaim();
        Ok(())
    }

    /// Tells whom it concerns of all that is in the segment.
    fn written(&mut self) {
        let mut tail = self.shared.tail();
        let ordinal = tail.segments.back_mut().map_or(0, |segment| {
            segment.bytes = self.segment.len();
            segment.ordinal
        });
        if !tail.unsynced.last().is_some_and(|file| Arc::ptr_eq(file, self.segment.file())) {
            tail.unsynced.push(self.segment.file().clone());
        }
        if !std::mem::replace(&mut tail.sync_asked, true) {
            self.shared.sync_wanted.notify_one();
        }
        // Marks move while the list is locked: the syncer reads both under the same lock, so a mark it has read never
        // covers an event in a file it has not seen.
        for owed in &mut self.owed {
            let before = owed.worker.written.fetch_add(owed.events, Ordering::Release);
            owed.expected = owed.worker.expects.load(Ordering::Acquire) > before;
            owed.worker.written_bytes.fetch_add(owed.bytes, Ordering::Release);
        }
        drop(tail);
        let next_seq = self.chain.next_seq();
        for owed in self.owed.drain(..) {
            if owed.expected {
                owed.worker.wake.notify_one();
            }
            if let Some(marker) = owed.worker.marker.get() {
                let position = owed.worker.written.load(Ordering::Acquire);
                marker.mark(&self.shared.disk, Mark { position, next_seq });
            }
        }
        self.segment_holds += self.due.bytes;
        let stored = self.due.stored.len();
        if self.cipher.is_none() && self.due.bytes >= fresh::WORTH_BYTES as u64 && self.shared.wants_frames()
        {
            let (end, next_seq) = (self.segment.len(), self.chain.next_seq());
            // As much is likely to be due next time.
            let packed = std::mem::replace(&mut self.due.stored, Vec::with_capacity(stored + stored / 4));
            self.shared.fresh.push(Piece {
                ordinal,
                place: end - stored as u64..end,
                unpacked: self.due.bytes,
                seqs: next_seq - self.due.events..next_seq,
                oldest_ns: self.due.oldest_ns,
                packed: packed.into(),
            });
        }
        self.shared.written_events.fetch_add(self.due.events, Ordering::Release);
        self.shared.written_bytes.fetch_add(stored as u64, Ordering::Release);
        for sink in &self.shared.sinks {
            sink.new_data.notify_one();
        }
        self.due.clear();
        if self.retry_at.take().is_some() {
            tracing::info!("the audit spool is written again");
            self.shared.set_health(if self.ahead.is_short() { Health::Short } else { Health::Good }, None);
        }
        if self.shared.free.load(Ordering::Acquire) < self.shared.reclaim_below() {
            self.reclaim();
        }
    }

    /// The disk failed for good: what was recorded since cannot be kept, and is counted.
    fn lose(&mut self) {
        self.shared.lost_events.fetch_add(self.due.events, Ordering::Release);
        self.out.clear();
        self.due.clear();
        self.owed.clear();
        self.retry_at = None;
    }
}

impl Due {
    /// Nothing is due any more. The memory stays, as much of it as is usual.
    fn clear(&mut self) {
        self.stored.clear();
        self.stored.shrink_to(KEPT_BYTES);
        (self.events, self.bytes, self.oldest_ns) = (0, 0, 0);
    }
}

/// Whether the disk refused the bytes as such, so that the same write may succeed later.
fn can_be_retried(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, QuotaExceeded, ReadOnlyFilesystem, StorageFull, WriteZero};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | Interrupted | WriteZero)
}
