//! The commands over a trail: exit codes, order, the last lines and new ones.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use audit_support::*;
use clap::Parser;
use phiward::audit::Follower;
use phiward::cli::audit::{AuditArgs, run};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: AuditArgs,
}

fn exit_code(args: &[&str], dir: &Path) -> String {
    let args = ["audit"].iter().chain(args).copied().chain([dir.to_str().unwrap()]);
    format!("{:?}", run(Cli::try_parse_from(args).unwrap().args))
}

/// If this fails, a script takes a broken chain, or a wrong folder, for a good trail.
#[test]
fn exit_codes_say_whether_the_trail_is_good() {
    let code = |number: u8| format!("{:?}", ExitCode::from(number));
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 3);
    for args in [
        &["verify"][..],
        &["verify", "--format", "json"],
        &["export", "--format", "ndjson"],
        &["tail", "--lines", "2"],
    ] {
        assert_eq!(exit_code(args, dir.path()), code(0), "{args:?}");
        assert_eq!(exit_code(args, &dir.path().join("missing")), code(2), "{args:?}");
        assert_eq!(exit_code(args, tempfile::tempdir().unwrap().path()), code(2), "{args:?}");
    }
    let path = segments(dir.path()).remove(0);
    put_text(&path, text_of(&path).replacen("\"status\":200", "\"status\":403", 1));
    assert_eq!(exit_code(&["verify"], dir.path()), code(1));
    assert_eq!(exit_code(&["verify", "--format", "json"], dir.path()), code(1));
}

/// If this fails, the commands' arguments contradict themselves.
#[test]
fn the_command_line_is_sound() {
    <Cli as clap::CommandFactory>::command().debug_assert();
}

/// If this fails, an export misses events or mixes up their order.
#[test]
fn an_export_has_every_event_in_chain_order() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        trail_of(dir.path(), 100);
    }
    let places: Vec<_> = events(dir.path())
        .iter()
        .map(|event| {
            (event["chain"]["epoch"].as_str().unwrap().to_owned(), event["chain"]["seq"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(places.len(), 3 * 202);
    assert!(places.is_sorted());
}

/// If this fails, `tail --follow` misses events, shows them twice, or shows half a line.
#[test]
fn a_follower_gives_the_last_lines_and_then_each_new_one_once() {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 200);
    trail_of(dir.path(), 1);
    let (mut follower, last) = Follower::at_end(dir.path(), 7).unwrap();
    let seqs = |lines: &[Vec<u8>]| -> Vec<u64> {
        let seq = |line: &Vec<u8>| {
            serde_json::from_slice::<serde_json::Value>(line).unwrap()["chain"]["seq"].as_u64()
        };
        lines.iter().map(|line| seq(line).unwrap()).collect()
    };
    assert_eq!(last.len(), 7);
    assert_eq!(follower.new_lines().unwrap().len(), 0);
    trail_of(dir.path(), 2);
    let mut new = seqs(&follower.new_lines().unwrap());
    new.sort();
    assert_eq!(new, [0, 1, 2, 3, 4, 5]);
    let path = segments(dir.path()).pop().unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    let frame = zstd::bulk::compress(b"{\"chain\":{\"seq\":9}}\n", 1).unwrap();
    let (begun, rest) = frame.split_at(frame.len() / 2);
    file.write_all(begun).unwrap();
    assert_eq!(follower.new_lines().unwrap().len(), 0);
    file.write_all(rest).unwrap();
    assert_eq!(seqs(&follower.new_lines().unwrap()), [9]);
    assert_eq!(Follower::at_end(dir.path(), 0).unwrap().1.len(), 0);
}
