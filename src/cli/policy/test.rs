//! `phiward policy test`: runs the tests of policy files and prints what ran, what failed, and why.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::explain::trace;
use super::junit;
use super::shared::{NO, Paint, UNREADABLE, clock, complain, count, load, parse_now, read, render, say};
use crate::policy::{Policy, TestResult, TestSet, UnixSeconds};

/// What `test` is told.
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// The policy files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A file of further tests (kind: PolicyTests), run on each policy file. May be repeated
    #[arg(long, value_name = "FILE")]
    tests: Vec<PathBuf>,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: TestFormat,
    /// The time to decide at, instead of now: 2026-12-31 or 2026-12-31T18:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_now)]
    now: Option<UnixSeconds>,
}

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TestFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value on one line.
    Json,
    /// JUnit's XML, for CI.
    Junit,
}

/// The tests of one file, run on one policy.
pub(super) struct Suite<'p> {
    /// The policy file.
    pub(super) policy: String,
    /// The file that the tests are in: the policy file itself or another.
    pub(super) file: String,
    pub(super) results: Vec<TestResult<'p>>,
}

impl Suite<'_> {
    pub(super) fn failed(&self) -> usize {
        self.results.iter().filter(|result| result.failure.is_some()).count()
    }
}

pub(super) fn test(args: TestArgs) -> u8 {
    let now = args.now.unwrap_or_else(clock);
    let further: Option<Vec<_>> = args.tests.iter().map(|path| further(path)).collect();
    let loaded: Option<Vec<_>> = args.files.iter().map(|path| own(path)).collect();
    // Not before all files were looked at, so that everything unreadable is told at once.
    let (Some(further), Some(loaded)) = (further, loaded) else { return UNREADABLE };
    let mut suites = Vec::new();
    for (file, policy, own) in &loaded {
        suites.push(Suite { policy: file.clone(), file: file.clone(), results: own.run(policy, now) });
        for (tests, set) in &further {
            suites.push(Suite { policy: file.clone(), file: tests.clone(), results: set.run(policy, now) });
        }
    }
    match args.format {
        TestFormat::Text => say(&as_text(&suites)),
        TestFormat::Json => say(&format!("{}\n", as_json(&suites))),
        TestFormat::Junit => say(&junit::report(&suites)),
    }
    if suites.iter().any(|suite| suite.failed() > 0) { NO } else { 0 }
}

fn own(path: &Path) -> Option<(String, Policy, TestSet)> {
    let (source, policy) = load(path)?;
    let tests = TestSet::of_policy(&source).ok()?; // it was just read: the policy is made of the same document
    Some((path.display().to_string(), policy, tests))
}

fn further(path: &Path) -> Option<(String, TestSet)> {
    let file = path.display().to_string();
    let read = read(path).map_err(|error| format!("error: {error}\n")).and_then(|source| {
        TestSet::parse(&source).map_err(|findings| render(&file, &source, &findings, Paint::stderr()))
    });
    match read {
        Ok(set) => Some((file, set)),
        Err(text) => {
            complain(&text);
            None
        }
    }
}

fn as_text(suites: &[Suite<'_>]) -> String {
    let paint = Paint::stdout();
    let mut text = String::new();
    // Writing to a String cannot fail.
    for suite in suites {
        let on = if suite.policy == suite.file { String::new() } else { format!(" on {}", suite.policy) };
        if suite.results.is_empty() {
            let _ = writeln!(text, "{}{on}: no tests", suite.file);
            continue;
        }
        let _ = writeln!(text, "{}{on}:", suite.file);
        for result in &suite.results {
            let verdict = if result.failure.is_some() { paint.red("FAIL") } else { paint.green("ok  ") };
            let (line, subject, request) = (result.at.line, &result.subject, &result.request);
            let _ = writeln!(text, "  {verdict} line {line}: {request} as {subject}: {}", result.found);
            text += &failure_text(result);
        }
    }
    let ran = suites.iter().map(|suite| suite.results.len()).sum::<usize>();
    let failed = suites.iter().map(Suite::failed).sum::<usize>();
    let verdict = match (ran, failed) {
        (0, _) => "nothing was tested".to_owned(),
        (_, 0) => paint.green(&format!("{} passed", count(ran, "test"))),
        _ => paint.red(&format!("{failed} of {} failed", count(ran, "test"))),
    };
    text + &verdict + "\n"
}

/// What is not as the test says, and the trace of the decision.
pub(super) fn failure_text(result: &TestResult<'_>) -> String {
    let Some(failure) = &result.failure else { return String::new() };
    let mut text = format!("       {failure}\n");
    match &result.explanation {
        Some((id, explanation)) => {
            let trace = trace(explanation);
            if result.subject == "any" && !trace.is_empty() {
                let _ = writeln!(text, "       for example for {}:", id.as_str());
            }
            for line in trace.lines().filter(|line| !line.is_empty()) {
                let _ = writeln!(text, "         {line}");
            }
        }
        None => text += "       no identity that the file names shows it\n",
    }
    text
}

fn as_json(suites: &[Suite<'_>]) -> Value {
    let rows = suites.iter().map(|suite| {
        let results = suite.results.iter().map(|result| {
            json!({
                "line": result.at.line,
                "column": result.at.column,
                "as": result.subject,
                "request": result.request,
                "expect": result.expect.as_str(),
                "found": result.found,
                "passed": result.failure.is_none(),
                "failure": result.failure,
                "trace": result.explanation.as_ref().map(|(id, explanation)| json!({
                    "as": id.as_str(),
                    "lines": trace(explanation).lines().filter(|line| !line.is_empty()).collect::<Vec<_>>(),
                })),
            })
        });
        json!({"policy": suite.policy, "file": suite.file, "tests": results.collect::<Vec<_>>()})
    });
    let ran = suites.iter().map(|suite| suite.results.len()).sum::<usize>();
    let failed = suites.iter().map(Suite::failed).sum::<usize>();
    json!({"run": ran, "failed": failed, "suites": rows.collect::<Vec<_>>()})
}
