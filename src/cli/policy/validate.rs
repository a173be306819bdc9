//! `phiward policy validate`: prints what is wrong with policy files.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::sarif;
use super::shared::{
    NO, Paint, UNREADABLE, clock, complain, count, parse_now, policy_json, read, render, say,
};
use crate::config::{self, IdentitySource};
use crate::identity::TrustDomain;
use crate::policy::{self, Checks, Finding, Report, Severity, UnixSeconds};

/// What `validate` is told.
#[derive(Debug, clap::Args)]
pub struct ValidateArgs {
    /// The policy files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: ValidateFormat,
    /// Count warnings as errors
    #[arg(long)]
    deny_lints: bool,
    /// A trust domain whose identities can reach the service; others in the files are told. May be repeated
    #[arg(long = "trust-domain", value_name = "TD", value_parser = parse_trust_domain)]
    trust_domains: Vec<TrustDomain>,
    /// A sidecar's configuration, whose own and federated trust domains are those that can reach the service
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The time to judge dates by, instead of now: 2026-12-31 or 2026-12-31T18:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_now)]
    now: Option<UnixSeconds>,
}

/// How findings are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ValidateFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value on one line.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
}

/// A file that was looked at.
pub(super) struct Checked {
    pub(super) file: String,
    pub(super) source: Vec<u8>,
    pub(super) report: Report,
    pub(super) valid: bool,
}

pub(super) fn validate(args: ValidateArgs) -> u8 {
    let mut known = args.trust_domains;
    if let Some(path) = &args.config {
        match config::load_sidecar(path) {
            Ok(sidecar) => {
                // An agent says only while it runs which other trust domains there are.
                if let IdentitySource::Files(paths, endpoints) = sidecar.identity.source {
                    known.push(sidecar.identity.trust_domain);
                    known.extend(paths.federation.into_iter().map(|(domain, _)| domain));
                    known.extend(endpoints.into_iter().map(|endpoint| endpoint.trust_domain));
                }
            }
            Err(error) => {
                complain(&format!("error: --config: {error}\n"));
                return UNREADABLE;
            }
        }
    }
    let checks = Checks {
        now: args.now.unwrap_or_else(clock),
        trust_domains: if known.is_empty() { None } else { Some(&known) },
    };
    let mut code = 0;
    let mut checked = Vec::new();
    let mut unreadable = Vec::new();
    for path in &args.files {
        match check(path, &checks, args.deny_lints) {
            Ok(file) => checked.push(file),
            Err(error) => {
                complain(&format!("error: {error}\n"));
                unreadable.push((path.display().to_string(), error));
            }
        }
    }
    if checked.iter().any(|file| !file.valid) {
        code = NO;
    }
    if !unreadable.is_empty() {
        code = UNREADABLE;
    }
    match args.format {
        ValidateFormat::Text => checked.iter().for_each(print),
        ValidateFormat::Json => say(&format!("{}\n", as_json(&checked, &unreadable))),
        ValidateFormat::Sarif => say(&format!("{:#}\n", sarif::log(&checked, &unreadable))),
    }
    code
}

fn check(path: &Path, checks: &Checks<'_>, deny_lints: bool) -> Result<Checked, String> {
    let source = read(path)?;
    let report = policy::validate_with(&source, checks);
    let valid = report.is_valid(deny_lints);
    Ok(Checked { file: path.display().to_string(), source, report, valid })
}

/// Findings to stderr, the verdict to stdout.
fn print(checked: &Checked) {
    let Checked { file, source, report, valid } = checked;
    complain(&render(file, source, &report.findings, Paint::stderr()));
    say(&summary(file, report, *valid));
}

fn summary(file: &str, report: &Report, valid: bool) -> String {
    let is_warning = |finding: &&Finding| finding.severity == Severity::Warning;
    let warnings = report.findings.iter().filter(is_warning).count();
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
    let paint = Paint::stdout();
    let verdict = if valid { paint.green("valid") } else { paint.red("invalid") };
    format!("{file}: {verdict}: {}\n", parts.join(", "))
}

fn as_json(checked: &[Checked], unreadable: &[(String, String)]) -> Value {
    let rows = checked.iter().map(|checked| {
        let report = &checked.report;
        json!({
            "file": checked.file,
            "valid": checked.valid,
            "policy": report.policy.as_ref().map(policy_json),
            "tests": {"run": report.tests_run, "failed": report.tests_failed},
            "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
        })
    });
    let failed = unreadable.iter().map(|(file, error)| json!({"file": file, "valid": false, "error": error}));
    json!({"files": rows.chain(failed).collect::<Vec<_>>()})
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "code": finding.code,
        "severity": finding.severity.as_str(),
        "line": finding.at.line,
        "column": finding.at.column,
        "message": finding.message,
        "hint": finding.hint,
    })
}

fn parse_trust_domain(text: &str) -> Result<TrustDomain, String> {
    let name = text.strip_prefix("spiffe://").unwrap_or(text);
    TrustDomain::parse(name).map_err(|error| error.to_string())
}
