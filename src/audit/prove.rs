//! `audit prove`: one record, shown to be in the trail without the others.
//!
//! Owns the proof's format: the record, its inclusion path (RFC 6962 section 2.1.1) to the root of a signed checkpoint, and the
//! `audit.open` that binds the checkpoint's key to the writer's SVID. Who checks it needs the proof alone, and the trust bundle
//! to judge the SVID by.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::binding;
use super::chain::{Epoch, Record};
use super::layout::{EpochFiles, Layout};
use super::lines::Lines;
use super::merkle::{self, Hash};
use super::note::VerifierKey;
use crate::identity::Bundles;

const SCHEMA: &str = "phiward.proof/1";

/// A proof, as it is kept in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// `phiward.proof/1`.
    pub schema: String,
    /// The record's line.
    pub record: String,
    /// Its number: the index of the leaf.
    pub index: u64,
    /// How many records the checkpoint is of.
    pub size: u64,
    /// The inclusion path, hashes in hexadecimal.
    pub path: Vec<String>,
    /// The signed note.
    pub checkpoint: String,
    /// The line of the epoch's `audit.open`.
    pub open: String,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// A file or the folder cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The id has not the form of one.
    #[error("{0:?} is no event id: it is `id` of an event, <epoch>:<number>")]
    Id(String),
    /// The trail does not have it.
    #[error("there is no event {0} here")]
    Missing(String),
    /// Its epoch begins late.
    #[error("the first records of epoch {0} were delivered and removed: prove it from the collector's store")]
    BeginsLate(String),
    /// No checkpoint covers it.
    #[error(
        "no checkpoint covers the event yet: there is one every 10 s while the sidecar runs, and at its end"
    )]
    NotSealed,
    /// The records do not lead to the checkpoint's root.
    #[error("the records are not as they were sealed: run `phiward audit verify`")]
    Broken,
}

/// What a proof shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The record's line.
    pub record: String,
    /// Who wrote it, where an SVID vouches for the key.
    pub writer: Option<String>,
    /// Whether that SVID was judged by a bundle.
    pub writer_verified: bool,
    /// The log's name.
    pub origin: String,
    /// How many records the checkpoint is of.
    pub size: u64,
}

/// Makes the proof of event `id` against the newest checkpoint of its epoch.
///
/// # Errors
/// Why there is none.
pub fn prove(dir: &Path, id: &str) -> Result<Proof, ProveError> {
    let (epoch, index) = read_id(id).ok_or_else(|| ProveError::Id(id.to_owned()))?;
    let layout = Layout::read(dir).map_err(|error| ProveError::Read { path: dir.into(), error })?;
    let files = layout.epochs.iter().find(|files| files.epoch == epoch);
    let found = Found::read(files.ok_or_else(|| ProveError::Missing(id.to_owned()))?, index)?;
    let record = found.record.ok_or_else(|| ProveError::Missing(id.to_owned()))?;
    let open = found.open.ok_or_else(|| ProveError::BeginsLate(epoch.as_str().to_owned()))?;
    let (size, checkpoint) = found.checkpoint.ok_or(ProveError::NotSealed)?;
    let leaves = found.leaves.get(..size as usize).ok_or(ProveError::Broken)?;
    let path = merkle::path(leaves, index as usize).iter().map(merkle::to_hex).collect();
    let proof = Proof { schema: SCHEMA.to_owned(), record, index, size, path, checkpoint, open };
    check_proof(&proof, None).map_err(|_| ProveError::Broken)?;
    Ok(proof)
}

