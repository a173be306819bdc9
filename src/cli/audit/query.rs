//! `phiward audit query`: who did what, when, with what outcome.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use super::finish;
use crate::audit::{self, Field, Paint, PseudonymKey, Query, Row};
use crate::cli::fail;
use crate::cli::table;
use crate::cli::times::{When, clock, event_time, parse_when};
use crate::identity::IdPattern;
use crate::yaml::closest;

/// What is asked. Every condition must hold.
#[derive(Debug, clap::Args)]
pub struct QueryArgs {
    /// A spool's folder or a collector's store
    dir: PathBuf,
    /// The SPIFFE ID of who asked, or a pattern such as 'spiffe://hospital.local/ns/clinic/**'
    #[arg(long, value_name = "ID", value_parser = |text: &str| IdPattern::parse(text).map_err(|error| error.to_string()))]
    identity: Option<IdPattern>,
    /// A path parameter, such as id=123 (with --key-file), or its pseudonym, such as id=k1:9c2e...
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse_param)]
    params: Vec<(String, String)>,
    /// The key that the pseudonyms were made with: audit.key_file of the sidecars
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// allow, deny, reject or error
    #[arg(long, value_name = "OUTCOME", value_parser = parse_outcome)]
    outcome: Option<String>,
    /// The reason of the decision, such as no_allow_rule
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// The permission or deny rule that decided
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// The role that the permission belongs to
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
    /// The method, such as GET
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// The path as the policy writes it, such as '/fhir/Patient/{id}'
    #[arg(long, value_name = "PATTERN")]
    template: Option<String>,
    /// The host that was asked for
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The service whose sidecar wrote the event
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// The namespace of that service
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// The status of the answer: 404, 4xx or 500-599
    #[arg(long, value_name = "STATUS", value_parser = parse_status)]
    status: Option<(u16, u16)>,
    /// The id of the request, as the app and a refused client got it
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// The trace id
    #[arg(long, value_name = "ID")]
    trace: Option<String>,
    /// The id of one event
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The type of event, such as conn.rejected
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    kind: Option<String>,
    /// From when on: 2h, 90d, 2026-11-20 or 2026-11-20T14:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_when)]
    since: Option<When>,
    /// Until when, in the same forms
    #[arg(long, value_name = "TIME", value_parser = parse_when)]
    until: Option<When>,
    /// Show the newest so many; 0 shows all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// The newest first
    #[arg(long)]
    newest_first: bool,
    /// text: a line for each request; json: the events as they are in the trail, one a line; csv: a table
    #[arg(long, value_enum, default_value_t = QueryFormat::Text)]
    format: QueryFormat,
}

/// How what was found is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum QueryFormat {
    /// For people.
    Text,
    /// For programs: the events, one a line.
    Json,
    /// For spreadsheets (RFC 4180): a row for each request.
    Csv,
}

