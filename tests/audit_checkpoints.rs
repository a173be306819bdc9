//! Signed checkpoints and proofs: what they show, and to whom.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use audit_support::*;
use phiward::audit::{
    Audit, FindingKind, InstanceFacts, Proof, Report, VerifyOptions, check_proof, prove, verify, verify_with,
};
use phiward::identity::{Bundles, Ca, Material, PemFile, PemSet, SpiffeId, TrustDomain, material_from_pem};
use rustls_pki_types::UnixTime;
use serde_json::Value;

const RECORDS: &str = "spiffe://hospital.local/ns/clinic/sa/records";

/// A workload with an SVID, and the CA that vouches for it.
struct Workload {
    ca: Ca,
    material: Material,
}

impl Workload {
    fn new() -> Self {
        let (trust_domain, now) = (TrustDomain::parse("hospital.local").unwrap(), UnixTime::now());
        let day = Duration::from_secs(86_400);
        let ca = Ca::new(&trust_domain, day, now).unwrap();
        let svid = ca.issue(&SpiffeId::parse(RECORDS).unwrap(), day, now).unwrap();
        let file = |name, text| PemFile { name, text };
        let set = PemSet {
            certificate: file("svid.pem", svid.cert_pem.as_bytes()),
            private_key: file("svid.key", svid.key_pem.as_bytes()),
            bundle: file("bundle.pem", ca.cert_pem().as_bytes()).into(),
            federation: Vec::new(),
        };
        let material = material_from_pem(&set, &trust_domain, now).unwrap();
        Self { ca, material }
    }

    /// A closed trail of `n` requests that it wrote.
    fn trail(&self, dir: &Path, n: usize) {
        let instance = InstanceFacts {
            spiffe_id: Some(RECORDS.into()),
            pod: Some("records-0".into()),
            svid: Some(self.material.svid.certified_key().clone()),
            ..instance()
        };
        let audit = Audit::start(config(dir), &instance, &[]).unwrap();
        requests(&audit, "", n);
        audit.close().unwrap();
    }

    fn bundles(&self) -> Bundles {
        self.material.bundles.clone()
    }
}

fn lines(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    phiward::audit::for_each(dir, |line| {
        lines.push(String::from_utf8(line.to_vec()).unwrap());
        Ok(())
    })
    .unwrap();
    lines
}

/// Puts `lines` in the place of the trail's, segment by segment.
fn put_back(dir: &Path, lines: &[String]) {
    let (mut rest, paths) = (lines, segments(dir));
    for (at, path) in paths.iter().enumerate() {
        let count = text_of(path).lines().count().min(rest.len());
        let (here, after) = rest.split_at(if at + 1 == paths.len() { rest.len() } else { count });
        put_text(path, here.iter().map(|line| format!("{line}\n")).collect::<String>());
        rest = after;
    }
}

/// Makes the hash of every line from `from` on anew, as somebody would who can write to the folder and knows the format.
fn rehash_from(lines: &mut [String], from: usize) {
    for at in from..lines.len() {
        let line = lines[at].clone();
        let member = |line: &str, key: &str| line.split_once(key).unwrap().1[..64].to_owned();
        let prev = if at == 0 { "0".repeat(64) } else { member(&lines[at - 1], "\"hash\":\"") };
        let line = line.replacen(&member(&line, "\"prev\":\""), &prev, 1);
        let hash_at = line.find("\"hash\":\"").unwrap();
        let without = format!("{}{}", &line[..hash_at], &line[hash_at + 8 + 64 + 2..]);
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &[b"\0", without.as_bytes()].concat());
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        lines[at] = format!("{}\"hash\":\"{hex}\",{}", &without[..hash_at], &without[hash_at..]);
    }
}

fn first(report: &Report) -> (FindingKind, Option<u64>) {
    let finding = report.findings.first().expect("nothing was found");
    (finding.kind, finding.seq)
}