/// Checks a proof. With `bundles` also that the writer's SVID leads to the bundle of its trust domain.
///
/// # Errors
/// What is wrong with it.
pub fn check_proof(proof: &Proof, bundles: Option<&Bundles>) -> Result<Proven, String> {
    if proof.schema != SCHEMA {
        return Err(format!("the proof's schema is not {SCHEMA}"));
    }
    let mut scratch = Vec::new();
    let mut read = |line: &str, what: &str| {
        let record = Record::parse(line.as_bytes()).map_err(|why| format!("{what} is no record: {why}"))?;
        if !record.hash_is_right(&mut scratch) {
            return Err(format!("the hash of {what} is not that of its bytes"));
        }
        Ok((record.epoch.to_owned(), record.seq, record.leaf()))
    };
    let (epoch, seq, leaf) = read(&proof.record, "the record")?;
    let (open_epoch, open_seq, _) = read(&proof.open, "audit.open")?;
    if open_epoch != epoch || open_seq != 0 || seq != proof.index {
        return Err(
            "the parts of the proof are not of one epoch, or the record has another number".to_owned()
        );
    }
    let open: Value = serde_json::from_str(&proof.open).map_err(|error| error.to_string())?;
    let key = open.pointer("/open/checkpoint_key").and_then(Value::as_str).and_then(VerifierKey::parse);
    let key = key.ok_or("audit.open names no key for checkpoints")?;
    let vouched = open.pointer("/open/svid").is_some();
    if vouched {
        binding::check(&open, &key, bundles)?;
    } else if bundles.is_some() {
        return Err("no SVID vouches for the epoch's key".to_owned());
    }
    let checkpoint = key.open(&proof.checkpoint)?;
    if checkpoint.size != proof.size || !checkpoint.origin.ends_with(&format!("/{epoch}")) {
        return Err("the checkpoint is of another epoch or size".to_owned());
    }
    let path: Option<Vec<Hash>> = proof.path.iter().map(|hash| merkle::from_hex(hash)).collect();
    let path = path.ok_or("the path is not made of hashes in hexadecimal")?;
    if merkle::root_from(leaf, proof.index, proof.size, &path) != Some(checkpoint.root) {
        return Err("the record is not among those of the checkpoint".to_owned());
    }
    let writer = open.pointer("/instance/spiffe_id").and_then(Value::as_str).filter(|_| vouched);
    Ok(Proven {
        record: proof.record.clone(),
        writer: writer.map(str::to_owned),
        writer_verified: vouched && bundles.is_some(),
        origin: checkpoint.origin,
        size: checkpoint.size,
    })
}

/// What a proof is made of.
#[derive(Default)]
struct Found {
    record: Option<String>,
    open: Option<String>,
    leaves: Vec<Hash>,
    checkpoint: Option<(u64, String)>,
}

impl Found {
    fn read(files: &EpochFiles, index: u64) -> Result<Self, ProveError> {
        let mut found = Self::default();
        for segment in &files.segments {
            let read_error = |error| ProveError::Read { path: segment.path.clone(), error };
            let mut lines = Lines::open(&segment.path).map_err(read_error)?;
            while let Some(line) = lines.next().map_err(read_error)? {
                let Some(record) = Record::parse(line.bytes).ok().filter(|_| line.whole) else { continue };
                found.take(&record, index);
            }
        }
        Ok(found)
    }

    fn take(&mut self, record: &Record<'_>, index: u64) {
        let text = || String::from_utf8_lossy(record.line()).into_owned(); // a record is UTF-8
        if record.seq == index {
            self.record = Some(text());
        }
        if record.seq == 0 {
            self.open = Some(text());
        }
        if record.seq > index && matches!(record.kind, "audit.checkpoint" | "audit.close") {
            let event: Value = serde_json::from_slice(record.line()).unwrap_or_default();
            let sealed = event.get("checkpoint").or_else(|| event.pointer("/close/checkpoint"));
            let note = sealed.and_then(|sealed| sealed.get("note")).and_then(Value::as_str);
            self.checkpoint = note.map(|note| (record.seq, note.to_owned())).or(self.checkpoint.take());
        }
        self.leaves.push(record.leaf());
    }
}

fn read_id(id: &str) -> Option<(Epoch, u64)> {
    let (epoch, number) = id.rsplit_once(':')?;
    Some((Epoch::parse(epoch)?, number.parse().ok()?))
}
