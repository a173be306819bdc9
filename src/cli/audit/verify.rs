//! `phiward audit verify` and `prove`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{ReportFormat, finish};
use crate::audit::{self, Proof, Report, VerifyOptions};
use crate::cli::fail;
use crate::cli::progress::while_working;
use crate::identity::{Bundles, PemFile, TrustDomain, read_bundle};

/// What is verified, and compared with what.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// A spool's folder or a collector's store
    #[arg(required_unless_present = "proof")]
    dir: Option<PathBuf>,
    /// A proof made by `audit prove`, instead of a folder
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dir", "checkpoints"])]
    proof: Option<PathBuf>,
    /// The CA certificates of a trust domain: judge by them whose SVIDs vouch for the checkpoints. Can be repeated
    #[arg(long = "bundle", value_name = "TRUST_DOMAIN=FILE", value_parser = parse_bundle)]
    bundles: Vec<(TrustDomain, PathBuf)>,
    /// A checkpoint that was kept elsewhere: the trail must still have what it signs. Can be repeated
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// What checks the receipts of a collector: the file receipt.pub of its store. Can be repeated
    #[arg(long = "collector-key", value_name = "FILE")]
    collectors: Vec<PathBuf>,
    /// How to report
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    format: ReportFormat,
}

/// Which event is proved.
#[derive(Debug, clap::Args)]
pub struct ProveArgs {
    /// A spool's folder or a collector's store
    dir: PathBuf,
    /// The event: its `id`
    #[arg(long, value_name = "EPOCH:SEQ")]
    id: String,
}

pub(super) fn verify(args: VerifyArgs) -> ExitCode {
    let options = match options(&args) {
        Ok(options) => options,
        Err(error) => return fail(&error, 2),
    };
    match (&args.proof, &args.dir) {
        (Some(file), _) => verify_proof(file, &options, args.format),
        (None, Some(dir)) => verify_dir(dir, &options, args.format),
        (None, None) => fail(&"name a folder, or --proof FILE", 2), // clap has seen to it
    }
}

pub(super) fn prove(args: &ProveArgs) -> ExitCode {
    match audit::prove(&args.dir, &args.id) {
        Ok(proof) => {
            let text = serde_json::to_string_pretty(&proof).map_err(io::Error::other);
            finish(&args.dir, text.and_then(|text| writeln!(io::stdout().lock(), "{text}")))
        }
        Err(error @ (audit::ProveError::Read { .. } | audit::ProveError::Id(_))) => fail(&error, 2),
        Err(error) => fail(&error, 1),
    }
}

fn verify_dir(dir: &Path, options: &VerifyOptions, format: ReportFormat) -> ExitCode {
    let bytes = audit::bytes(dir).unwrap_or(0); // a folder that cannot be read is told below
    let verifying = || audit::verify_with(dir, options);
    let report = match while_working("verifying", bytes, &options.done, verifying) {
        Ok(report) => report,
        Err(error) => return fail(&error, 2),
    };
    let text = match format {
        ReportFormat::Json => serde_json::to_string_pretty(&report).map_err(io::Error::other),
        ReportFormat::Text => Ok(as_text(dir, &report, options)),
    };
    let printed = text.and_then(|text| writeln!(io::stdout().lock(), "{}", text.trim_end()));
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => finish(dir, Err(error)),
        _ if report.intact => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}

fn verify_proof(file: &Path, options: &VerifyOptions, format: ReportFormat) -> ExitCode {
    let proof = read(file).and_then(|text| {
        serde_json::from_str::<Proof>(&text)
            .map_err(|error| format!("{}: this is no proof: {error}", file.display()))
    });
    let proof = match proof {
        Ok(proof) => proof,
        Err(error) => return fail(&error, 2),
    };
    let proven = match audit::check_proof(&proof, options.bundles.as_ref()) {
        Ok(proven) => proven,
        Err(why) => return fail(&format!("{}: the proof does not hold: {why}", file.display()), 1),
    };
    let text = match format {
        ReportFormat::Json => serde_json::json!({
            "proven": true, "origin": proven.origin, "size": proven.size, "writer": proven.writer,
            "writer_verified": proven.writer_verified,
        })
        .to_string(),
        ReportFormat::Text => {
            let writer = match (&proven.writer, proven.writer_verified) {
                (Some(writer), true) => format!("{writer}, whose SVID leads to the bundle"),
                (Some(writer), false) => format!("{writer}; give --bundle to judge its SVID"),
                (None, _) => "nobody vouches for the key".to_owned(),
            };
            let (size, origin) = (proven.size, &proven.origin);
            format!("the record is one of the first {size} of {origin}\nwriter: {writer}\n{}", proven.record)
        }
    };
    finish(file, writeln!(io::stdout().lock(), "{text}"))
}

