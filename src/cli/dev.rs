//! `phiward dev`.
#![allow(clippy::print_stdout)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing::level_filters::LevelFilter;

use super::fail;
use super::run::{Format, asked_to_stop, control_runtime};
use crate::dev::{self, DevError, Mesh, Step};
use crate::logging::{self, LogFormat};

/// Arguments of `phiward dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Folder of its keys, configurations, spools and store [default: a new one under the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Make the requests itself, verify the trail, print a result for each, and exit.
    #[arg(long)]
    check: bool,
    /// Write the CA, SVIDs, keys and configurations into --dir, and exit: for other ways to run the same mesh.
    #[arg(long, requires = "dir", conflicts_with = "check")]
    files_only: bool,
    /// Serve the records app alone, at this address.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["check", "dir", "files_only"])]
    app_only: Option<SocketAddr>,
    /// Form of the report of --check.
    #[arg(long, value_enum, default_value_t = Format::Text, requires = "check")]
    format: Format,
    /// Least important level that is logged.
    #[arg(long, default_value = "warn", value_name = "LEVEL")]
    log_level: LevelFilter,
}

/// Runs the mesh until Ctrl-C, or its check.
pub fn dev(args: DevArgs) -> ExitCode {
    drop(logging::start(LogFormat::Text, args.log_level));
    if let Some(addr) = args.app_only {
        return app_only(addr);
    }
    if let (true, Some(dir)) = (args.files_only, &args.dir) {
        return dev::write_files(dir).map_or_else(|error| fail(&error, 1), |()| ExitCode::SUCCESS);
    }
    let dir = match args.dir.clone().map_or_else(fresh_dir, Ok) {
        Ok(dir) => dir,
        Err(error) => return fail(&format!("no temporary folder: {error}; name one with --dir"), 2),
    };
    let outcome = match control_runtime() {
        Ok(runtime) => runtime.block_on(run(&args, &dir)),
        Err(error) => return fail(&error, 1),
    };
    outcome.unwrap_or_else(|error| fail(&error, 1))
}

fn app_only(addr: SocketAddr) -> ExitCode {
    let serving = async {
        tokio::select! {
            served = dev::serve_app(addr) => served,
            () = asked_to_stop() => Ok(()),
        }
    };
    let served = control_runtime().map(|runtime| runtime.block_on(serving));
    match served {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&error, 1),
        Err(error) => fail(&error, 1),
    }
}

async fn run(args: &DevArgs, dir: &std::path::Path) -> Result<ExitCode, DevError> {
    let mut mesh = Mesh::start(dir).await?;
    if args.check {
        let steps = dev::check(mesh).await?;
        report(&steps, args.format);
        return Ok(ExitCode::from(u8::from(!steps.iter().all(|step| step.passed))));
    }
    print_guide(dir);
    asked_to_stop().await;
    println!("\nstopping; the files stay in {}", dir.display());
    mesh.shut_down().await?;
    Ok(ExitCode::SUCCESS)
}

fn fresh_dir() -> std::io::Result<PathBuf> {
    Ok(tempfile::Builder::new().prefix("phiward-dev-").tempdir()?.keep())
}

fn report(steps: &[Step], format: Format) {
    match format {
        Format::Json => println!("{}", serde_json::json!({"steps": steps})),
        Format::Text => {
            for step in steps {
                println!("{} {:<46} {}", if step.passed { "ok  " } else { "FAIL" }, step.what, step.result);
            }
        }
    }
}

fn print_guide(dir: &std::path::Path) {
    let dir = dir.display();
    let phiward =
        std::env::current_exe().map_or_else(|_| "phiward".into(), |path| path.display().to_string());
    println!(
        "A mesh of web, billing and records is running on 127.0.0.1. Its files are in {dir}

An allow (200): web may read patients.
  curl -i -H 'Host: records.clinic' http://127.0.0.1:15001/fhir/Patient/1

A denial (403): billing may not.
  curl -i -H 'Host: records.clinic' http://127.0.0.1:15002/fhir/Patient/1

A rejection (400): a path that could mean two things is never repaired.
  curl -i --path-as-is -H 'Host: records.clinic' http://127.0.0.1:15001/fhir/Patient/1/../2

The audit trail of it, at the records sidecar and at the collector:
  {phiward} audit tail {dir}/records/audit
  {phiward} audit verify {dir}/collector/store

Who may do what is in {dir}/records/policy.yaml: change it while this runs, its tests too.
Admin endpoints: http://127.0.0.1:15000 (web), :15010 (records), :15020 (billing). Ctrl-C ends it."
    );
}
