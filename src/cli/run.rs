//! `phiward run` and `phiward check`.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

use super::fail;
use crate::config::{self, SidecarConfig};
use crate::logging::{self, LogFormat, LogLevel};
use crate::runtime::{Loaded, Sidecar, StartError};

/// Arguments of `phiward run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The sidecar's configuration; config/sidecar.yaml is a complete example.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    log: LogArgs,
}

/// How a long-running command logs, on stderr.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Form of the log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
    /// Least important level that is logged: error, warn, info, debug or trace.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: LevelFilter,
}

impl LogArgs {
    /// Starts the log.
    pub fn start(&self) -> LogLevel {
        logging::start(self.log_format, self.log_level)
    }
}

/// Arguments of `phiward check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The sidecar's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Runs a sidecar until SIGTERM, SIGINT or `POST /drain`.
pub fn run(args: RunArgs) -> ExitCode {
    let log = args.log.start();
    let loaded = match load(&args.config) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if cfg!(debug_assertions) {
        tracing::warn!("this is a debug build: it is many times slower than a release build");
    }
    match control_runtime() {
        Ok(runtime) => runtime.block_on(run_until_asked(loaded, log)),
        Err(error) => fail(&error, 1),
    }
}

async fn run_until_asked(loaded: Loaded, log: LogLevel) -> ExitCode {
    let sidecar = match Sidecar::start(loaded, Some(log)).await {
        Ok(sidecar) => sidecar,
        Err(error) => return fail(&error, error.exit_code()),
    };
    let addresses = sidecar.addresses();
    tracing::info!(
        inbound = ?addresses.inbound,
        outbound = ?addresses.outbound,
        probes = ?addresses.probes,
        admin = %addresses.admin,
        "ready"
    );
    tokio::select! {
        () = asked_to_stop() => (),
        () = sidecar.drain_asked() => (),
    }
    match sidecar.shut_down().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Loads a configuration and says what is in it, or everything that is wrong.
pub fn check(args: CheckArgs) -> ExitCode {
    let loaded = match load(&args.config) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let summary = loaded.summary();
    match args.format {
        Format::Text => println!("{}: good ({})", args.config.display(), summary.join("; ")),
        Format::Json => println!("{}", serde_json::json!({"valid": true, "loaded": summary})),
    }
    ExitCode::SUCCESS
}

fn load(path: &Path) -> Result<Loaded, ExitCode> {
    let config: SidecarConfig =
        config::load_sidecar(path).map_err(|error| fail(&error, error.exit_code()))?;
    Loaded::load(config).map_err(|error: StartError| fail(&error, error.exit_code()))
}

/// Returns when the process is asked to end: SIGTERM or Ctrl-C.
pub async fn asked_to_stop() {
    let (Ok(mut term), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await; // without handlers the signals end the process by themselves
    };
    tokio::select! {
        _ = term.recv() => (),
        _ = interrupt.recv() => (),
    }
}

/// The control side's runtime: one thread, as its work is small; blocking file work has two more.
///
/// # Errors
/// No file descriptors are left for its event queue.
pub fn control_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()
}
