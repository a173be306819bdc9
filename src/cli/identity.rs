//! `phiward identity`: a CA for development, SVIDs from it, and a look at any SVID.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use rustls_pki_types::UnixTime;

use crate::identity::files::read_file;
use crate::identity::inspect::{Facts, Report, inspect};
use crate::identity::{Ca, CaError, IdentityError, PemFile, SpiffeId, TrustDomain};

/// The commands of `phiward identity`.
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// Make a CA for development and tests: ca.pem and ca.key
    ///
    /// The key lies in a plain file and nothing is ever revoked. In production, take identities from SPIRE.
    Ca(CaArgs),
    /// Issue an SVID from the development CA: svid.pem, svid.key and bundle.pem
    Issue(IssueArgs),
    /// Show the identity, chain, validity and key usage of SVIDs, and whether they are valid now
    ///
    /// Exit code 0: all are valid SVIDs now. 1: one is not. 2: a file cannot be read.
    Inspect(InspectArgs),
}

/// `phiward identity ca`.
#[derive(Debug, Args)]
pub struct CaArgs {
    /// The trust domain it issues for, such as hospital.local
    #[arg(long, value_name = "NAME", value_parser = |text: &str| TrustDomain::parse(text))]
    trust_domain: TrustDomain,
    /// Where to write ca.pem and ca.key
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// How long it is valid: a number and s, m, h or d
    #[arg(long, default_value = "30d", value_parser = parse_ttl)]
    ttl: Duration,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
}

/// `phiward identity issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// The directory of ca.pem and ca.key
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// The identity, such as spiffe://hospital.local/ns/clinic/sa/web
    #[arg(long, value_name = "SPIFFE_ID", value_parser = |text: &str| SpiffeId::parse(text))]
    id: SpiffeId,
    /// Where to write svid.pem, svid.key and bundle.pem
    #[arg(long)]
    dir: PathBuf,
    /// How long it is valid: a number and s, m, h or d; never longer than the CA
    #[arg(long, default_value = "1d", value_parser = parse_ttl)]
    ttl: Duration,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
}

/// `phiward identity inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// PEM files, each with the leaf first
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The CA certificates of their trust domain; without it the chain is not checked
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// How to print the report
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: a JSON array with one object a file.
    Json,
}

#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("{}: exists: choose another --dir, or replace it with --force", .0.display())]
    Exists(PathBuf),
    #[error("{}: cannot write it: {source}", .path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{}: is not text: expected a PEM file", .0.display())]
    NotText(PathBuf),
}

/// Runs the command as of the machine's clock and prints its result.
pub fn run(command: IdentityCommand) -> ExitCode {
    execute(command, UnixTime::now(), &mut std::io::stdout())
}

