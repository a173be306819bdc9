//! `phiward policy`: validate a policy file, explain what it decides.
#![allow(clippy::print_stdout)]

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::identity::SpiffeId;
use crate::policy::{self, Candidate, Explanation, Finding, Policy, Report, Request, UnixSeconds};
use crate::yaml::{self, Day};

/// Exit code: the answer is no.
const NO: u8 = 1;
/// Exit code: the question could not be asked.
const UNREADABLE: u8 = 2;

/// The policy file's tools.
#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Check policy files: errors, doubtful rules, and the tests they carry.
    ///
    /// Exits with 0 when every file is valid, 1 when one is not, 2 when one cannot be read.
    Validate {
        /// The policy files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// How to report.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Count warnings as errors.
        #[arg(long)]
        deny_lints: bool,
        /// The time to judge dates by, instead of now: 2026-12-31 or 2026-12-31T18:00:00Z.
        #[arg(long, value_name = "TIME", value_parser = parse_now)]
        now: Option<UnixSeconds>,
    },
    /// Say what a policy decides about one request, and why. The engine is the sidecar's own.
    ///
    /// Exits with 0 when the request is allowed, 1 when it is denied or rejected, 2 when the question cannot be answered.
    Explain {
        /// The policy file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Who asks.
        #[arg(long = "as", value_name = "SPIFFE_ID", value_parser = parse_id)]
        identity: SpiffeId,
        /// What is asked: a method and a target, such as 'GET /fhir/Patient/1', or 'TCP' and a listener.
        #[arg(long, value_name = "REQUEST", value_parser = parse_request)]
        request: Request,
        /// A header line of the request, such as 'host: records.clinic'. May be repeated.
        #[arg(long = "header", value_name = "HEADER")]
        headers: Vec<String>,
        /// The time to decide at, instead of now: 2026-12-31 or 2026-12-31T18:00:00Z.
        #[arg(long, value_name = "TIME", value_parser = parse_now)]
        now: Option<UnixSeconds>,
        /// How to report.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

/// How a report is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value on one line.
    Json,
}

/// Runs `command` and returns the exit code.
pub fn run(command: PolicyCommand) -> ExitCode {
    let code = match command {
        PolicyCommand::Validate { files, format, deny_lints, now } => {
            validate(&files, format, deny_lints, now.unwrap_or_else(clock))
        }
        PolicyCommand::Explain { file, identity, request, headers, now, format } => {
            explain(&file, &identity, request, &headers, now.unwrap_or_else(clock), format)
        }
    };
    ExitCode::from(code)
}

fn validate(files: &[PathBuf], format: Format, deny_lints: bool, now: UnixSeconds) -> u8 {
    let mut code = 0;
    let mut rows = Vec::new();
    for path in files {
        let file = path.display().to_string();
        let source = match read(path) {
            Ok(source) => source,
            Err(error) => {
                complain(&format!("error: {error}\n"));
                rows.push(json!({"file": file, "valid": false, "error": error}));
                code = UNREADABLE;
                continue;
            }
        };
        let report = policy::validate(&source, now);
        let valid = report.is_valid(deny_lints);
        if !valid {
            code = code.max(NO);
        }
        match format {
            Format::Text => {
                complain(&render(&file, &source, &report.findings));
                say(&summary(&file, &report, valid));
            }
            Format::Json => rows.push(report_json(&file, &report, valid)),
        }
    }
    if format == Format::Json {
        say(&format!("{}\n", json!({"files": rows})));
    }
    code
}

fn summary(file: &str, report: &Report, valid: bool) -> String {
    let warnings =
        report.findings.iter().filter(|finding| finding.severity == policy::Severity::Warning).count();
    let mut parts = Vec::new();
    if let Some(policy) = &report.policy {
        parts.push(format!("{} {}", policy.name(), policy.revision()));
        parts.push(match (report.tests_run, report.tests_failed) {
            (0, _) => "no tests".to_owned(),
            (run, 0) => format!("{} passed", count(run, "test")),
            (run, failed) => format!("{failed} of {} failed", count(run, "test")),
        });
    }
    let errors = report.findings.len() - warnings;
    if errors > 0 {
        parts.push(count(errors, "error"));
    }
    if warnings > 0 {
        parts.push(count(warnings, "warning"));
    }
    format!("{file}: {}: {}\n", if valid { "valid" } else { "invalid" }, parts.join(", "))
}

fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

