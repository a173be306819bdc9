//! What becomes of events that a sink does not take for good.
//!
//! Owns that nothing is forgotten before it is set aside, and that the trail says what was. Refuses to know why it was refused.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{Part, Shipper};
use crate::audit::encode::TrailEvent;
use crate::audit::sink::Refusal;
use crate::audit::writer::Message;
use crate::audit::{batch, quarantine};

impl Shipper {
    /// Some lines are refused, some are to be sent again, and the rest was taken.
    pub(super) async fn divide(
        &mut self,
        part: &Part,
        refused: Vec<(usize, Refusal)>,
        again: &[usize],
        why: Option<String>,
    ) {
        let taken = part.events.saturating_sub((refused.len() + again.len()) as u64);
        let mut by_reason: BTreeMap<Refusal, Vec<usize>> = BTreeMap::new();
        for (line, refusal) in refused {
            by_reason.entry(refusal).or_default().push(line);
        }
        let rest = (!again.is_empty()).then(|| batch::pick(&part.lines, again));
        // Set aside before anything is forgotten: given up half-way, the whole part is sent again.
        for (refusal, lines) in by_reason {
            self.keep(&batch::pick(&part.lines, &lines), refusal).await;
        }
        if taken > 0 {
            self.taken(taken);
        }
        self.replace_part(rest);
        if let Some(why) = why {
            self.wait_after(why, None).await;
        }
    }

    /// Sets the whole part aside.
    pub(super) async fn set_aside(&mut self, part: &Bytes, refusal: Refusal) {
        self.keep(part, refusal).await;
        self.replace_part([]);
    }

    /// Keeps refused events on disk, and tries until they are there.
    async fn keep(&mut self, refused: &Bytes, refusal: Refusal) {
        while let Err(error) = self.quarantine(refused, refusal).await {
            self.wait_after(format!("refused events cannot be set aside: {error}"), None).await;
        }
    }

    async fn quarantine(&self, refused: &Bytes, refusal: Refusal) -> io::Result<()> {
        let (dir, sink, lines) = (self.shared.config.dir.clone(), self.state.name.clone(), refused.clone());
        let key = self.shared.config.key.clone();
        let kept =
            tokio::task::spawn_blocking(move || quarantine::keep(&dir, &sink, &lines, key.as_deref())).await;
        let kept = kept.map_err(io::Error::other)??;
        let events = batch::count(refused);
        tracing::error!(sink = self.state.name, reason = refusal.reason, status = refusal.status, events,
            path = %kept.path.display(), "the audit sink refuses events for good; they were set aside");
        if !kept.known {
            self.shared.free.fetch_sub(refused.len() as i64, Ordering::AcqRel);
        }
        self.state.quarantined.fetch_add(events, Ordering::Release);
        // A sink that refuses everything refuses these events too: without this they would breed for ever.
        if !kept.only_quarantine_events {
            let event = TrailEvent::Quarantine {
                sink: self.state.name.clone(),
                reason: refusal.reason,
                status: refusal.status,
                first_id: kept.first_id,
                last_id: kept.last_id,
                events,
            };
            let _ = self.writer.send(Message::Trail(Box::new(event))); // a closed trail has its file in quarantine/
        }
        Ok(())
    }
}
