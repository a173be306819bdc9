//! Where a shipper is in the spool, and what is there to deliver.
//!
//! Owns the way of the cursor from one segment to the next, what was removed before it came there, and its file. Refuses to know what is
//! sent, and how.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Shipper;
use crate::audit::cursor::Place;
use crate::audit::feed::{count_in_background, older_segments};
use crate::audit::segment::{self, Form};
use crate::audit::writer::Message;

/// So many times smaller a packed segment is under load (`docs/performance.md`).
const PACKED_TIMES: u64 = 6;

/// The segment at the cursor.
pub(super) struct Here {
    pub(super) path: PathBuf,
    /// Bytes of it that are not acknowledged.
    pub(super) available: u64,
    pub(super) own_epoch: bool,
    pub(super) is_last: bool,
    pub(super) form: Form,
}

impl Here {
    /// About how long the records are beyond the next `bytes` of the file; `u64::MAX` where there is another segment.
    pub(super) fn left_after(&self, bytes: u64) -> u64 {
        let times = if self.form == Form::Packed { PACKED_TIMES } else { 1 };
        if self.is_last { self.available.saturating_sub(bytes).saturating_mul(times) } else { u64::MAX }
    }
}

impl Shipper {
    /// The segment at the cursor, once the cursor is in one that has more.
    pub(super) fn data(&mut self) -> Option<Here> {
        loop {
            let here = self.here()?;
            if here.available > 0 {
                return Some(here);
            }
            if here.is_last {
                return None;
            }
            self.ordinal += 1;
            self.acknowledge(0);
            let _ = self.writer.send(Message::Delivered); // a closed trail removes nothing
        }
    }

    /// The segment at the cursor.
    fn here(&mut self) -> Option<Here> {
        let shared = self.shared.clone();
        let tail = shared.tail();
        let first = tail.segments.front()?;
        if self.ordinal < first.ordinal {
            // Only a sink that is not required can be behind a segment that was removed.
            let missed = first.ordinal - self.ordinal;
            tracing::error!(
                sink = self.state.name,
                segments = missed,
                "the spool was full, and segments were removed before this sink had them: it is not required"
            );
            self.state.missed_segments.fetch_add(missed, Ordering::Release);
            (self.ordinal, self.offset) = (first.ordinal, 0);
            let first_seq = segment::parse_name(&first.name).map_or(0, |(_, seq)| seq);
            if first.name.starts_with(&shared.epoch) {
                self.state.own_events.store(first_seq, Ordering::Release);
            }
            self.state.older_events.store(0, Ordering::Release);
            let older = older_segments(&shared, &tail.segments, self.ordinal, 0);
            count_in_background(self.state.clone(), older);
        }
        let at = usize::try_from(self.ordinal - first.ordinal).ok()?;
        let here = tail.segments.get(at)?;
        Some(Here {
            path: shared.config.dir.join(&here.name),
            available: here.bytes.saturating_sub(self.offset),
            own_epoch: here.name.starts_with(&shared.epoch),
            is_last: at + 1 == tail.segments.len(),
            form: Form::of(&here.name),
        })
    }

    /// What earlier processes have left, for the figure of events that wait.
    pub(super) fn count_older_epochs(&self) {
        let older = older_segments(&self.shared, &self.shared.tail().segments, self.ordinal, self.offset);
        count_in_background(self.state.clone(), older);
    }

    /// Saves the cursor, if it has moved.
    pub(super) async fn save(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        let name = {
            let tail = self.shared.tail();
            tail.segments
                .iter()
                .find(|segment| segment.ordinal == self.ordinal)
                .map(|segment| segment.name.clone())
        };
        let Some(segment) = name else { return };
        let (cursor, place) = (self.cursor.clone(), Place { segment, offset: self.offset });
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || cursor.save(&place)).await {
            tracing::warn!(sink = self.state.name, %error, "the cursor of an audit sink cannot be saved");
        }
        self.saved = Instant::now();
    }
}
