//! `phiward policy matrix`: prints who may do what, for an access review.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::shared::{Paint, UNREADABLE, clock, complain, load, parse_now, policy_json, say, time};
use crate::audit;
use crate::cli::progress::Progress;
use crate::cli::table;
use crate::cli::times::{When, parse_when};
use crate::identity::IdPattern;
use crate::policy::matrix::{Row, State, matrix as rows_of};
use crate::policy::usage::Usage;
use crate::policy::{Policy, UnixSeconds};

/// What `matrix` is told.
#[derive(Debug, clap::Args)]
pub struct MatrixArgs {
    /// The policy file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: MatrixFormat,
    /// An audit trail (a spool or a collector's store), to mark what was never used
    #[arg(long, value_name = "DIR")]
    used_by: Option<PathBuf>,
    /// How far to look back in the trail: 90d, 12h or 4w, or a date
    #[arg(long, value_name = "SPAN", requires = "used_by", value_parser = parse_when)]
    since: Option<When>,
    /// Count only events of this service: a collector's store has those of many
    #[arg(long, value_name = "NAME", requires = "used_by")]
    service: Option<String>,
    /// The time to judge dates by, instead of now: 2026-12-31 or 2026-12-31T18:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_now)]
    now: Option<UnixSeconds>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum MatrixFormat {
    /// For people.
    #[default]
    Text,
    /// For spreadsheets (RFC 4180).
    Csv,
    /// A table, for a ticket or a repository.
    Markdown,
    /// For programs: one JSON value on one line.
    Json,
}

pub(super) fn matrix(args: MatrixArgs) -> u8 {
    let Some((_, policy)) = load(&args.file) else { return UNREADABLE };
    let now = args.now.unwrap_or_else(clock);
    let since = args.since.map(|since| since.seconds(now));
    let usage = match &args.used_by {
        None => None,
        Some(dir) => match usage(dir, since, args.service) {
            Ok(usage) => Some(usage),
            Err(error) => {
                complain(&format!("error: {error}\n"));
                return UNREADABLE;
            }
        },
    };
    let rows = rows_of(&policy, now, usage.as_ref());
    match args.format {
        MatrixFormat::Text => say(&as_text(&policy, &rows)),
        MatrixFormat::Csv => say(&table::csv(&cells(&rows))),
        MatrixFormat::Markdown => say(&format!(
            "# Access to {}, revision {}, as of {}\n\n{}",
            policy.name(),
            policy.revision(),
            time(now),
            table::markdown(&cells(&rows))
        )),
        MatrixFormat::Json => say(&format!("{}\n", as_json(&policy, now, since, &rows))),
    }
    0
}

/// Counts what the trail in `dir` tells, and says on stderr what to think of it.
fn usage(dir: &Path, since: Option<UnixSeconds>, service: Option<String>) -> Result<Usage, String> {
    let report = audit::verify(dir).map_err(|error| error.to_string())?;
    if let Some(finding) = report.findings.first() {
        let place = format!("{}:{}", finding.file.display(), finding.line);
        complain(&format!(
            "warning: the audit trail is not as it was written, so use may be wrong: {place}: {}: {}\n",
            finding.kind.as_str(),
            finding.detail
        ));
    }
    let asked = service.is_some();
    let mut usage = Usage::since(since.map(time)).of_service(service);
    let unreadable = |error| format!("{}: {error}", dir.display());
    let mut progress = Progress::of("counting what was used", audit::bytes(dir).map_err(unreadable)?);
    audit::for_each(dir, |line| {
        usage.add(line);
        progress.advance(line.len() + 1);
        Ok(())
    })
    .map_err(unreadable)?;
    drop(progress);
    if let (Some(since), Some(first)) = (since.map(time), usage.first())
        && since.as_str() < first
    {
        complain(&format!("warning: the trail begins at {first}: what was used before is not known\n"));
    }
    let services: Vec<_> = usage.services().collect();
    if services.len() > 1 && !asked {
        let services = services.join(", ");
        complain(&format!("warning: events of several services were counted ({services}): use --service\n"));
    }
    Ok(usage)
}

const HEAD: [&str; 14] = [
    "effect",
    "identity",
    "role",
    "rule",
    "methods",
    "paths",
    "hosts",
    "listeners",
    "conditions",
    "from",
    "until",
    "state",
    "used",
    "last used",
];

fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let head = HEAD.iter().map(|name| (*name).to_owned()).collect();
    let body = rows.iter().map(|row| {
        let date = |date: Option<UnixSeconds>| date.map(time).unwrap_or_default();
        let used = row.used.as_ref();
        vec![
            if row.role.is_some() { "allow" } else { "deny" }.to_owned(),
            identity(row).to_owned(),
            row.role.clone().unwrap_or_default(),
            row.rule.clone(),
            row.methods.join(" "),
            row.paths.join(" "),
            row.hosts.join(" "),
            row.listeners.join(" "),
            row.conditions.join("; "),
            date(row.from),
            date(row.until),
            state(row),
            used.map(|used| used.count.to_string()).unwrap_or_default(),
            used.and_then(|used| used.last.clone()).unwrap_or_default(),
        ]
    });
    std::iter::once(head).chain(body).collect()
}

