//! `phiward audit`: prints what the audit trail's tools find. Holds no logic of its own.

#![allow(clippy::print_stdout)]

mod query;
mod report;
mod verify;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde_json::Value;

pub use query::{QueryArgs, QueryFormat};
pub use report::{AccountFormat, ReportArgs};
pub use verify::{ProveArgs, VerifyArgs};

use super::times::{When, clock, event_time, parse_when};
use super::{fail, progress, table};
use crate::audit::{self, Follower, Paint, SpoolKey};

/// The tools of the audit trail, and the keys that they may need.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// The key of an encrypted spool or store (encryption_key_file). Can be repeated, where it was replaced
    #[arg(long = "spool-key", value_name = "FILE", global = true)]
    spool_keys: Vec<PathBuf>,
    #[command(subcommand)]
    command: AuditCommand,
}

/// The tools of the audit trail. DIR is a sidecar's spool or a collector's store.
#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Check every record's hash and place, and name the first bad one of each epoch
    ///
    /// Needs no key and no network. Exit code 0: every record is as it was written; 1: something is wrong; 2: the folder
    /// cannot be read. What became of the records after the last checkpoint can only be seen by comparing with a checkpoint
    /// (--checkpoint) or a copy that was kept elsewhere.
    Verify(VerifyArgs),
    /// Prove one event: a file that shows it to be in the trail, without the others
    ///
    /// Prints JSON; `audit verify --proof FILE` checks it, with no more than the trust bundle.
    Prove(ProveArgs),
    /// Show the last events, one line each
    Tail {
        /// A spool's folder or a collector's store
        dir: PathBuf,
        /// Go on with new events as they come
        #[arg(long)]
        follow: bool,
        /// How many of the last events to show first
        #[arg(long, default_value_t = 20)]
        lines: usize,
    },
    /// Write every event to standard output, in chain order
    Export {
        /// A spool's folder or a collector's store
        dir: PathBuf,
        /// ndjson: as it was written; csv: a table; ocsf: for a SIEM
        #[arg(long, value_enum, default_value_t = ExportFormat::Ndjson)]
        format: ExportFormat,
        /// Only events from then on: 2h, 90d, 2026-11-20 or 2026-11-20T14:00:00Z
        #[arg(long, value_name = "TIME", value_parser = parse_when)]
        since: Option<When>,
        /// Only events before then, in the same forms
        #[arg(long, value_name = "TIME", value_parser = parse_when)]
        until: Option<When>,
    },
    /// Find requests and events: by who, what, when, outcome, patient, request or trace
    ///
    /// Every condition must hold. A request is one row: its decision and how it ended. Exit code 1: nothing was found.
    Query(Box<QueryArgs>),
    /// Make an index of a trail, or bring it up to date, so that `query` reads less
    ///
    /// It is the file index.sqlite in DIR, made of the trail alone: it can be deleted at any time. A collector keeps its own.
    Index {
        /// A collector's store, or a spool's folder
        dir: PathBuf,
        /// Throw the old one away first
        #[arg(long)]
        rebuild: bool,
    },
    /// Print a file of an encrypted spool or store as plain text: a batch of quarantine/, or evidence
    Decrypt {
        /// The file
        file: PathBuf,
    },
    /// An account of a time: who reached what, what was refused, which policies were in force, what became of the trail
    ///
    /// The trail is verified too. Exit code 0: it is as it was written; 1: it is not; 2: it cannot be read.
    Report(ReportArgs),
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How events are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// One event a line, byte for byte as in the trail.
    Ndjson,
    /// A row for each event, with a head (RFC 4180).
    Csv,
    /// One event a line, in the Open Cybersecurity Schema Framework.
    Ocsf,
}

/// How long `--follow` waits before it looks again.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Runs one command and says how it ended.
pub fn run(args: AuditArgs) -> ExitCode {
    for file in &args.spool_keys {
        if let Err(error) = SpoolKey::from_file(file) {
            return fail(&error, 2);
        }
    }
    match args.command {
        AuditCommand::Verify(args) => verify::verify(args),
        AuditCommand::Prove(args) => verify::prove(&args),
        AuditCommand::Tail { dir, follow, lines } => finish(&dir, tail(&dir, follow, lines)),
        AuditCommand::Export { dir, format, since, until } => {
            finish(&dir, export(&dir, format, since, until))
        }
        AuditCommand::Decrypt { file } => finish(&file, decrypt(&file)),
        AuditCommand::Index { dir, rebuild } => index(&dir, rebuild),
        AuditCommand::Query(args) => query::query(*args),
        AuditCommand::Report(args) => report::report(&args),
    }
}

fn tail(dir: &Path, follow: bool, lines: usize) -> io::Result<()> {
    let paint = if io::stdout().is_terminal() { Paint::Colour } else { Paint::Plain };
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut follower, mut new) = Follower::at_end(dir, lines)?;
    loop {
        for line in &new {
            writeln!(out, "{}", audit::summary(line, paint))?;
        }
        out.flush()?;
        if !follow {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
        new = follower.new_lines()?;
    }
}

fn decrypt(file: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    audit::lines_of(file, |line| {
        out.write_all(line)?;
        out.write_all(b"\n")
    })?;
    out.flush()
}

fn index(dir: &Path, rebuild: bool) -> ExitCode {
    let done = AtomicU64::new(0);
    let total = audit::bytes(dir).unwrap_or(0);
    let indexed = progress::while_working("indexing", total, &done, || audit::index(dir, rebuild, &done));
    match indexed {
        Ok(_) if total == 0 => fail(
            &format!(
                "{}: there is no audit trail here: name a spool's folder or a collector's store",
                dir.display()
            ),
            2,
        ),
        Ok(audit::Indexed { added, removed, known }) => {
            println!("{known} segments are indexed: {added} read now, {removed} gone");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, 2),
    }
}

fn export(dir: &Path, format: ExportFormat, since: Option<When>, until: Option<When>) -> io::Result<()> {
    let now = clock();
    let instant = |when: When| event_time(when.seconds(now));
    let (since, until) = (since.map(instant), until.map(instant));
    let mut out = BufWriter::with_capacity(256 * 1024, io::stdout().lock());
    if format == ExportFormat::Csv {
        out.write_all(table::csv(&[audit::table_head()]).as_bytes())?;
    }
    let all_as_written = format == ExportFormat::Ndjson && since.is_none() && until.is_none();
    audit::for_each(dir, |line| {
        // A damaged line is exported as it is, and as nothing else; `verify` tells of it.
        let event =
            if all_as_written { Value::Null } else { serde_json::from_slice(line).unwrap_or_default() };
        let time = event.get("time").and_then(Value::as_str);
        let in_time = |time: &str| {
            since.as_ref().is_none_or(|since| time >= since.as_str())
                && until.as_ref().is_none_or(|until| time < until.as_str())
        };
        if !time.is_none_or(in_time) {
            return Ok(());
        }
        match format {
            ExportFormat::Ndjson => out.write_all(line)?,
            _ if time.is_none() => return Ok(()),
            ExportFormat::Csv => return out.write_all(table::csv(&[audit::table_row(&event)]).as_bytes()),
            ExportFormat::Ocsf => out.write_all(audit::ocsf(&event).to_string().as_bytes())?,
        }
        out.write_all(b"\n")
    })?;
    out.flush()
}

/// Who reads a pipe may stop reading; that is no error.
fn finish(dir: &Path, outcome: io::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", dir.display());
            ExitCode::from(2)
        }
    }
}