fn execute(command: IdentityCommand, now: UnixTime, out: &mut impl Write) -> ExitCode {
    let result = match command {
        IdentityCommand::Ca(args) => make_ca(&args, now),
        IdentityCommand::Issue(args) => issue(&args, now),
        IdentityCommand::Inspect(args) => return show(&args, now, out),
    };
    match result {
        Ok(text) => {
            put(out, &text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("phiward identity: {error}");
            ExitCode::from(2)
        }
    }
}

/// Prints one line or block. A reader that went away (`| head`) is no error, and no panic as with `println!`.
fn put(out: &mut impl Write, text: &str) {
    let _ = writeln!(out, "{text}");
}

fn make_ca(args: &CaArgs, now: UnixTime) -> Result<String, CommandError> {
    let ca = Ca::new(&args.trust_domain, args.ttl, now)?;
    let key = ca.key_pem();
    write_all(&args.dir, args.force, &[("ca.key", &key, 0o600), ("ca.pem", ca.cert_pem(), 0o644)])?;
    let dir = args.dir.display();
    Ok(format!(
        "A development CA for {} is in {dir}: ca.pem and ca.key, valid for {}.\n\
         Next: phiward identity issue --ca {dir} --id spiffe://{}/ns/clinic/sa/web --dir web",
        args.trust_domain,
        span(args.ttl.as_secs().cast_signed()),
        args.trust_domain,
    ))
}

fn issue(args: &IssueArgs, now: UnixTime) -> Result<String, CommandError> {
    let ca = Ca::from_pem(&read_text(&args.ca.join("ca.pem"))?, &read_text(&args.ca.join("ca.key"))?)?;
    let svid = ca.issue(&args.id, args.ttl, now)?;
    let files = [
        ("svid.key", svid.key_pem.as_str(), 0o600),
        ("svid.pem", svid.cert_pem.as_str(), 0o644),
        ("bundle.pem", ca.cert_pem(), 0o644),
    ];
    write_all(&args.dir, args.force, &files)?;
    Ok(format!("{} is in {}: svid.pem, svid.key and bundle.pem.", args.id, args.dir.display()))
}

fn show(args: &InspectArgs, now: UnixTime, out: &mut impl Write) -> ExitCode {
    let mut reports = Vec::new();
    let mut unreadable = false;
    for path in &args.files {
        match inspect_file(path, args.bundle.as_deref(), now) {
            Ok(report) => reports.push(report),
            Err(error) => {
                eprintln!("phiward identity: {error}");
                unreadable = true;
            }
        }
    }
    match args.format {
        Format::Json => put(out, &serde_json::json!(reports).to_string()),
        Format::Text => {
            reports.iter().for_each(|report| put(out, &text_report(report, args.bundle.as_deref())))
        }
    }
    match (unreadable, reports.iter().all(|report| report.valid)) {
        (true, _) => ExitCode::from(2),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    }
}

fn inspect_file(path: &Path, bundle: Option<&Path>, now: UnixTime) -> Result<Report, IdentityError> {
    let name = path.display().to_string();
    let text = read_file(path)?;
    let bundle = bundle.map(|path| Ok((path.display().to_string(), read_file(path)?))).transpose()?;
    let bundle = bundle.as_ref().map(|(name, text)| PemFile { name, text });
    inspect(PemFile { name: &name, text: &text }, bundle, now)
}

fn text_report(report: &Report, bundle: Option<&Path>) -> String {
    let mut lines = vec![match &report.reason {
        None => format!("{}: a valid SVID", report.file),
        Some(reason) => format!("{}: NOT a valid SVID [{}]: {}", report.file, reason.code, reason.text),
    }];
    let mut field = |name: &str, value: &str| lines.push(format!("  {name:<12} {}", printable(value)));
    if let Some(id) = &report.spiffe_id {
        field("identity", id);
    }
    let leaf = report.certificates.first();
    if let Some(facts) = leaf.and_then(|leaf| leaf.facts.as_ref()) {
        leaf_fields(facts, report, &mut field);
    }
    if let Some(leaf) = leaf {
        field("fingerprint", &format!("sha256:{}", leaf.sha256));
    }
    for above in report.certificates.iter().skip(1) {
        let facts = above.facts.as_ref();
        let text =
            facts.map_or("not well-formed".to_owned(), |f| format!("{}, until {}", f.subject, f.not_after));
        field("intermediate", &text);
    }
    match bundle {
        Some(path) => field("chain", &format!("checked against {}", path.display())),
        None => field("chain", "not checked: give --bundle FILE"),
    }
    lines.join("\n")
}

fn leaf_fields(facts: &Facts, report: &Report, field: &mut impl FnMut(&str, &str)) {
    if report.spiffe_id.is_none() && !facts.uri_sans.is_empty() {
        field("URI SANs", &facts.uri_sans.join(", "));
    }
    let left = match report.expires_in_seconds {
        Some(left) if left >= 0 => format!(" (expires in {})", span(left)),
        Some(left) => format!(" (expired {} ago)", span(left.saturating_neg())),
        None => String::new(),
    };
    field("validity", &format!("{} to {}{left}", facts.not_before, facts.not_after));
    field("issuer", &facts.issuer);
    field("serial", &facts.serial);
    field("key", &facts.key);
    field(
        "key usage",
        &if facts.key_usage.is_empty() { "absent".to_owned() } else { facts.key_usage.join(", ") },
    );
    field(
        "extended",
        &facts.extended_key_usage.as_ref().map_or("absent".to_owned(), |usage| usage.join(", ")),
    );
}

/// A certificate's text is the issuer's: control characters in it must not reach a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Seconds as the two largest units, such as `23h` or `29d 23h`.
fn span(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, m) => format!("{m}m"),
        (0, h, 0) => format!("{h}h"),
        (0, h, m) => format!("{h}h {m}m"),
        (d, 0, _) => format!("{d}d"),
        (d, h, _) => format!("{d}d {h}h"),
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and a unit: 90s, 30m, 12h or 7d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number = &text[..text.len() - unit.len_utf8()];
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(wrong)
}