fn options(args: &VerifyArgs) -> Result<VerifyOptions, String> {
    let mut bundles = (!args.bundles.is_empty()).then(Bundles::default);
    for (trust_domain, file) in &args.bundles {
        let text = read(file)?;
        let name = file.display().to_string();
        let bundle =
            read_bundle(PemFile { name: &name, text: text.as_bytes() }).map_err(|error| error.to_string())?;
        if !bundles.as_mut().is_some_and(|bundles| bundles.insert(trust_domain.clone(), bundle)) {
            return Err(format!("--bundle names {trust_domain} twice: put its certificates into one file"));
        }
    }
    let checkpoints = args.checkpoints.iter().map(|file| {
        read(file).and_then(|note| {
            audit::is_checkpoint(&note)
                .then_some(note)
                .ok_or_else(|| format!("{}: this is no checkpoint (a signed note)", file.display()))
        })
    });
    let collectors = args.collectors.iter().map(|file| {
        let key = read(file)?;
        audit::ReceiptVerifier::parse(key.trim())
            .ok_or_else(|| format!("{}: this is no collector's key (NAME+ID+KEY)", file.display()))
    });
    Ok(VerifyOptions {
        collectors: collectors.collect::<Result<_, _>>()?,
        bundles,
        checkpoints: checkpoints.collect::<Result<_, _>>()?,
        ..VerifyOptions::default()
    })
}

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

fn parse_bundle(text: &str) -> Result<(TrustDomain, PathBuf), String> {
    let (trust_domain, file) = text.split_once('=').ok_or("write hospital.local=bundle.pem")?;
    Ok((TrustDomain::parse(trust_domain).map_err(|error| error.to_string())?, file.into()))
}

fn as_text(dir: &Path, report: &Report, options: &VerifyOptions) -> String {
    let mut lines = Vec::new();
    for finding in &report.findings {
        let place = format!("{}:{}", finding.file.display(), finding.line);
        let record = match (&finding.epoch, finding.seq) {
            (Some(epoch), Some(seq)) => format!(" record {seq} of epoch {epoch}:"),
            (Some(epoch), None) => format!(" epoch {epoch}:"),
            _ => String::new(),
        };
        lines.push(format!("{place}: {}:{record} {}", finding.kind.as_str(), finding.detail));
    }
    for epoch in &report.epochs {
        let (first, last, events) = (epoch.first_seq, epoch.last_seq, epoch.events);
        let end = if epoch.closed { "closed" } else { "not closed" };
        let sealed = match (epoch.checkpoints, epoch.sealed) {
            (0, _) => "no checkpoint".to_owned(),
            (1, sealed) => format!("1 checkpoint, of {sealed} records"),
            (checkpoints, sealed) => format!("{checkpoints} checkpoints, the last one of {sealed} records"),
        };
        lines.push(format!(
            "epoch {}: records {first} to {last}, {events} events, {end}, {sealed}",
            epoch.epoch
        ));
    }
    for (kind, count) in &report.by_type {
        lines.push(format!("{count:>12} {kind}"));
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    if options.bundles.is_none() && report.epochs.iter().any(|epoch| epoch.checkpoints > 0) {
        lines.push(
            "note: checkpoints are signed by keys that SVIDs vouch for; give --bundle to judge the SVIDs"
                .to_owned(),
        );
    }
    let epochs = report.epochs.len();
    let epochs = if epochs == 1 { "1 epoch".to_owned() } else { format!("{epochs} epochs") };
    let events = report.events;
    let verdict =
        if report.intact { "every record is as it was written" } else { "THE CHAIN IS BROKEN, see above" };
    lines.push(format!("{}: {events} events in {epochs}: {verdict}", dir.display()));
    lines.join("\n")
}
