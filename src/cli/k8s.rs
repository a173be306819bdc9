//! `phiward k8s`: sidecars for pods.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::fail;
use crate::kubernetes::capture::{self, Network, Plan, PortPair};

/// Commands for Kubernetes.
#[derive(Debug, Subcommand)]
pub enum K8sCommand {
    /// Lead the TCP connections of this network namespace through the sidecar. Needs NET_ADMIN.
    Capture(CaptureArgs),
}

/// Runs one of them.
pub fn run(command: K8sCommand) -> ExitCode {
    match command {
        K8sCommand::Capture(args) => capture(&args),
    }
}

/// Arguments of `phiward k8s capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// The user that the sidecar runs as; its own connections are left alone.
    #[arg(long, default_value_t = 15099, value_name = "UID")]
    uid: u32,
    /// The port of the sidecar's outbound listener; without it, outgoing connections are left alone.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    outbound: Option<u16>,
    /// A port of the app and the sidecar's listener for it. Once there is one, all other ports are refused.
    #[arg(long, value_name = "APP:SIDECAR", value_delimiter = ',')]
    inbound: Vec<PortPair>,
    /// Ports that callers may still reach as they are, such as the probe listener's.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    open_ports: Vec<u16>,
    /// Destination ports that the pod reaches as they are; 53 (DNS) is always one.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    exclude_outbound_ports: Vec<u16>,
    /// Destinations that the pod reaches as they are.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    exclude_outbound_cidrs: Vec<Network>,
    /// Take the rules away.
    #[arg(long, conflicts_with_all = ["outbound", "inbound", "open_ports", "exclude_outbound_ports", "exclude_outbound_cidrs", "dry_run"])]
    undo: bool,
    /// Print the rules, as nft would read them, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

const DNS: u16 = 53;

fn capture(args: &CaptureArgs) -> ExitCode {
    if args.undo {
        return capture::undo().map_or_else(|error| fail(&error, 1), |()| ExitCode::SUCCESS);
    }
    if args.outbound.is_none() && args.inbound.is_empty() {
        return fail(&"nothing to lead: give --outbound PORT, --inbound APP:SIDECAR or both", 2);
    }
    if let Some(twice) = args
        .inbound
        .iter()
        .enumerate()
        .find(|(at, pair)| args.inbound[..*at].iter().any(|p| p.app == pair.app))
    {
        return fail(&format!("--inbound leads port {} to two listeners", twice.1.app), 2);
    }
    let mut exclude_ports = args.exclude_outbound_ports.clone();
    if !exclude_ports.contains(&DNS) {
        exclude_ports.insert(0, DNS);
    }
    let plan = Plan {
        uid: args.uid,
        outbound: args.outbound,
        inbound: args.inbound.clone(),
        open: args.open_ports.clone(),
        exclude_ports,
        exclude_networks: args.exclude_outbound_cidrs.clone(),
    };
    if args.dry_run {
        print!("{}", capture::text(&plan.table()));
        return ExitCode::SUCCESS;
    }
    match capture::apply(&plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}
