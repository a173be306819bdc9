//! `phiward policy explain`: prints one decision and why it is so.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::shared::{
    Format, NO, UNREADABLE, clock, complain, load, parse_id, parse_now, parse_request, policy_json, say,
};
use crate::identity::SpiffeId;
use crate::policy::{self, Candidate, Explanation, Policy, Request, UnixSeconds};

/// What `explain` is told.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// The policy file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Who asks
    #[arg(long = "as", value_name = "SPIFFE_ID", value_parser = parse_id)]
    identity: SpiffeId,
    /// What is asked: a method and a target, such as 'GET /fhir/Patient/1', or 'TCP' and a listener
    #[arg(long, value_name = "REQUEST", value_parser = parse_request)]
    request: Request,
    /// A header line, such as 'host: records.clinic'. May be repeated
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The time to decide at, instead of now: 2026-12-31 or 2026-12-31T18:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_now)]
    now: Option<UnixSeconds>,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn explain(args: ExplainArgs) -> u8 {
    let ExplainArgs { file, identity: id, mut request, headers, now, format } = args;
    for header in headers {
        let (name, value) = header.split_once(':').unwrap_or((&header, ""));
        if !request.add_header(name.trim(), value.trim()) {
            complain(&format!("error: --header '{header}' is no header line: write it as 'name: value'\n"));
            return UNREADABLE;
        }
    }
    let Some((_, policy)) = load(&file) else { return UNREADABLE };
    let explanation = policy::explain(&policy, &id, &request, now.unwrap_or_else(clock));
    match format {
        Format::Text => say(&explanation_text(&policy, &id, &explanation)),
        Format::Json => say(&format!("{}\n", explanation_json(&policy, &id, &explanation))),
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
    let rules = trace(explanation);
    if rules.is_empty() { text } else { text + "\n" + &rules }
}

/// Why each rule decided or did not.
pub(super) fn trace(explanation: &Explanation<'_>) -> String {
    let mut text = String::new();
    for (title, permissions) in [("deny rules", false), ("permissions", true)] {
        let rows: Vec<_> =
            explanation.candidates.iter().filter(|row| row.role.is_some() == permissions).collect();
        if rows.is_empty() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}{title}:", if text.is_empty() { "" } else { "\n" });
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
        "shadow": decision.shadow.map(|shadow| json!({
            "outcome": shadow.outcome.as_str(), "reason": shadow.reason.as_str(), "rule": shadow.rule,
        })),
        "template": decision.template.map(|template| template.as_str()),
        "host": explanation.host,
        "path": explanation.path,
        "identity": id.as_str(),
        "roles": explanation.roles,
        "policy": policy_json(policy),
        "candidates": candidates.collect::<Vec<_>>(),
    })
}
