//! Every kind of tampering is named, at its place.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;

use std::path::Path;

use audit_support::*;
use phiward::audit::{Finding, FindingKind, verify};

/// Changes the lines of a closed one-segment trail of 10 requests (22 records) and gives the one finding.
fn after(tamper: impl FnOnce(&mut Vec<String>)) -> Finding {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 10);
    rewrite(dir.path(), tamper);
    let mut report = verify(dir.path()).unwrap();
    assert!(!report.intact);
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    report.findings.remove(0)
}

fn rewrite(dir: &Path, tamper: impl FnOnce(&mut Vec<String>)) {
    let path = segments(dir).remove(0);
    let mut lines: Vec<_> = text_of(&path).lines().map(str::to_owned).collect();
    tamper(&mut lines);
    put_text(&path, lines.join("\n") + "\n");
}

/// If this fails, a changed, removed, repeated or moved record passes, or the wrong one is named.
#[test]
fn each_kind_of_tampering_is_named_at_the_first_bad_record() {
    type Tamper = Box<dyn FnOnce(&mut Vec<String>)>;
    let table: Vec<(FindingKind, u64, Option<u64>, Tamper)> = vec![
        (FindingKind::Flip, 6, Some(5), Box::new(|l| l[5] = l[5].replace("10.2.0.9", "10.2.0.8"))),
        (FindingKind::Flip, 6, Some(5), Box::new(|l| l[5] = with_another_hash(&l[5]))),
        (FindingKind::Gap, 6, Some(6), Box::new(|l| drop(l.remove(5)))),
        (FindingKind::Gap, 1, Some(3), Box::new(|l| drop(l.drain(..3)))),
        (FindingKind::Duplicate, 7, Some(5), Box::new(|l| l.insert(6, l[5].clone()))),
        (FindingKind::Duplicate, 12, Some(2), Box::new(|l| l.insert(11, l[2].clone()))),
        (FindingKind::Reorder, 6, Some(6), Box::new(|l| l.swap(5, 6))),
        (FindingKind::BadJson, 6, None, Box::new(|l| l[5] = l[5].replace("\"type\":", " \"type\":"))),
        (FindingKind::BadJson, 6, None, Box::new(|l| l[5].truncate(100))),
        (FindingKind::BadJson, 6, None, Box::new(|l| l[5].clear())),
        (FindingKind::BadJson, 6, None, Box::new(|l| l[5] = l[5].replace("audit/1", "audit/9"))),
    ];
    for (number, (kind, line, seq, tamper)) in table.into_iter().enumerate() {
        let finding = after(tamper);
        assert_eq!(
            (finding.kind, finding.line, finding.seq),
            (kind, line, seq),
            "case {number}: {finding:?}"
        );
        assert!(finding.epoch.is_some());
    }
}

fn with_another_hash(line: &str) -> String {
    let at = line.find("\"hash\":\"").unwrap() + 8;
    let digit = if line[at..].starts_with('0') { '1' } else { '0' };
    format!("{}{digit}{}", &line[..at], &line[at + 1..])
}

/// If this fails, somebody without any key can put another history in a record's place.
#[test]
fn a_record_of_another_history_is_a_fork() {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 10);
    rewrite(dir.path(), |lines| {
        // A record whose own hash is right but which follows something else.
        let honest = lines[5].clone();
        let prev = honest.split("\"prev\":\"").nth(1).unwrap()[..64].to_owned();
        lines[5] = rehashed(&honest.replacen(&prev, &"a".repeat(64), 1));
    });
    let report = verify(dir.path()).unwrap();
    assert_eq!((report.findings[0].kind, report.findings[0].line), (FindingKind::Fork, 6));

    trail_of(dir.path(), 10); // a second epoch; the first stays as it is
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 10);
    rewrite(dir.path(), |lines| {
        let other = rehashed(&lines[5].replace("10.2.0.9", "10.2.0.8"));
        lines.insert(6, other);
    });
    let report = verify(dir.path()).unwrap();
    assert_eq!((report.findings[0].kind, report.findings[0].line), (FindingKind::Fork, 7));
}

/// A changed line with its hash made anew, as an attacker would.
fn rehashed(line: &str) -> String {
    let at = line.find("\"hash\":\"").unwrap();
    let without = format!("{}{}", &line[..at], &line[at + 8 + 64 + 2..]);
    let mut bytes = vec![0];
    bytes.extend_from_slice(without.as_bytes());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}\"hash\":\"{hex}\",{}", &line[..at], &without[at..])
}