/// Runs the query. Exit code 1 when nothing was found.
pub(super) fn query(args: QueryArgs) -> ExitCode {
    let query = match args.query() {
        Ok(query) => query,
        Err(error) => return fail(&error, 2),
    };
    let mut answer = match audit::query(&args.dir, &query) {
        Ok(answer) => answer,
        Err(error) => return finish(&args.dir, Err(error)),
    };
    let found = !answer.rows.is_empty();
    if args.newest_first {
        answer.rows.reverse();
    }
    if let Err(error) = write(&answer.rows, args.format)
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return finish(&args.dir, Err(error));
    }
    if let Some(problem) = &answer.index_problem {
        eprintln!("warning: the index was not used: {problem}");
    }
    if answer.left_out > 0 {
        eprintln!("{} older ones were found too: --limit 0 shows all", answer.left_out);
    }
    if found { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

impl QueryArgs {
    fn query(&self) -> Result<Query, String> {
        let texts = [
            (Field::Outcome, &self.outcome),
            (Field::Reason, &self.reason),
            (Field::Rule, &self.rule),
            (Field::Role, &self.role),
            (Field::Method, &self.method),
            (Field::Template, &self.template),
            (Field::Host, &self.host),
            (Field::Service, &self.service),
            (Field::Namespace, &self.namespace),
            (Field::RequestId, &self.request),
            (Field::TraceId, &self.trace),
            (Field::Id, &self.id),
            (Field::Type, &self.kind),
        ];
        let now = clock();
        let instant = |when: &When| event_time(when.seconds(now));
        Ok(Query {
            texts: texts.into_iter().filter_map(|(field, text)| Some((field, text.clone()?))).collect(),
            identity: self.identity.clone(),
            params: self.pseudonyms()?,
            status: self.status,
            from: self.since.as_ref().map(instant),
            until: self.until.as_ref().map(instant),
            limit: (self.limit > 0).then_some(self.limit),
        })
    }

    /// The parameters as the trail has them.
    fn pseudonyms(&self) -> Result<Vec<(String, String)>, String> {
        let key = self.key_file.as_ref().map(|path| PseudonymKey::from_file(path));
        let key = key.transpose().map_err(|error| error.to_string())?;
        let pseudonym = |(name, value): &(String, String)| match &key {
            Some(key) => Ok((name.clone(), key.pseudonym(value.as_bytes()).to_string())),
            None if value.starts_with("k1:") => Ok((name.clone(), value.clone())),
            None => Err(format!(
                "the trail holds no identifiers but their pseudonyms: to look for --param {name}=..., give --key-file, the key of the sidecars"
            )),
        };
        self.params.iter().map(pseudonym).collect()
    }
}

fn write(rows: &[Row], format: QueryFormat) -> io::Result<()> {
    let paint = if io::stdout().is_terminal() { Paint::Colour } else { Paint::Plain };
    let mut out = BufWriter::new(io::stdout().lock());
    if format == QueryFormat::Csv {
        out.write_all(table::csv(&[audit::table_head()]).as_bytes())?;
    }
    for row in rows {
        match format {
            QueryFormat::Text => writeln!(out, "{}", audit::request_summary(row, paint))?,
            QueryFormat::Json => {
                for line in [Some(&row.event), row.completion.as_ref()].into_iter().flatten() {
                    out.write_all(line)?;
                    out.write_all(b"\n")?;
                }
            }
            QueryFormat::Csv => out.write_all(table::csv(&[audit::table_row(&joined(row))]).as_bytes())?,
        }
    }
    out.flush()
}

/// The decision with the response of its completion.
fn joined(row: &Row) -> Value {
    let read = |line: &[u8]| serde_json::from_slice::<Value>(line).unwrap_or_default();
    let mut event = read(&row.event);
    if let Some(response) = row.completion.as_deref().and_then(|line| read(line).get("response").cloned()) {
        event["response"] = response;
    }
    event
}

fn parse_type(text: &str) -> Result<String, String> {
    one_of(text, &audit::EVENT_TYPES)
}

fn parse_outcome(text: &str) -> Result<String, String> {
    one_of(text, &["allow", "deny", "reject", "error"])
}

/// A word that no event has would find nothing, which looks like an answer.
fn one_of(text: &str, known: &[&str]) -> Result<String, String> {
    if known.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(closest(text, known.iter().copied())
        .map_or_else(|| format!("there are {}", known.join(", ")), |near| format!("did you mean {near}?")))
}

fn parse_param(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, value)| !name.is_empty() && !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "write NAME=VALUE, such as id=123".to_owned())
}

fn parse_status(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|status| (100..=999).contains(status));
    let range = match (text.strip_suffix("xx"), text.split_once('-')) {
        (Some(class), _) => class
            .parse::<u16>()
            .ok()
            .filter(|class| (1..=9).contains(class))
            .map(|class| (class * 100, class * 100 + 99)),
        (None, Some((first, last))) => number(first).zip(number(last)).filter(|(first, last)| first <= last),
        (None, None) => number(text).map(|status| (status, status)),
    };
    range.ok_or_else(|| "write 404, 4xx or 500-599".to_owned())
}
