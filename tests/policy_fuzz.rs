//! Whatever is in the file: the reader of policies never panics, never hangs, and keeps to its bounds.
//!
//! Each run of the tests reads some thousands of mutations of `tests/corpus/policy`; `PHIWARD_FUZZ_SECONDS=600 cargo test
//! --release --test policy_fuzz` goes on for ten minutes. A failure prints the file that caused it.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::time::{Duration, Instant};

use fastrand::Rng;
use phiward::identity::SpiffeId;
use phiward::policy::{Request, UnixSeconds, explain, load, validate};

const ITERATIONS: u64 = 2_000;
const NOW: UnixSeconds = UnixSeconds(1_800_000_000);
/// The most findings of a file that cannot be read: a hundred of each of two kinds.
const MAX_ERRORS: usize = 200;

/// What is put into files: words that mean something, and bytes that often go wrong.
const WORDS: &[&str] = &[
    "roles:",
    "tests:",
    "deny:",
    "query: {allow: []}",
    "max: {a: 18446744073709551616}",
    "mode: shadow",
    "tcp: {listeners: [a]}",
    "headers: {x-a: [a]}",
    "[",
    "]",
    "{",
    "}",
    "- ",
    ": ",
    "? ",
    "&a ",
    "*a",
    "!!str ",
    "<<: ",
    "---\n",
    "...\n",
    "|\n",
    ">-\n",
    "\"",
    "'",
    "\\u0000",
    "\\x",
    "\t",
    "\r",
    "\n",
    "  ",
    "#",
    "\u{feff}",
    "\u{202e}",
    "\u{2028}",
    "é",
    "/**",
    "/*",
    "{id}",
    "%2F",
    "%",
    "..",
    "//",
    "spiffe://",
    "spiffe://d/**",
    "9999-12-31",
    "-9999-01-01",
    "2026-02-30",
    "0x10",
    "1e999",
    ".nan",
    "null",
    "~",
    "true",
    "yes",
    "4GiB",
    "-1",
];

fn corpus() -> Vec<Vec<u8>> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/policy");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn range(rng: &mut Rng, length: usize) -> std::ops::Range<usize> {
    let start = rng.usize(..=length);
    start..(start + rng.usize(..64)).min(length)
}

fn mutate(rng: &mut Rng, file: &mut Vec<u8>, other: &[u8]) {
    let place = rng.usize(..=file.len());
    match rng.u32(..10) {
        0 => file.insert(place, rng.u8(..)),
        1 if place < file.len() => file[place] ^= 1 << rng.u32(..8),
        2 => drop(file.drain(range(rng, file.len()))),
        3 => {
            let copy = file[range(rng, file.len())].to_vec();
            file.splice(place..place, copy);
        }
        4 => {
            let copy = other[range(rng, other.len())].to_vec();
            file.splice(place..place, copy);
        }
        5 => file.truncate(place),
        6 => {
            // A line somewhere else.
            let mut lines: Vec<Vec<u8>> = file.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            if !lines.is_empty() {
                let (from, to) = (rng.usize(..lines.len()), rng.usize(..lines.len()));
                lines.swap(from, to);
                *file = lines.concat();
            }
        }
        7 => {
            // Much of the same: long lists, long names, deep nests.
            let word = WORDS[rng.usize(..WORDS.len())].repeat(rng.usize(1..300));
            file.splice(place..place, word.into_bytes());
        }
        _ => {
            let word = WORDS[rng.usize(..WORDS.len())].as_bytes();
            let end = if rng.bool() { place } else { (place + word.len()).min(file.len()) };
            file.splice(place..end, word.iter().copied());
        }
    }
}

/// Reads `file` in every way there is, and asks what came of it.
fn read(file: &[u8]) {
    let report = validate(file, NOW);
    let loaded = load(file, NOW);
    assert_eq!(loaded.is_ok(), report.policy.is_some() && report.tests_failed == 0);
    let Some(policy) = report.policy else {
        assert!((1..=MAX_ERRORS).contains(&report.findings.len()), "{} findings", report.findings.len());
        return;
    };
    let id = SpiffeId::parse("spiffe://d/a").unwrap();
    for line in ["GET /o?patient=1&_count=5", "POST /fhir/Observation", "TCP postgres", "GET /a%2Fb;v/../%zz"]
    {
        let request = Request::parse(line).unwrap();
        let found = explain(&policy, &id, &request, NOW);
        let first =
            found.candidates.iter().find(|row| row.mismatch.is_none() && !row.shadow).map(|row| row.rule);
        if !policy.is_shadow() {
            assert!(found.decision.rule.is_none() || found.decision.rule == first, "{line}");
        }
    }
}

/// If this fails, a file that somebody can write stops a sidecar, or a pipeline that reads it.
#[test]
fn no_file_makes_the_reader_panic_or_leave_its_bounds() {
    let seconds: Option<u64> = std::env::var("PHIWARD_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let corpus = corpus();
    corpus.iter().for_each(|file| read(file));
    let (began, mut slowest, mut valid) = (Instant::now(), Duration::ZERO, 0_u64);
    let goes_on = |done: u64| match seconds {
        Some(seconds) => began.elapsed() < Duration::from_secs(seconds),
        None => done < ITERATIONS,
    };
    let mut done = 0;
    while goes_on(done) {
        let mut rng = Rng::with_seed(done);
        let mut file = corpus[rng.usize(..corpus.len())].clone();
        let other = &corpus[rng.usize(..corpus.len())];
        (0..rng.usize(1..8)).for_each(|_| mutate(&mut rng, &mut file, other));
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(|| read(&file));
        assert!(outcome.is_ok(), "number {done}:\n{}", String::from_utf8_lossy(&file));
        valid += u64::from(load(&file, NOW).is_ok());
        slowest = slowest.max(start.elapsed());
        done += 1;
    }
    println!("{done} files, {valid} of them valid, the slowest took {slowest:?}");
    assert!(
        valid * 100 > done,
        "{valid} of {done} are valid policies: the mutations show nothing of what comes after reading"
    );
}

/// If this fails, a file can be large enough, or deep enough, to exhaust memory or stack.
#[test]
fn what_is_too_large_or_too_deep_is_refused() {
    let head = "apiVersion: phiward/v1\nkind: Policy\nmetadata: {name: p, revision: r}\n";
    let long = format!("{head}# {}\n", "x".repeat(4 * 1024 * 1024));
    let bad = format!("{head}service: {{health: [{}]}}\n", "a, ".repeat(100_000));
    for text in [
        long,
        format!("{head}roles: {}", "[".repeat(1_000_000)),
        format!("{head}roles: {}", "{a: ".repeat(500_000)),
        format!("{head}{}", "? ".repeat(100_000)),
        format!("{head}{}", "- ".repeat(100_000)),
        format!("{head}roles: {{r: {}}}\n", "&a [*a, ".repeat(10_000)),
        format!("{head}name: \"{}\"\n", "\\u00e9".repeat(100_000)),
        bad,
    ] {
        let findings = load(text.as_bytes(), NOW).unwrap_err();
        assert!((1..=MAX_ERRORS).contains(&findings.len()), "{}: {}", &text[..120], findings.len());
    }
}