/// If this fails, a cut of any length at any byte passes, or the verifier panics.
#[test]
fn a_cut_at_any_byte_of_the_last_records_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 2);
    drop(start(dir.path(), &[]).unwrap()); // the next epoch names the end of this one
    let first = segments(dir.path()).remove(0);
    let whole = std::fs::read(&first).unwrap();
    let from = whole.len() - 900;
    for cut in (from..whole.len()).step_by(7) {
        std::fs::write(&first, &whole[..cut]).unwrap();
        let report = verify(dir.path()).unwrap();
        let kind = report.findings[0].kind;
        assert!(matches!(kind, FindingKind::TornTail | FindingKind::Truncated), "{cut}: {kind:?}");
    }
}

/// If this fails, somebody changes what is packed without unpacking it, and is not seen or not named.
#[test]
fn tampering_with_frames_is_named_as_tampering_with_lines_is() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), &[]).unwrap();
    ["a", "b", "c"].iter().for_each(|prefix| requests(&audit, prefix, 2));
    audit.close().unwrap();
    let path = segments(dir.path()).remove(0);
    let (stored, text) = (std::fs::read(&path).unwrap(), text_of(&path));
    let mut frames = Vec::new();
    while let Some(rest) = stored.get(frames.iter().map(Vec::len).sum()..).filter(|rest| !rest.is_empty()) {
        frames.push(rest[..zstd::zstd_safe::find_frame_compressed_size(rest).unwrap()].to_vec());
    }
    assert!(frames.len() > 3, "{}", frames.len());
    let first_of_third = zstd::stream::decode_all(&frames[2][..]).unwrap();
    let third =
        serde_json::from_slice::<serde_json::Value>(first_of_third.split(|b| *b == b'\n').next().unwrap());
    let third = third.unwrap()["chain"]["seq"].as_u64();

    let finding = |frames: &[&[u8]]| {
        std::fs::write(&path, frames.concat()).unwrap();
        verify(dir.path()).unwrap().findings.into_iter().next().map(|finding| (finding.kind, finding.seq))
    };
    let all: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    assert_eq!(finding(&all), None);
    let without: Vec<_> = [&all[..1], &all[2..]].concat();
    assert_eq!(finding(&without), Some((FindingKind::Gap, third)));
    let twice: Vec<_> = [&all[..2], &all[1..]].concat();
    assert_eq!(finding(&twice).unwrap().0, FindingKind::Duplicate);
    let moved = [&all[..1], &[all[2], all[1]], &all[3..]].concat();
    assert!(matches!(finding(&moved).unwrap().0, FindingKind::Gap | FindingKind::Reorder));
    let filled = [&all[..2], &[&[0; 100][..]], &all[2..]].concat();
    assert_eq!(finding(&filled), Some((FindingKind::Flip, third)));
    for at in (0..stored.len()).step_by(2) {
        let mut changed = stored.clone();
        changed[at] ^= 1 << (at % 8);
        if finding(&[&changed]).is_none() {
            // Some bits of the format say nothing.
            assert_eq!(text_of(&path), text, "byte {at}");
        }
    }
}

/// If this fails, whole segments or epochs can be removed unseen.
#[test]
fn a_missing_segment_is_a_gap_and_a_missing_epoch_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 400);
    trail_of(dir.path(), 1);
    let all = segments(dir.path());
    std::fs::remove_file(&all[2]).unwrap();
    assert_eq!(verify(dir.path()).unwrap().findings[0].kind, FindingKind::Gap);

    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        trail_of(dir.path(), 1);
    }
    std::fs::remove_file(&segments(dir.path())[1]).unwrap();
    let report = verify(dir.path()).unwrap();
    assert_eq!(report.notes.len(), 1, "{report:?}");
}

/// If this fails, a spool whose oldest segments were delivered and removed is called tampered with.
#[test]
fn a_spool_may_begin_late_because_delivered_segments_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 400);
    std::fs::remove_file(&segments(dir.path())[0]).unwrap();
    assert!(intact(dir.path()).epochs[0].first_seq > 0);
}

/// If this fails, the command's exit code or report misleads a script.
#[test]
fn folders_without_a_trail_are_an_error_and_not_a_good_trail() {
    let dir = tempfile::tempdir().unwrap();
    assert!(verify(dir.path()).is_err());
    assert!(verify(&dir.path().join("missing")).is_err());
}