fn identity(row: &Row) -> &str {
    match (&row.identity, &row.role) {
        (Some(pattern), _) => pattern.as_str(),
        (None, Some(_)) => "nobody",
        (None, None) => "everyone",
    }
}

fn state(row: &Row) -> String {
    match (&row.state, row.shadow) {
        (State::InForce, true) => "in shadow".to_owned(),
        (state, true) => format!("{}, in shadow", state.describe()),
        (state, false) => state.describe(),
    }
}

fn as_text(policy: &Policy, rows: &[Row]) -> String {
    let paint = Paint::stdout();
    let mut text = format!("{} {}\n", policy.name(), policy.revision());
    let mut groups: Vec<(String, Vec<Vec<String>>)> = Vec::new();
    for row in rows {
        let title = match row.role {
            Some(_) => identity(row).to_owned(),
            None => "deny rules".to_owned(),
        };
        if groups.last().is_none_or(|(last, _)| *last != title) {
            groups.push((title, Vec::new()));
        }
        if let Some((_, lines)) = groups.last_mut() {
            lines.push(line(row, paint));
        }
    }
    for (title, lines) in groups {
        text += &format!("\n{}\n{}", paint.bold(&title), table::aligned(&lines));
    }
    text + &summary(rows)
}

fn line(row: &Row, paint: Paint) -> Vec<String> {
    let name = match &row.role {
        Some(role) => format!("{role}/{}", row.rule),
        None => row.rule.clone(),
    };
    let what = match row.listeners.as_slice() {
        [] => row.paths.join(", "),
        listeners => format!("TCP {}", listeners.join(", ")),
    };
    let what = if what.is_empty() { "every path".to_owned() } else { what };
    let mut notes = row.conditions.clone();
    if !row.hosts.is_empty() {
        notes.insert(0, format!("on {}", row.hosts.join(", ")));
    }
    if row.role.is_none()
        && let Some(pattern) = &row.identity
    {
        notes.insert(0, format!("for {}", IdPattern::as_str(pattern)));
    }
    notes.extend(row.from.map(|from| format!("from {}", time(from))));
    notes.extend(row.until.map(|until| format!("until {}", time(until))));
    notes.extend(row.note.clone());
    if state(row) != "in force" {
        notes.push(paint.yellow(&state(row)));
    }
    if let Some(used) = &row.used {
        notes.push(match &used.last {
            Some(last) => format!("used {} times, last {last}", used.count),
            None => paint.yellow("never used"),
        });
    }
    let methods = if row.methods.len() == 8 { "any method".to_owned() } else { row.methods.join(" ") };
    vec![name, methods, what, notes.join("; ")]
}

fn summary(rows: &[Row]) -> String {
    let unused = rows.iter().filter(|row| row.is_unused()).count();
    let looked = rows.iter().filter(|row| row.used.is_some()).count();
    if looked == 0 {
        String::new()
    } else {
        format!("\n{unused} of {looked} granted permissions were never used\n")
    }
}

fn as_json(policy: &Policy, now: UnixSeconds, since: Option<UnixSeconds>, rows: &[Row]) -> Value {
    let rows = rows.iter().map(|row| {
        let mut members: BTreeMap<&str, Value> = BTreeMap::from([
            ("effect", json!(if row.role.is_some() { "allow" } else { "deny" })),
            ("identity", json!(row.identity.as_ref().map(IdPattern::as_str))),
            ("role", json!(row.role)),
            ("rule", json!(row.rule)),
            ("line", json!(row.at.line)),
            ("methods", json!(row.methods)),
            ("paths", json!(row.paths)),
            ("hosts", json!(row.hosts)),
            ("listeners", json!(row.listeners)),
            ("conditions", json!(row.conditions)),
            ("from", json!(row.from.map(time))),
            ("until", json!(row.until.map(time))),
            ("shadow", json!(row.shadow)),
            ("note", json!(row.note)),
            ("state", json!(row.state.describe())),
        ]);
        if let Some(used) = &row.used {
            members.insert("used", json!({"count": used.count, "last": used.last}));
        }
        members
    });
    json!({
        "policy": policy_json(policy),
        "as_of": time(now),
        "used_since": since.map(time),
        "rows": rows.collect::<Vec<_>>(),
    })
}
