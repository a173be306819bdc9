//! `phiward audit report`: an account of a time, for who reviews access.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::finish;
use crate::audit::{self, Access, Account, Report};
use crate::cli::fail;
use crate::cli::table;
use crate::cli::times::{When, clock, event_time, parse_when};

/// Of what, of when, in which form.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// A spool's folder or a collector's store
    dir: PathBuf,
    /// From when on: 2h, 90d, 2026-11-20 or 2026-11-20T14:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_when)]
    since: Option<When>,
    /// Until when, in the same forms
    #[arg(long, value_name = "TIME", value_parser = parse_when)]
    until: Option<When>,
    /// text and markdown: all of it; json: the same for programs; csv: the table of access alone
    #[arg(long, value_enum, default_value_t = AccountFormat::Text)]
    format: AccountFormat,
}

/// How an account is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AccountFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For a ticket or a wiki.
    Markdown,
    /// For spreadsheets (RFC 4180): a row for each kind of request.
    Csv,
}

/// Writes the report. Exit code 1 when the trail is not as it was written.
pub(super) fn report(args: &ReportArgs) -> ExitCode {
    let now = clock();
    let instant = |when: &When| event_time(when.seconds(now));
    let (since, until) = (args.since.as_ref().map(instant), args.until.as_ref().map(instant));
    let account = match audit::account(&args.dir, since.as_deref(), until.as_deref()) {
        Ok(account) => account,
        Err(error) => return finish(&args.dir, Err(error)),
    };
    let verified = match audit::verify(&args.dir) {
        Ok(verified) => verified,
        Err(error) => return fail(&error, 2),
    };
    let told = Told { since, until, account, verified };
    let text = match args.format {
        AccountFormat::Text => told.in_sections(|title| format!("{title}\n"), table::aligned),
        AccountFormat::Markdown => told.in_sections(|title| format!("## {title}\n\n"), table::markdown),
        AccountFormat::Json => told.json(),
        AccountFormat::Csv => table::csv(&told.access()),
    };
    let end = if args.format == AccountFormat::Csv { "" } else { "\n" };
    match write!(io::stdout().lock(), "{}{end}", text.trim_end_matches('\n')) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => finish(&args.dir, Err(error)),
        _ if told.verified.intact => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}

struct Told {
    since: Option<String>,
    until: Option<String>,
    account: Account,
    verified: Report,
}

type Rows = Vec<Vec<String>>;

impl Told {
    fn json(&self) -> String {
        json!({
            "since": self.since, "until": self.until, "intact": self.verified.intact,
            "findings": self.verified.findings, "account": self.account,
        })
        .to_string()
    }

    /// Sections that have nothing to tell are left out, but for those whose silence would be taken for an answer.
    fn in_sections(
        &self,
        title: impl Fn(&str) -> String,
        table: impl Fn(&[Vec<String>]) -> String,
    ) -> String {
        let sections = [
            ("Trail", self.trail()),
            ("Requests", self.outcomes()),
            ("Identities", self.identities()),
            ("Access and refusals", self.access()),
            ("Connections refused", self.connections()),
            ("Policies", self.policies()),
            ("What does not verify", self.findings()),
        ];
        let told = sections.iter().filter(|(_, rows)| rows.len() > 1);
        told.map(|(name, rows)| title(name) + &table(rows)).collect::<Vec<_>>().join("\n")
    }

    fn trail(&self) -> Rows {
        let facts = &self.account.trail;
        let or = |time: &Option<String>, open: &str| time.clone().unwrap_or_else(|| open.to_owned());
        let intact = if self.verified.intact { "every record is as it was written" } else { "NOT INTACT" };
        let gaps = format!(
            "{} ({} requests passed unrecorded, {} were refused)",
            facts.gaps, facts.gap_allowed, facts.gap_denied
        );
        let rows = [
            ("since", or(&self.since, "the beginning")),
            ("until", or(&self.until, "the end")),
            ("verified", intact.to_owned()),
            ("first event", or(&self.account.first, "none")),
            ("last event", or(&self.account.last, "none")),
            ("events", self.account.events.to_string()),
            ("starts, orderly ends", format!("{}, {}", facts.opened, facts.closed)),
            ("signed checkpoints", facts.checkpoints.to_string()),
            ("gaps", gaps),
            ("set aside by receivers", facts.quarantines.to_string()),
            ("identities lost", facts.identities_lost.to_string()),
            ("allowed, end not seen", facts.without_end.to_string()),
        ];
        let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
        head(&["what", "is"]).chain(rows).collect()
    }

    fn outcomes(&self) -> Rows {
        let rows = self.account.outcomes.iter().map(|(outcome, n)| vec![outcome.clone(), n.to_string()]);
        head(&["outcome", "requests"]).chain(rows).collect()
    }

    fn identities(&self) -> Rows {
        let rows = self.account.identities.iter().map(|(id, caller)| {
            let new = if caller.is_new && self.since.is_some() { "yes" } else { "" };
            let numbers = [caller.allowed, caller.refused, caller.records].map(|n| n.to_string());
            [vec![id.clone()], numbers.to_vec(), vec![new.to_owned()]].concat()
        });
        head(&["identity", "allowed", "refused", "records", "new"]).chain(rows).collect()
    }

    fn access(&self) -> Rows {
        let names = [
            "service", "identity", "outcome", "reason", "role", "rule", "method", "template", "requests",
            "records", "first", "last",
        ];
        let rows = self.account.access.iter().map(|Access { kind, requests, records, first, last }| {
            let texts = [
                &kind.service,
                &kind.identity,
                &kind.outcome,
                &kind.reason,
                &kind.role,
                &kind.rule,
                &kind.method,
                &kind.template,
            ];
            let numbers = vec![requests.to_string(), records.to_string(), first.clone(), last.clone()];
            texts.into_iter().cloned().chain(numbers).collect()
        });
        head(&names).chain(rows).collect()
    }

    fn connections(&self) -> Rows {
        let rows = self.account.connections_refused.iter().map(|(why, n)| vec![why.clone(), n.to_string()]);
        head(&["reason", "connections"]).chain(rows).collect()
    }

    fn policies(&self) -> Rows {
        let rows = self.account.policies.iter().map(|change| {
            [&change.time, &change.service, &change.event, &change.revision, &change.sha256]
                .map(Clone::clone)
                .to_vec()
        });
        head(&["time", "service", "event", "revision", "sha256"]).chain(rows).collect()
    }

    fn findings(&self) -> Rows {
        let rows = self.verified.findings.iter().map(|finding| {
            let place = format!("{}:{}", finding.file.display(), finding.line);
            vec![place, finding.kind.as_str().to_owned(), finding.detail.clone()]
        });
        head(&["where", "kind", "what"]).chain(rows).collect()
    }
}

fn head(names: &[&str]) -> impl Iterator<Item = Vec<String>> {
    std::iter::once(names.iter().map(|name| (*name).to_owned()).collect())
}
