//! `phiward collect`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::fail;
use super::run::{LogArgs, asked_to_stop, control_runtime};
use crate::config::{self, CollectorConfig};
use crate::runtime::{BoundCollector, StartError};

/// Arguments of `phiward collect`.
#[derive(Debug, Args)]
pub struct CollectArgs {
    /// The collector's configuration; config/collector.yaml is a complete example.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    log: LogArgs,
}

/// Runs a collector until SIGTERM or SIGINT.
pub fn collect(args: CollectArgs) -> ExitCode {
    drop(args.log.start());
    let config = match config::load_collector(&args.config) {
        Ok(config) => config,
        Err(error) => return fail(&error, error.exit_code()),
    };
    let ran = match control_runtime() {
        Ok(runtime) => runtime.block_on(run(&config)),
        Err(error) => return fail(&error, 1),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.exit_code()),
    }
}

async fn run(config: &CollectorConfig) -> Result<(), StartError> {
    let collector = BoundCollector::bind(config).await?;
    tracing::info!(address = %collector.address(), admin = %collector.admin(), store = %config.store.display(), "collecting");
    collector.serve(asked_to_stop()).await
}
