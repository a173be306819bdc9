//! What a store may let go of: whole segments, the oldest first.
//!
//! Owns the choice. Looks at names, lengths and times of files alone; whether a segment is still what was verified when it
//! arrived, the store asks before it removes one. Evidence is not looked at, so it stays.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use super::door::locked;
use super::store::Store;
use crate::audit::trail::{self, Epoch};

/// How much a store keeps; without a limit everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retention {
    /// A segment goes when its last record came longer ago than this.
    pub max_age: Option<Duration>,
    /// The oldest segments go when all together are larger than this.
    pub max_bytes: Option<u64>,
}

/// A segment that may go.
pub(super) struct Candidate {
    pub(super) epoch: Epoch,
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
    pub(super) why: &'static str,
}

/// Removes what is due at `now`. Takes the store anew for each segment, so that batches are taken in between.
pub(super) fn run(store: &Mutex<Store>, dir: &Path, retention: Retention, now: SystemTime) {
    let candidates = match due(dir, retention, now) {
        Ok(candidates) => candidates,
        Err(error) => return tracing::error!(%error, "retention cannot look at the store"),
    };
    let mut stuck: Vec<Epoch> = Vec::new();
    for candidate in candidates.into_iter() {
        if stuck.contains(&candidate.epoch) {
            continue; // only the front of an epoch may go, else there would be a hole
        }
        match locked(store).remove(&candidate, now) {
            Ok(true) => {}
            Ok(false) => stuck.push(candidate.epoch),
            Err(error) => return tracing::error!(%error, "retention cannot remove a segment"),
        }
    }
}

/// What is due, in the order in which it may go.
fn due(dir: &Path, retention: Retention, now: SystemTime) -> io::Result<Vec<Candidate>> {
    let mut epochs = Vec::new();
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(epoch) = name.to_str().and_then(Epoch::parse) else { continue };
        let folder = dir.join(epoch.as_str());
        let mut segments = VecDeque::new();
        for (name, bytes) in trail::list(&folder)? {
            let modified = std::fs::metadata(folder.join(&name))?.modified()?;
            total += bytes;
            segments.push_back((modified, name, bytes));
        }
        epochs.push((epoch, segments));
    }
    let mut fronts: BinaryHeap<_> = (0..epochs.len())
        .filter_map(|at| epochs[at].1.front().map(|(modified, ..)| Reverse((*modified, at))))
        .collect();
    let mut found = Vec::new();
    while let Some(Reverse((modified, at))) = fronts.pop() {
        let age = now.duration_since(modified).unwrap_or_default();
        let why = match retention {
            Retention { max_age: Some(most), .. } if age > most => "max_age",
            Retention { max_bytes: Some(most), .. } if total > most => "max_bytes",
            _ => break, // every other front is younger
        };
        let (epoch, segments) = &mut epochs[at];
        let Some((_, name, bytes)) = segments.pop_front() else { continue };
        total -= bytes;
        found.push(Candidate { epoch: epoch.clone(), name, bytes, modified, why });
        fronts.extend(segments.front().map(|(modified, ..)| Reverse((*modified, at))));
    }
    Ok(found)
}