fn read_text(path: &Path) -> Result<String, CommandError> {
    String::from_utf8(read_file(path)?).map_err(|_| CommandError::NotText(path.to_owned()))
}

/// Writes each (name, content, mode) whole or not at all. Without `force`, nothing is written if any of them exists.
fn write_all(dir: &Path, force: bool, files: &[(&str, &str, u32)]) -> Result<(), CommandError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CommandError::Write { path, source }
    };
    if let Some((name, ..)) =
        files.iter().find(|(name, ..)| !force && dir.join(name).symlink_metadata().is_ok())
    {
        return Err(CommandError::Exists(dir.join(name)));
    }
    std::fs::create_dir_all(dir).map_err(failed(dir))?;
    for (name, content, mode) in files {
        let path = dir.join(name);
        let mut builder = tempfile::Builder::new();
        // The mode is the file's from its first moment, so that a key is never readable by others, not even briefly.
        let mut file = builder
            .prefix(".phiward-")
            .permissions(Permissions::from_mode(*mode))
            .tempfile_in(dir)
            .map_err(failed(&path))?;
        file.write_all(content.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed(&path))?;
        let kept = if force { file.persist(&path) } else { file.persist_noclobber(&path) };
        kept.map_err(|error| failed(&path)(error.error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::os::unix::fs::MetadataExt;
    use tempfile::TempDir;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: IdentityCommand,
    }

    /// Runs a command line, split at spaces, with DIR replaced by `dir`.
    fn phiward(dir: &TempDir, line: &str) -> ExitCode {
        output(dir, line).0
    }

    fn output(dir: &TempDir, line: &str) -> (ExitCode, String) {
        let words = line.split(' ').map(|word| word.replace("DIR", dir.path().to_str().unwrap()));
        let cli = Cli::try_parse_from(std::iter::once("identity".to_owned()).chain(words)).unwrap();
        let mut out = Vec::new();
        (execute(cli.command, UnixTime::now(), &mut out), String::from_utf8(out).unwrap())
    }

    fn is(code: ExitCode, number: u8) -> bool {
        format!("{code:?}") == format!("{:?}", ExitCode::from(number)) // ExitCode has no comparison
    }

    const MAKE_CA: &str = "ca --trust-domain hospital.local --dir DIR/ca";
    const ISSUE: &str = "issue --ca DIR/ca --id spiffe://hospital.local/ns/clinic/sa/web --dir DIR/web";

    /// If this fails, the way of the README from nothing to a valid SVID is broken.
    #[test]
    fn a_ca_an_svid_and_a_look_at_it() {
        let dir = TempDir::new().unwrap();
        assert!(is(phiward(&dir, MAKE_CA), 0));
        assert!(is(phiward(&dir, ISSUE), 0));
        assert!(is(phiward(&dir, "inspect DIR/web/svid.pem --bundle DIR/web/bundle.pem"), 0));
        let (code, json) = output(&dir, "inspect DIR/web/svid.pem --format json");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(is(code, 0) && json[0]["spiffe_id"] == "spiffe://hospital.local/ns/clinic/sa/web", "{json}");
        assert!(is(phiward(&dir, "inspect DIR/web/svid.pem DIR/ca/ca.pem"), 1), "a CA is no SVID");
        assert!(is(phiward(&dir, "inspect DIR/web/svid.pem DIR/none.pem"), 2));
        assert!(is(phiward(&dir, "inspect DIR/web/svid.key"), 2));
        for key in ["ca/ca.key", "web/svid.key"] {
            let mode = dir.path().join(key).metadata().unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    /// If this fails, a repeated command destroys a CA that others trust.
    #[test]
    fn nothing_is_replaced_without_force() {
        let dir = TempDir::new().unwrap();
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert!(is(phiward(&dir, MAKE_CA), 0) && is(phiward(&dir, ISSUE), 0));
        let before = (read("ca/ca.pem"), read("ca/ca.key"), read("web/svid.pem"));
        assert!(is(phiward(&dir, MAKE_CA), 2) && is(phiward(&dir, ISSUE), 2));
        assert_eq!((read("ca/ca.pem"), read("ca/ca.key"), read("web/svid.pem")), before);
        std::fs::remove_file(dir.path().join("ca/ca.key")).unwrap();
        assert!(is(phiward(&dir, MAKE_CA), 2), "one file of the pair is enough");
        assert!(!dir.path().join("ca/ca.key").exists());
        assert!(is(phiward(&dir, &format!("{MAKE_CA} --force")), 0));
        assert_ne!(read("ca/ca.pem"), before.0);
        assert!(is(phiward(&dir, &format!("{ISSUE} --force")), 0));
        assert!(is(phiward(&dir, "inspect DIR/web/svid.pem --bundle DIR/ca/ca.pem"), 0));
        assert_eq!(
            std::fs::read_dir(dir.path().join("web")).unwrap().count(),
            3,
            "no temporary file is left"
        );
    }

    /// If this fails, a mistyped command does something else than say so.
    #[test]
    fn wrong_usage_is_refused() {
        let dir = TempDir::new().unwrap();
        assert!(is(phiward(&dir, ISSUE), 2), "no CA yet");
        assert!(is(phiward(&dir, MAKE_CA), 0));
        assert!(is(phiward(&dir, "issue --ca DIR/ca --id spiffe://partner.example/web --dir DIR/web"), 2));
        assert!(!dir.path().join("web").exists());
        for line in [
            "ca --trust-domain Hospital",
            "ca --trust-domain a --ttl 1",
            "issue --ca x --id spiffe://a --dir y",
        ] {
            assert!(Cli::try_parse_from(["identity"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(parse_ttl(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "0s", "d", "-1d", "1w", "1.5h", "99999999999999999999d", "9999999999999999d"] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }

    /// If this fails, the report on an SVID misses what an operator looks for.
    #[test]
    fn the_text_report_says_who_until_when_and_why_not() {
        use crate::identity::testing::{Forge, NOW, at, pem, uri};
        let ca = Forge::new(NOW);
        let report = |certificate: &str, time| inspect(pem("svid.pem", certificate), None, at(time)).unwrap();
        let right = text_report(&report(&(ca.leaf(|_| {}).cert.pem() + &ca.cert.pem()), NOW), None);
        for part in [
            "svid.pem: a valid SVID\n",
            "  identity     spiffe://hospital.local/ns/clinic/sa/web\n",
            "  validity     2027-01-15T07:00:00Z to 2027-01-15T09:00:00Z (expires in 1h)\n",
            "  extended     clientAuth, serverAuth\n",
            "  intermediate CN=Test Root, until 2027-01-15T09:00:00Z\n",
            "  chain        not checked: give --bundle FILE",
        ] {
            assert!(right.contains(part), "{part:?} is missing in {right}");
        }
        let two = ca.leaf(|p| p.subject_alt_names.push(uri("spiffe://hospital.local/b"))).cert.pem();
        let wrong = text_report(&report(&two, NOW), None);
        assert!(wrong.starts_with("svid.pem: NOT a valid SVID [several_uri_sans]: "), "{wrong}");
        assert!(
            wrong.contains(
                "URI SANs     spiffe://hospital.local/ns/clinic/sa/web, spiffe://hospital.local/b\n"
            )
        );
        let late = text_report(&report(&ca.leaf(|_| {}).cert.pem(), NOW + 2 * 3_600), None);
        assert!(late.contains("(expired 1h ago)"), "{late}");
    }

    /// If this fails, a certificate can send escape sequences to the terminal of who inspects it.
    #[test]
    fn a_report_is_short_and_harmless() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        let spans = [
            (59, "59s"),
            (60, "1m"),
            (3_600, "1h"),
            (3_660, "1h 1m"),
            (86_400, "1d"),
            (2_588_400, "29d 23h"),
        ];
        for (seconds, text) in spans {
            assert_eq!(span(seconds), text);
        }
    }
}
