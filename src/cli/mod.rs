//! The commands: one file a family. They parse arguments, call the module that does the work, and print. No logic here.
//!
//! Exit codes everywhere: 0 done, allowed or valid; 1 the answer is no; 2 usage, or an input that cannot be read.

pub mod audit;
pub mod collect;
pub mod dev;
pub mod identity;
pub mod k8s;
pub mod policy;
mod progress;
pub mod run;
mod table;
mod times;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A per-pod access proxy for services that exchange protected health information: mTLS, SPIFFE identity, RBAC, and an
/// audit trail that shows when it was changed.
#[derive(Debug, Parser)]
#[command(name = "phiward", version = VERSION, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// With what an auditor asks of a binary.
const VERSION: &str = if cfg!(feature = "fips") {
    concat!(env!("CARGO_PKG_VERSION"), " (cryptography: the FIPS module of AWS-LC)")
} else {
    env!("CARGO_PKG_VERSION")
};

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sidecar.
    Run(run::RunArgs),
    /// Run a whole mesh on this machine, with nothing installed.
    Dev(dev::DevArgs),
    /// Load a configuration and all it names exactly as `run` would, and start nothing.
    Check(run::CheckArgs),
    /// Tools for the policy file.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Tools for the audit trail, on a spool or a collector's store.
    Audit(audit::AuditArgs),
    /// Run the embedded collector: receive, verify and store audit events.
    Collect(collect::CollectArgs),
    /// A development CA, SVIDs from it, and a look at any SVID.
    #[command(subcommand)]
    Identity(identity::IdentityCommand),
    /// Put a sidecar into pods, and lead their traffic through it.
    #[command(subcommand)]
    K8s(k8s::K8sCommand),
}

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Dev(args) => dev::dev(args),
        Command::Check(args) => run::check(args),
        Command::Policy(command) => policy::run(command),
        Command::Audit(args) => audit::run(args),
        Command::Collect(args) => collect::collect(args),
        Command::Identity(command) => identity::run(command),
        Command::K8s(command) => k8s::run(command),
    }
}

/// Prints an error as every command does, and gives its exit code.
#[allow(clippy::print_stderr)]
fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    let text = error.to_string();
    // A list of findings already says of each where it is and that it is an error.
    if text.contains(": error: ") {
        eprintln!("{text}")
    } else {
        eprintln!("error: {text}")
    }
    ExitCode::from(code)
}