fn report_json(file: &str, report: &Report, valid: bool) -> Value {
    let findings = report.findings.iter().map(|finding| {
        json!({
            "code": finding.code,
            "severity": finding.severity.as_str(),
            "line": finding.at.line,
            "column": finding.at.column,
            "message": finding.message,
            "hint": finding.hint,
        })
    });
    json!({
        "file": file,
        "valid": valid,
        "policy": report.policy.as_ref().map(policy_json),
        "tests": {"run": report.tests_run, "failed": report.tests_failed},
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn policy_json(policy: &Policy) -> Value {
    json!({"name": policy.name(), "revision": policy.revision(), "sha256": policy.sha256_hex()})
}

fn explain(
    path: &Path,
    id: &SpiffeId,
    mut request: Request,
    headers: &[String],
    now: UnixSeconds,
    format: Format,
) -> u8 {
    for header in headers {
        let (name, value) = header.split_once(':').unwrap_or((header, ""));
        if !request.add_header(name.trim(), value.trim()) {
            complain(&format!("error: --header '{header}' is not a header that a request can have\n"));
            return UNREADABLE;
        }
    }
    let source = match read(path) {
        Ok(source) => source,
        Err(error) => {
            complain(&format!("error: {error}\n"));
            return UNREADABLE;
        }
    };
    let file = path.display().to_string();
    let policy = match Policy::parse(&source) {
        Ok(policy) => policy,
        Err(findings) => {
            complain(&render(&file, &source, &findings));
            return UNREADABLE;
        }
    };
    let explanation = policy::explain(&policy, id, &request, now);
    match format {
        Format::Text => say(&explanation_text(&policy, id, &explanation)),
        Format::Json => say(&format!("{}\n", explanation_json(&policy, id, &explanation))),
    }
    if explanation.decision.is_allowed() { 0 } else { NO }
}

fn explanation_text(policy: &Policy, id: &SpiffeId, explanation: &Explanation<'_>) -> String {
    let decision = &explanation.decision;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}: {}", decision.outcome.as_str(), decision.reason.describe());
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<9} {value}");
    };
    row("reason", decision.reason.as_str());
    if let Some(rule) = decision.rule {
        row("rule", &decision.role.map_or(rule.to_owned(), |role| format!("{rule} of role {role}")));
    }
    if let Some(shadow) = decision.shadow {
        let rule = shadow.rule.map(|rule| format!(" by {rule}")).unwrap_or_default();
        row("shadow", &format!("{}{rule} ({})", shadow.outcome.as_str(), shadow.reason.as_str()));
    }
    if let Some(template) = decision.template {
        row("pattern", template.as_str());
    }
    if let (Some(host), Some(path)) = (&explanation.host, &explanation.path) {
        row("request", &format!("{path} on {host}"));
    }
    row("identity", id.as_str());
    row(
        "roles",
        &if explanation.roles.is_empty() { "none".to_owned() } else { explanation.roles.join(", ") },
    );
    row("policy", &format!("{} {}", policy.name(), policy.revision()));
    for (title, permissions) in [("deny rules", false), ("permissions", true)] {
        let rows: Vec<_> =
            explanation.candidates.iter().filter(|row| row.role.is_some() == permissions).collect();
        if !rows.is_empty() {
            let _ = writeln!(text, "\n{title}:");
        }
        for candidate in rows {
            let _ = writeln!(text, "  {}", candidate_text(candidate));
        }
    }
    text
}

fn candidate_text(candidate: &Candidate<'_>) -> String {
    let name = candidate.role.map_or(candidate.rule.to_owned(), |role| format!("{role}/{}", candidate.rule));
    let verdict = candidate.mismatch.as_deref().unwrap_or("matches");
    let note = candidate.note.map(|note| format!(" ({note})")).unwrap_or_default();
    let shadow = if candidate.shadow { " [in shadow]" } else { "" };
    format!("line {}: {name}: {verdict}{note}{shadow}", candidate.at.line)
}

fn explanation_json(policy: &Policy, id: &SpiffeId, explanation: &Explanation<'_>) -> Value {
    let decision = &explanation.decision;
    let candidates = explanation.candidates.iter().map(|candidate| {
        json!({
            "kind": if candidate.role.is_some() { "permission" } else { "deny" },
            "role": candidate.role,
            "rule": candidate.rule,
            "line": candidate.at.line,
            "column": candidate.at.column,
            "note": candidate.note,
            "shadow": candidate.shadow,
            "matches": candidate.mismatch.is_none(),
            "mismatch": candidate.mismatch,
        })
    });
    json!({
        "outcome": decision.outcome.as_str(),
        "reason": decision.reason.as_str(),
        "description": decision.reason.describe(),
        "rule": decision.rule,
        "role": decision.role,
        "shadow": decision.shadow.map(|shadow| {
            json!({"outcome": shadow.outcome.as_str(), "reason": shadow.reason.as_str(), "rule": shadow.rule})
        }),
        "template": decision.template.map(|template| template.as_str()),
        "host": explanation.host,
        "path": explanation.path,
        "identity": id.as_str(),
        "roles": explanation.roles,
        "policy": policy_json(policy),
        "candidates": candidates.collect::<Vec<_>>(),
    })
}

fn render(file: &str, source: &[u8], findings: &[Finding]) -> String {
    let source = String::from_utf8_lossy(source);
    findings
        .iter()
        .map(|finding| yaml::render_as(finding.severity.as_str(), file, &source, &finding.to_problem()))
        .collect()
}

/// Reads a policy file, but never more than a policy may have.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let explain = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let limit = yaml::MAX_BYTES as u64 + 1; // one more, so that the reader sees that it is too large
    let mut source = Vec::new();
    std::fs::File::open(path).map_err(explain)?.take(limit).read_to_end(&mut source).map_err(explain)?;
    Ok(source)
}

fn parse_id(text: &str) -> Result<SpiffeId, String> {
    SpiffeId::parse(text).map_err(|error| error.to_string())
}

fn parse_request(text: &str) -> Result<Request, String> {
    Request::parse(text)
        .ok_or_else(|| "write a method and a target, such as 'GET /fhir/Patient/1'".to_owned())
}

fn parse_now(text: &str) -> Result<UnixSeconds, String> {
    yaml::unix_seconds(text, Day::Start)
        .map(UnixSeconds)
        .ok_or_else(|| "write 2026-12-31 or 2026-12-31T18:00:00Z".to_owned())
}

fn clock() -> UnixSeconds {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixSeconds(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// To stdout. A reader that went away (`| head`) is no error.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// To stderr.
fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