fn newest_checkpoint(dir: &Path) -> String {
    let sealed = |line: &String| {
        let event: Value = serde_json::from_str(line).unwrap();
        let sealed = event.get("checkpoint").or_else(|| event.pointer("/close/checkpoint"))?;
        Some(sealed["note"].as_str().unwrap().to_owned())
    };
    lines(dir).iter().rev().find_map(sealed).unwrap()
}

/// If this fails, a long trail has no checkpoints, or a good one is found bad.
#[test]
fn a_trail_is_sealed_while_it_grows_and_at_its_end() {
    let (dir, workload) = (tempfile::tempdir().unwrap(), Workload::new());
    workload.trail(dir.path(), 2500);
    let options = VerifyOptions {
        bundles: Some(workload.bundles()),
        checkpoints: vec![newest_checkpoint(dir.path())],
        ..VerifyOptions::default()
    };
    let report = verify_with(dir.path(), &options).unwrap();
    assert!(report.intact, "{:?}", report.findings);
    let epoch = &report.epochs[0];
    assert!(epoch.checkpoints >= 4 && epoch.sealed == epoch.last_seq, "{epoch:?}");
    let stranger = VerifyOptions { bundles: Some(Workload::new().bundles()), ..VerifyOptions::default() };
    assert_eq!(first(&verify_with(dir.path(), &stranger).unwrap()), (FindingKind::BadSignature, Some(0)));
}

/// If this fails, who can write to the folder rewrites what was sealed, and nobody sees it.
#[test]
fn a_history_that_was_rewritten_whole_does_not_fit_its_checkpoints() {
    let (dir, workload) = (tempfile::tempdir().unwrap(), Workload::new());
    workload.trail(dir.path(), 1200);
    let honest = lines(dir.path());
    let sealed_at = |line: &String| line.contains("\"type\":\"audit.checkpoint\"");
    let first_seal = honest.iter().position(sealed_at).unwrap();
    let access = |from: usize| (from..honest.len()).find(|at| honest[*at].contains("10.2.0.9")).unwrap();
    for changed in [access(1), access(first_seal - 20), access(first_seal + 1), access(honest.len() - 20)] {
        let mut lines = honest.clone();
        lines[changed] = lines[changed].replacen("10.2.0.9", "10.2.0.8", 1);
        rehash_from(&mut lines, changed);
        put_back(dir.path(), &lines);
        let (kind, seq) = first(&verify(dir.path()).unwrap());
        assert_eq!(kind, FindingKind::BadCheckpoint, "{changed}");
        assert!(seq.unwrap() > changed as u64);
    }
    // Without its checkpoint a record cannot be left out either.
    let mut lines = honest.clone();
    lines.remove(first_seal);
    for line in &mut lines[first_seal..] {
        *line = renumbered(line);
    }
    rehash_from(&mut lines, first_seal);
    put_back(dir.path(), &lines);
    assert_eq!(first(&verify(dir.path()).unwrap()).0, FindingKind::BadCheckpoint);
}

/// The line with a number one lower.
fn renumbered(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap();
    let seq = event["chain"]["seq"].as_u64().unwrap();
    line.replacen(&format!("\"seq\":{seq}}}"), &format!("\"seq\":{}}}", seq - 1), 1).replacen(
        &format!(":{seq}\",\"instance\""),
        &format!(":{}\",\"instance\"", seq - 1),
        1,
    )
}

