//! `phiward policy`: exit codes, and arguments that cannot be understood.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use phiward::cli::policy::{PolicyCommand, run};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: PolicyCommand,
}

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/policy.yaml");
const WEB: &str = "spiffe://hospital.local/ns/clinic/sa/web";

fn exit(args: &[&str]) -> ExitCode {
    match Cli::try_parse_from([&["phiward"], args].concat()) {
        Ok(cli) => run(cli.command),
        Err(error) => ExitCode::from(u8::try_from(error.exit_code()).unwrap()),
    }
}

fn code(code: u8) -> ExitCode {
    ExitCode::from(code)
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

/// If this fails, a pipeline ships an invalid policy, or stops for a valid one.
#[test]
fn validate_answers_by_its_exit_code() {
    let (_dir, warned) = file("apiVersion: phiward/v1\nkind: Policy\nmetadata: {name: p, revision: r}\n");
    let (_dir, wrong) = file("apiVersion: phiward/v1\n");
    let (warned, wrong) = (warned.to_str().unwrap(), wrong.to_str().unwrap());
    assert_eq!(exit(&["validate", EXAMPLE]), code(0));
    assert_eq!(exit(&["validate", EXAMPLE, "--format", "json", "--now", "2030-01-01"]), code(0));
    assert_eq!(exit(&["validate", warned]), code(0));
    assert_eq!(exit(&["validate", warned, "--deny-lints"]), code(1));
    assert_eq!(exit(&["validate", EXAMPLE, wrong]), code(1));
    assert_eq!(exit(&["validate", wrong, "/nowhere/p.yaml", EXAMPLE]), code(2));
    assert_eq!(exit(&["validate"]), code(2));
    assert_eq!(exit(&["validate", EXAMPLE, "--now", "tomorrow"]), code(2));
    assert_eq!(exit(&["validate", env!("CARGO_MANIFEST_DIR")]), code(2));
}

/// If this fails, a script that asks what a policy decides gets the wrong answer.
#[test]
fn explain_answers_by_its_exit_code() {
    let ask = |request: &str, more: &[&str]| {
        exit(&[&["explain", EXAMPLE, "--as", WEB, "--request", request], more].concat())
    };
    assert_eq!(ask("GET /fhir/Patient/1", &[]), code(0));
    assert_eq!(ask("GET /fhir/Patient/1", &["--format", "json"]), code(0));
    assert_eq!(ask("DELETE /fhir/Patient/1", &[]), code(1));
    assert_eq!(ask("GET /fhir/Patient/1", &["--header", "host: elsewhere"]), code(1));
    assert_eq!(ask("GET /a/../b", &[]), code(1));
    assert_eq!(ask("nonsense", &[]), code(2));
    assert_eq!(ask("GET /fhir/Patient/1", &["--header", "accept: text/html"]), code(0));
    assert_eq!(ask("GET /fhir/Patient/1", &["--header", "Content_Type: a/b, text/xml"]), code(1));
    assert_eq!(ask("GET /fhir/Observation?patient=1", &[]), code(0));
    assert_eq!(ask("GET /fhir/Observation?patient=1&_count=101", &[]), code(1));
    assert_eq!(ask("TCP postgres", &[]), code(1));
    assert_eq!(ask("GET /a", &["--header", "a b: text/html"]), code(2));
    assert_eq!(ask("GET /a", &["--now", "soon"]), code(2));
    assert_eq!(exit(&["explain", EXAMPLE, "--as", "web", "--request", "GET /a"]), code(2));
    assert_eq!(exit(&["explain", "/nowhere", "--as", WEB, "--request", "GET /a"]), code(2));
    let (_dir, wrong) = file("apiVersion: phiward/v1\n");
    assert_eq!(exit(&["explain", wrong.to_str().unwrap(), "--as", WEB, "--request", "GET /a"]), code(2));
}
