//! What `audit verify` reports: plain data, whose JSON is stable.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

/// What was found in a folder.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether there is no finding.
    pub intact: bool,
    /// Records in all epochs.
    pub events: u64,
    /// How many records there are of each type.
    pub by_type: BTreeMap<String, u64>,
    /// Each epoch, oldest first.
    pub epochs: Vec<EpochReport>,
    /// What is wrong: the first bad record of each epoch, and records that were kept aside as evidence.
    pub findings: Vec<Finding>,
    /// What is not wrong but worth knowing.
    pub notes: Vec<String>,
}

/// One process lifetime.
#[derive(Debug, Serialize)]
pub struct EpochReport {
    /// Its name.
    pub epoch: String,
    /// The first record that is here; above 0 when older segments were delivered and removed.
    pub first_seq: u64,
    /// The last record that is here.
    pub last_seq: u64,
    /// Records that are here.
    pub events: u64,
    /// Whether it ends with `audit.close`. One that does not is still being written, or its process was killed.
    pub closed: bool,
    /// Signed checkpoints in it, the one at its end included.
    pub checkpoints: u64,
    /// How many of its first records the last checkpoint is of.
    pub sealed: u64,
}

/// Something wrong, and where.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
    /// The epoch, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// The record's sequence number, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// What exactly.
    pub detail: String,
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The record's hash is not that of its bytes.
    Flip,
    /// Records are missing before it.
    Gap,
    /// The record is there twice.
    Duplicate,
    /// The record stands in another place than it was written in.
    Reorder,
    /// Two records claim one place, or the record does not follow the one before it.
    Fork,
    /// Records are missing at the end of an epoch.
    Truncated,
    /// The last line is not whole: a crash, or a cut.
    TornTail,
    /// The line is not a canonical record of the schema.
    BadJson,
    /// A checkpoint, or the key of its epoch, is not signed by whom it must be.
    BadSignature,
    /// A checkpoint does not say what the records before it are.
    BadCheckpoint,
    /// Records were kept aside because they did not fit, by recovery or by the collector.
    Evidence,
}

impl FindingKind {
    /// The stable name, as in the JSON report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Gap => "gap",
            Self::Duplicate => "duplicate",
            Self::Reorder => "reorder",
            Self::Fork => "fork",
            Self::Truncated => "truncated",
            Self::TornTail => "torn_tail",
            Self::BadJson => "bad_json",
            Self::BadSignature => "bad_signature",
            Self::BadCheckpoint => "bad_checkpoint",
            Self::Evidence => "evidence",
        }
    }
}
