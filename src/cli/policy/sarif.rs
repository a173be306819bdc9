//! Findings as a SARIF 2.1.0 log, which code scanning services and editors read.

use serde_json::{Value, json};

use super::validate::Checked;
use crate::policy::{CODES, Finding, Severity};
use crate::yaml;

/// One run over all files: the findings of those that could be read, a notification for each that could not.
pub(super) fn log(checked: &[Checked], unreadable: &[(String, String)]) -> Value {
    let rules = CODES.iter().map(|code| {
        json!({
            "id": code.name,
            "shortDescription": {"text": code.meaning},
            "defaultConfiguration": {"level": level(code.severity)},
        })
    });
    let results = checked.iter().flat_map(|file| file.report.findings.iter().map(|at| result(file, at)));
    let notifications = unreadable
        .iter()
        .map(|(file, error)| json!({"level": "error", "message": {"text": error}, "locations": [{"physicalLocation": {"artifactLocation": artifact(file)}}]}));
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "phiward",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules.collect::<Vec<_>>(),
            }},
            "columnKind": "unicodeCodePoints",
            "invocations": [{
                "executionSuccessful": unreadable.is_empty(),
                "toolExecutionNotifications": notifications.collect::<Vec<_>>(),
            }],
            "results": results.collect::<Vec<_>>(),
        }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn result(checked: &Checked, finding: &Finding) -> Value {
    let hint = finding.hint.as_ref().map(|hint| format!(" Hint: {hint}.")).unwrap_or_default();
    let rule = CODES.iter().position(|code| code.name == finding.code);
    json!({
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": level(finding.severity),
        "message": {"text": format!("{}.{hint}", finding.message)},
        "locations": [{"physicalLocation": {
            "artifactLocation": artifact(&checked.file),
            "region": region(&checked.source, finding),
        }}],
    })
}

fn region(source: &[u8], finding: &Finding) -> Value {
    let text = String::from_utf8_lossy(source);
    let line = usize::try_from(finding.at.line).unwrap_or(usize::MAX);
    let mut region = json!({"startLine": finding.at.line, "startColumn": finding.at.column});
    if let Some(line) = text.lines().nth(line.saturating_sub(1)) {
        let width = yaml::word_at(&text, finding.at).unwrap_or(1);
        // The column after the last one (SARIF 2.1.0, section 3.30.8).
        region["endColumn"] = json!(finding.at.column.saturating_add(width));
        region["snippet"] = json!({"text": line});
    }
    region
}

/// A path as a URI reference (RFC 3986): what would mean something else there is escaped.
fn artifact(file: &str) -> Value {
    use std::fmt::Write;
    let mut uri = if file.starts_with('/') { "file://".to_owned() } else { String::new() };
    for byte in file.trim_start_matches("./").bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
    json!({"uri": uri})
}