/// If this fails, a forger takes a key of his own, or leaves the signatures out.
#[test]
fn the_key_must_be_vouched_for_by_the_writers_svid() {
    let (dir, workload) = (tempfile::tempdir().unwrap(), Workload::new());
    workload.trail(dir.path(), 3);
    let honest = lines(dir.path());
    let open: Value = serde_json::from_str(&honest[0]).unwrap();
    let other = {
        let dir = tempfile::tempdir().unwrap();
        workload.trail(dir.path(), 1);
        serde_json::from_str::<Value>(&lines(dir.path())[0]).unwrap()
    };
    let text = |event: &Value, pointer: &str| event.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    let svid = format!(",\"svid\":{}", serde_json::to_string(&open["open"]["svid"]).unwrap());
    let swap = |pointer: &str| honest[0].replacen(&text(&open, pointer), &text(&other, pointer), 1);
    for (forged, why) in [
        (swap("/open/checkpoint_key"), "another key"),
        (swap("/open/svid/signature"), "another signature"),
        (honest[0].replacen(&svid, "", 1), "no signature"),
        (honest[0].replacen(RECORDS, "spiffe://hospital.local/ns/clinic/sa/other", 1), "another writer"),
    ] {
        assert_ne!(forged, honest[0], "{why}");
        let mut lines = honest.clone();
        lines[0] = forged;
        rehash_from(&mut lines, 0);
        put_back(dir.path(), &lines);
        assert_eq!(first(&verify(dir.path()).unwrap()), (FindingKind::BadSignature, Some(0)), "{why}");
    }
}

/// If this fails, the end of a trail can be cut off although its last checkpoint was kept elsewhere.
#[test]
fn a_checkpoint_that_was_kept_shows_a_cut_and_a_rewritten_trail() {
    let (dir, workload) = (tempfile::tempdir().unwrap(), Workload::new());
    workload.trail(dir.path(), 40);
    let kept = VerifyOptions {
        bundles: None,
        checkpoints: vec![newest_checkpoint(dir.path())],
        ..VerifyOptions::default()
    };
    let honest = lines(dir.path());
    put_back(dir.path(), &honest[..honest.len() - 5]);
    assert!(verify(dir.path()).unwrap().intact, "the copy alone does not tell");
    assert_eq!(first(&verify_with(dir.path(), &kept).unwrap()).0, FindingKind::Truncated);
    let mut lines = honest.clone();
    lines[7] = lines[7].replacen("10.2.0.9", "10.2.0.8", 1);
    let end = lines.len() - 1;
    lines[end] = lines[end].replacen(&close_of(&honest[end]), "{\"reason\":\"stopped\"}", 1);
    rehash_from(&mut lines, 7);
    put_back(dir.path(), &lines);
    assert!(verify(dir.path()).unwrap().intact, "a trail whose checkpoints were left out");
    let elsewhere = tempfile::tempdir().unwrap();
    trail_of(elsewhere.path(), 1);
    assert_eq!(
        first(&verify_with(elsewhere.path(), &kept).unwrap()).0,
        FindingKind::Truncated,
        "an epoch that is gone"
    );
    assert_eq!(first(&verify_with(dir.path(), &kept).unwrap()).0, FindingKind::BadCheckpoint);
}

fn close_of(line: &str) -> String {
    serde_json::to_string(&serde_json::from_str::<Value>(line).unwrap()["close"]).unwrap()
}

/// If this fails, a spool whose first segments were delivered and removed cannot be verified, or only on faith.
#[test]
fn a_trail_that_begins_late_is_checked_from_its_first_checkpoint_on() {
    let (dir, workload) = (tempfile::tempdir().unwrap(), Workload::new());
    workload.trail(dir.path(), 2500);
    let removed = segments(dir.path());
    removed[..5].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let report = verify(dir.path()).unwrap();
    assert!(report.intact && report.epochs[0].checkpoints >= 3, "{report:?}");
    assert!(report.notes.iter().any(|note| note.contains("begins late")), "{:?}", report.notes);
    let mut lines = lines(dir.path());
    let changed = (0..lines.len() - 100).rfind(|at| lines[*at].contains("10.2.0.9")).unwrap();
    lines[changed] = lines[changed].replacen("10.2.0.9", "10.2.0.8", 1);
    rehash_from(&mut lines, changed);
    put_back(dir.path(), &lines);
    assert_eq!(first(&verify(dir.path()).unwrap()).0, FindingKind::BadCheckpoint);
}

