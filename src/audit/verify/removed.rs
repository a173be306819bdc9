//! What retention has removed, as far as `audit verify` can tell: it is a note, and no gap.
//!
//! Owns the judgement of the tombstones themselves: their chain, and whether they are of whole fronts of epochs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::super::encode::Previous;
use super::super::retention::{FILE, Removed, Tombstone};
use super::{End, Finding, FindingKind, Report};

/// Adds notes, findings, and the ends of epochs that are gone whole.
pub(super) fn tell(dir: &Path, gone: &Removed, report: &mut Report, ends: &mut BTreeMap<String, End>) {
    let file = dir.join(FILE);
    let mut find = |kind, line, stone: Option<&Tombstone>, detail: String| {
        let epoch = stone.map(|stone| stone.epoch.clone());
        let seq = stone.map(|stone| stone.first_seq);
        report.findings.push(Finding { kind, file: file.clone(), line, epoch, seq, detail });
    };
    if let Some((line, why)) = gone.broken {
        find(
            FindingKind::BadJson,
            line,
            None,
            format!("{why}: it was changed, and the lines after it say nothing"),
        );
    }
    for stones in gone.epochs.values() {
        let mut next = 0;
        for stone in stones {
            if stone.first_seq > next {
                let detail = format!(
                    "records {next} to {} are missing, and retention has not removed them",
                    stone.first_seq - 1
                );
                find(FindingKind::Gap, 1, Some(stone), detail);
                break;
            }
            next = stone.last_seq.saturating_add(1);
        }
    }
    let here: BTreeSet<&str> = report.epochs.iter().map(|epoch| &*epoch.epoch).collect();
    let mut notes = Vec::new();
    let mut whole = 0u64;
    for last in gone.epochs.values().filter_map(|stones| stones.last()) {
        let Tombstone { epoch, last_seq, last_hash, removed, why, .. } = last;
        if here.contains(&**epoch) {
            notes.push(format!(
                "epoch {epoch}: records 0 to {last_seq} were removed by retention ({why}, {removed})"
            ));
            continue;
        }
        whole += 1;
        let last = Previous { epoch: epoch.clone(), seq: *last_seq, hash: last_hash.clone() };
        ends.insert(epoch.clone(), End { last, file: file.clone(), line: 1, opened_after: None });
    }
    if whole > 0 {
        notes.push(format!("{whole} epochs were removed whole by retention, see {FILE}"));
    }
    report.notes.extend(notes);
}
