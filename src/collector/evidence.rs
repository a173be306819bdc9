//! What did not fit its chain: kinds, the lines of `evidence/evidence.jsonl`, and who is told.
//!
//! Owns the words for it. Every line says who sent it and when it came, because that is the first question of who looks.

use std::collections::BTreeMap;

use super::metrics::CollectorMetrics;
use super::sender::Sender;
use crate::audit::trail::Epoch;

/// The most lines that one batch puts in the log: a sender can make up an epoch for each record.
const MAX_ALERTS: usize = 16;

/// Kinds of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The line is no canonical record.
    BadJson,
    /// Its hash is not that of its bytes.
    Flip,
    /// Another record has its place, or it does not follow the one before.
    Fork,
    /// Records are missing before it.
    Gap,
    /// Its place was passed over as a hole, or removed by retention.
    Late,
    /// Its writer is not its sender, or not the writer of its epoch.
    Foreign,
    /// A checkpoint that the key of its epoch has not signed; it stays in its chain.
    BadSignature,
    /// A checkpoint that is not of the records before it; it stays in its chain.
    BadCheckpoint,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::BadJson,
        Self::Flip,
        Self::Fork,
        Self::Gap,
        Self::Late,
        Self::Foreign,
        Self::BadSignature,
        Self::BadCheckpoint,
    ];

    /// Whether the record itself is kept aside, and not only noted.
    pub(crate) fn keeps_the_record(self) -> bool {
        !matches!(self, Self::Gap | Self::BadSignature | Self::BadCheckpoint)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BadJson => "bad_json",
            Self::Flip => "flip",
            Self::Fork => "fork",
            Self::Gap => "gap",
            Self::Late => "late",
            Self::Foreign => "foreign",
            Self::BadSignature => "bad_signature",
            Self::BadCheckpoint => "bad_checkpoint",
        }
    }
}

/// The evidence of one batch.
pub(crate) struct Evidence<'s> {
    sender: &'s Sender,
    received: String,
    lines: Vec<u8>,
    found: BTreeMap<(Kind, Option<Epoch>), u64>,
}

impl<'s> Evidence<'s> {
    /// For a batch of `sender`, received at `received`.
    pub(crate) fn new(sender: &'s Sender, received: jiff::Timestamp) -> Self {
        let received = format!("{received:.3}");
        Self { sender, received, lines: Vec::new(), found: BTreeMap::new() }
    }

    /// Keeps a record that has no place in a chain.
    pub(crate) fn keep(&mut self, kind: Kind, why: &str, epoch: Option<&str>, line: &[u8]) {
        let mut kept = self.line(kind, why, epoch);
        match std::str::from_utf8(line) {
            Ok(text) => kept["line"] = text.into(),
            Err(_) => kept["line_bytes"] = line.into(),
        }
        self.push(kind, epoch, &kept);
    }

    /// Notes something that is no record.
    pub(crate) fn note(&mut self, kind: Kind, why: &str, epoch: &Epoch) {
        let noted = self.line(kind, why, Some(epoch.as_str()));
        self.push(kind, Some(epoch.as_str()), &noted);
    }

    /// The lines to be appended to the file.
    pub(crate) fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// Tells the operator, once the lines are on disk.
    pub(crate) fn alert(&self, metrics: &CollectorMetrics) {
        for ((kind, _), count) in &self.found {
            metrics.evidence(*kind).inc_by(*count);
        }
        for ((kind, epoch), count) in self.found.iter().take(MAX_ALERTS) {
            tracing::error!(
                kind = kind.as_str(),
                epoch = epoch.as_ref().map_or("unknown", Epoch::as_str),
                sender = self.sender.name(),
                count,
                "audit records that do not fit were kept as evidence: look at evidence/evidence.jsonl of the store"
            );
        }
    }

    fn line(&self, kind: Kind, why: &str, epoch: Option<&str>) -> serde_json::Value {
        let mut line = serde_json::json!({
            "kind": kind.as_str(), "why": why, "sender": self.sender.name(), "received": self.received,
        });
        if let Some(epoch) = epoch {
            line["epoch"] = epoch.into();
        }
        line
    }

    fn push(&mut self, kind: Kind, epoch: Option<&str>, line: &serde_json::Value) {
        self.lines.extend_from_slice(line.to_string().as_bytes());
        self.lines.push(b'\n');
        *self.found.entry((kind, epoch.and_then(Epoch::parse))).or_default() += 1;
    }
}