/// If this fails, one record cannot be shown to an auditor without the others, or a false one can.
#[test]
fn a_proof_shows_one_record_and_nothing_but_that() {
    let (dir, workload) = (tempfile::tempdir().unwrap(), Workload::new());
    workload.trail(dir.path(), 30);
    let lines = lines(dir.path());
    let bundles = workload.bundles();
    let id = |line: &String| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    for line in &lines[..lines.len() - 1] {
        let proof = prove(dir.path(), &id(line)).unwrap();
        let proven = check_proof(&proof, Some(&bundles)).unwrap();
        assert_eq!(
            (&proven.record, proven.writer.as_deref(), proven.writer_verified),
            (line, Some(RECORDS), true)
        );
    }
    let close = prove(dir.path(), &id(&lines[lines.len() - 1]));
    assert!(close.unwrap_err().to_string().contains("no checkpoint covers"));
    assert!(prove(dir.path(), "x").is_err());
    let proof = prove(dir.path(), &id(&lines[7])).unwrap();
    let mut other = vec![lines[7].replacen("10.2.0.9", "10.2.0.8", 1)];
    let prev = lines[6].clone();
    other.insert(0, prev);
    rehash_from(&mut other, 1);
    let forged: Vec<(&str, Proof)> = vec![
        ("a changed record", Proof { record: lines[7].replacen("10.2.0.9", "10.2.0.8", 1), ..proof.clone() }),
        ("a changed record with its hash", Proof { record: other[1].clone(), ..proof.clone() }),
        ("another record", Proof { record: lines[8].clone(), index: 8, ..proof.clone() }),
        ("another place", Proof { index: 6, ..proof.clone() }),
        ("another size", Proof { size: proof.size + 1, ..proof.clone() }),
        ("a shorter path", Proof { path: proof.path[1..].to_vec(), ..proof.clone() }),
        (
            "a changed checkpoint",
            Proof { checkpoint: proof.checkpoint.replacen("records-0", "records-1", 1), ..proof.clone() },
        ),
        ("another audit.open", Proof { open: lines[1].clone(), ..proof.clone() }),
    ];
    for (what, forged) in forged {
        assert!(check_proof(&forged, None).is_err(), "{what}");
    }
    assert!(check_proof(&proof, Some(&Workload::new().bundles())).is_err(), "another CA");
}

/// If this fails, the commands do not do what the documents say.
#[test]
fn the_commands_prove_and_verify() {
    let (dir, workload) = (tempfile::tempdir().unwrap(), Workload::new());
    workload.trail(dir.path(), 5);
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let phiward =
        |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_phiward")).arg("audit").args(args).output().unwrap();
    let trail = dir.path().to_str().unwrap();
    let event: Value = serde_json::from_str(&lines(dir.path())[3]).unwrap();
    let made = phiward(&["prove", trail, "--id", event["id"].as_str().unwrap()]);
    assert!(made.status.success());
    let proof = file("proof.json", &made.stdout);
    let bundle = format!("hospital.local={}", file("bundle.pem", workload.ca.cert_pem().as_bytes()));
    let kept = file("checkpoint", newest_checkpoint(dir.path()).as_bytes());
    let shown = phiward(&["verify", "--proof", &proof, "--bundle", &bundle]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.status.success() && text.contains("whose SVID leads to the bundle") && text.contains(RECORDS),
        "{text}"
    );
    let changed = file(
        "changed.json",
        &String::from_utf8(made.stdout).unwrap().replacen("10.2.0.9", "10.2.0.8", 1).into_bytes(),
    );
    assert_eq!(phiward(&["verify", "--proof", &changed]).status.code(), Some(1));
    assert_eq!(phiward(&["verify", "--proof", &kept]).status.code(), Some(2));
    assert!(phiward(&["verify", trail, "--bundle", &bundle, "--checkpoint", &kept]).status.success());
    assert_eq!(phiward(&["verify", trail, "--checkpoint", &proof]).status.code(), Some(2));
    assert_eq!(phiward(&["verify"]).status.code(), Some(2));
    assert_eq!(phiward(&["prove", trail, "--id", "nothing"]).status.code(), Some(2));
    let missing = format!("{}:9999", event["chain"]["epoch"].as_str().unwrap());
    assert_eq!(phiward(&["prove", trail, "--id", &missing]).status.code(), Some(1));
}
