//! `phiward k8s`: sidecars for pods.
#![allow(clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::fail;
use super::run::{LogArgs, asked_to_stop, control_runtime};
use crate::config;
use crate::kubernetes::capture::{self, Network, Plan, PortPair};
use crate::kubernetes::webhook::{Webhook, WebhookError};
use crate::kubernetes::{inject, manifest};

/// Commands for Kubernetes.
#[derive(Debug, Subcommand)]
pub enum K8sCommand {
    /// Print manifests with the sidecar in their pods, as the webhook would put it there.
    Inject(InjectArgs),
    /// Run the admission webhook that puts the sidecar into new pods.
    Webhook(WebhookArgs),
    /// Lead the TCP connections of this network namespace through the sidecar. Needs NET_ADMIN.
    Capture(CaptureArgs),
    /// Tell the sidecar that its pod is about to end: it sends callers elsewhere, and serves those that still come. Its preStop hook.
    Leave(LeaveArgs),
}

/// Runs one of them.
pub fn run(command: K8sCommand) -> ExitCode {
    match command {
        K8sCommand::Inject(args) => inject(&args),
        K8sCommand::Webhook(args) => webhook(&args),
        K8sCommand::Capture(args) => capture(&args),
        K8sCommand::Leave(args) => leave(&args),
    }
}

/// Arguments of `phiward k8s inject`.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// The manifests, YAML or JSON; - is standard input.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// What is put into pods; config/webhook.yaml is an example.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The namespace of pods that name none.
    #[arg(long, default_value = "default", value_name = "NAME")]
    namespace: String,
}

/// Arguments of `phiward k8s webhook`.
#[derive(Debug, Args)]
pub struct WebhookArgs {
    /// How it is reached, and what is put into pods; config/webhook.yaml is an example.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    log: LogArgs,
}

fn inject(args: &InjectArgs) -> ExitCode {
    let config = match config::load_webhook(&args.config) {
        Ok(config) => config,
        Err(error) => return fail(&error, error.exit_code()),
    };
    let name = args.file.display();
    let read = if args.file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(&args.file)
    };
    let text = match read {
        Ok(text) => text,
        Err(error) => return fail(&format!("{name}: cannot be read: {error}"), 2),
    };
    let mut documents = match manifest::documents(&text) {
        Ok(documents) => documents,
        Err((number, problem)) => {
            return fail(
                &format!("{name}: document {number}, line {}: {}", problem.at.line, problem.message),
                1,
            );
        }
    };
    for document in &mut documents {
        let title = format!(
            "{} {}",
            document["kind"].as_str().unwrap_or("?"),
            document["metadata"]["name"].as_str().unwrap_or("?")
        );
        let namespace = document["metadata"]["namespace"].as_str().unwrap_or(&args.namespace).to_owned();
        for pod in manifest::pods(document) {
            if let Err(refusal) = inject::inject(pod, &namespace, &config.injection) {
                return fail(&format!("{name}: {title}: {refusal}"), 1);
            }
        }
    }
    print!("{}", manifest::text(&documents));
    ExitCode::SUCCESS
}

fn webhook(args: &WebhookArgs) -> ExitCode {
    drop(args.log.start());
    let config = match config::load_webhook(&args.config) {
        Ok(config) => config,
        Err(error) => return fail(&error, error.exit_code()),
    };
    let Some(server) = config.server else {
        return fail(
            &format!(
                "{}: a webhook needs `server: {{bind, certificate, private_key}}`",
                args.config.display()
            ),
            1,
        );
    };
    let serving = async {
        let webhook = Webhook::bind(server, config.injection).await?;
        tracing::info!(addr = ?webhook.addr().ok(), "ready");
        tokio::select! {
            () = webhook.serve(asked_once()) => (),
            () = asked_twice() => (),
        }
        Ok::<_, WebhookError>(())
    };
    match control_runtime().map(|runtime| runtime.block_on(serving)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&error, 1),
        Err(error) => fail(&error, 1),
    }
}

async fn asked_once() {
    asked_to_stop().await;
    tracing::info!("stopping, once the last callers are answered; a second signal stops at once");
}

async fn asked_twice() {
    asked_to_stop().await;
    asked_to_stop().await;
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

/// Arguments of `phiward k8s leave`.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// The sidecar's admin endpoint.
    #[arg(long, default_value = "127.0.0.1:15000", value_name = "ADDRESS")]
    admin: SocketAddr,
}

/// How long the sidecar may take to hear.
const PATIENCE: Duration = Duration::from_secs(2);

fn leave(args: &LeaveArgs) -> ExitCode {
    let told = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&args.admin, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "POST /leave HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            args.admin
        )?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    };
    match told() {
        Ok(status) if status.starts_with("HTTP/1.1 202") => ExitCode::SUCCESS,
        Ok(status) => {
            fail(&format!("{}: this is no sidecar's admin endpoint: it said `{status}`", args.admin), 1)
        }
        Err(error) => {
            fail(&format!("{}: the sidecar's admin endpoint cannot be asked: {error}", args.admin), 1)
        }
    }
}
