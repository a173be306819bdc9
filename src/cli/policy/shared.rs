//! What the policy commands share: reading a file, findings as text, and where output goes.

use std::io::{IsTerminal, Read, Write as _};
use std::path::Path;

use serde_json::{Value, json};

use crate::identity::SpiffeId;
use crate::policy::{Finding, Policy, Request, Severity};
use crate::yaml;

pub(super) use crate::cli::times::{clock, parse_now, time};

/// Exit code: the answer is no.
pub(super) const NO: u8 = 1;
/// Exit code: the question could not be asked.
pub(super) const UNREADABLE: u8 = 2;

/// How a report is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value on one line.
    Json,
}

/// Colours for a stream: none unless it is a terminal, and none when `NO_COLOR` is set (no-color.org).
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    pub(super) fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && wanted())
    }

    pub(super) fn stderr() -> Self {
        Self(std::io::stderr().is_terminal() && wanted())
    }

    /// `text` in red: what is wrong, or more than before.
    pub(super) fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    /// `text` in green: what is right, or less than before.
    pub(super) fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    /// `text` in yellow: what is worth a look.
    pub(super) fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    /// `text` in bold: a heading.
    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Each finding with its place, its code, the source underlined, and the hint.
pub(super) fn render(file: &str, source: &[u8], findings: &[Finding], paint: Paint) -> String {
    let source = String::from_utf8_lossy(source);
    let one = |finding: &Finding| {
        let severity = match finding.severity {
            Severity::Error => paint.red(finding.severity.as_str()),
            Severity::Warning => paint.yellow(finding.severity.as_str()),
        };
        let mut problem = finding.to_problem();
        problem.message = format!("{} [{}]", problem.message, finding.code);
        yaml::render_as(&severity, file, &source, &problem)
    };
    findings.iter().map(one).collect()
}

/// Reads and compiles a policy, or says on stderr why that cannot be done.
pub(super) fn load(path: &Path) -> Option<(Vec<u8>, Policy)> {
    let source = match read(path) {
        Ok(source) => source,
        Err(error) => {
            complain(&format!("error: {error}\n"));
            return None;
        }
    };
    match Policy::parse(&source) {
        Ok(policy) => Some((source, policy)),
        Err(findings) => {
            complain(&render(&path.display().to_string(), &source, &findings, Paint::stderr()));
            None
        }
    }
}

/// Reads a policy file, but never more than a policy may have.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let explain = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::IsADirectory => {
            format!(
                "{} is a folder: name its files, such as {}",
                path.display(),
                path.join("*.yaml").display()
            )
        }
        _ => format!("cannot read {}: {error}", path.display()),
    };
    let limit = yaml::MAX_BYTES as u64 + 1; // one more, so that the reader sees that it is too large
    let mut source = Vec::new();
    std::fs::File::open(path).map_err(explain)?.take(limit).read_to_end(&mut source).map_err(explain)?;
    Ok(source)
}

/// Which version of which policy a report is about.
pub(super) fn policy_json(policy: &Policy) -> Value {
    json!({"name": policy.name(), "revision": policy.revision(), "sha256": policy.sha256_hex()})
}

/// `1 test`, `2 tests`.
pub(super) fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

pub(super) fn parse_id(text: &str) -> Result<SpiffeId, String> {
    SpiffeId::parse(text).map_err(|error| error.to_string())
}

pub(super) fn parse_request(text: &str) -> Result<Request, String> {
    Request::parse(text)
        .ok_or_else(|| "write a method and a target, such as 'GET /fhir/Patient/1'".to_owned())
}

/// To stdout. A reader that went away (`| head`) is no error.
pub(super) fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// To stderr.
pub(super) fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
