//! Reading the sidecar's and the collector's configuration, block by block.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::identity::{read_identity, read_posture};
use super::model::{AdminConfig, AuditConfig, CollectorConfig, Limits, SidecarConfig, Workload};
use super::read::Reading;
use super::sinks::read_sinks;
use super::traffic::{bind, read_inbound, read_outbound};
use crate::audit::{Durability, OnFailure};
use crate::collector::Retention;
use crate::tls::Posture;
use crate::yaml::{Fields, Node, Value};

const DEFAULT_SPOOL_BYTES: u64 = 1 << 30;
const LEAST_SPOOL_BYTES: u64 = 1 << 20;
const MOST_SPOOL_BYTES: u64 = 1 << 50;
/// Some segments, so that what just came is never what must go.
const LEAST_STORE_BYTES: u64 = 256 << 20;
const ADMIN_PORT: u16 = 15000;
const COLLECTOR_ADMIN_PORT: u16 = 15201;

pub(super) fn read_sidecar(r: &Reading<'_>, root: &Node) -> Option<SidecarConfig> {
    let mut f = r.fields(root, "the configuration")?;
    read_version(r, &mut f);
    let workload = f.required("workload").and_then(|n| read_workload(r, n));
    let identity = f.required("identity").and_then(|n| read_identity(r, n));
    let tls = f.optional("tls").map_or(Some(Posture::default()), |n| read_posture(r, n));
    let inbound = f.optional("inbound").map(|n| read_inbound(r, n));
    let outbound = f.optional("outbound").map(|n| read_outbound(r, n));
    let policy = f.optional("policy").map(|n| {
        let mut f = r.fields(n, "policy")?;
        let file = f.required("file").and_then(|n| r.path(n, "file"));
        f.finish();
        file
    });
    let audit = f.required("audit").and_then(|n| read_audit(r, n));
    let admin = f.optional("admin").map_or(Some(default_admin(ADMIN_PORT)), |n| {
        let mut f = r.fields(n, "admin")?;
        let metrics = f.optional("metrics").map(|n| bind(r, n));
        Some(AdminConfig { metrics: transpose(metrics)?, ..read_admin(r, f, ADMIN_PORT)? })
    });
    let limits = f.optional("limits").map_or(Some(Limits::default()), |n| read_limits(r, n));
    let workers = f
        .optional("workers")
        .map_or(Some(default_workers()), |n| r.reader.u64(n, "workers", 1..=256).map(|count| count as usize));
    if inbound.is_none() && outbound.is_none() {
        r.reader.problem(f.at(), "there is neither an inbound nor an outbound side: nothing would be served");
    }
    let called = inbound.iter().flatten().any(|inbound| !inbound.listeners.is_empty());
    if called && policy.is_none() {
        r.reader.problem_with_hint(
            f.at(),
            "inbound listeners need a policy: without one every request would be denied",
            "add `policy: {file: policy.yaml}`",
        );
    }
    f.finish();
    Some(SidecarConfig {
        workload: workload?,
        identity: identity?,
        tls: tls?,
        inbound: transpose(inbound)?,
        outbound: transpose(outbound)?,
        policy: transpose(policy)?,
        audit: audit?,
        admin: admin?,
        limits: limits?,
        workers: workers?,
    })
}

pub(super) fn read_collector(r: &Reading<'_>, root: &Node) -> Option<CollectorConfig> {
    let mut f = r.fields(root, "the configuration")?;
    read_version(r, &mut f);
    let identity = f.required("identity").and_then(|n| read_identity(r, n));
    let tls = f.optional("tls").map_or(Some(Posture::default()), |n| read_posture(r, n));
    let bind = f.required("bind").and_then(|n| r.address(n, "bind"));
    let store = f.required("store").and_then(|n| {
        let mut f = r.fields(n, "store")?;
        let dir = f.required("dir").and_then(|n| r.path(n, "dir"));
        let key_file = f.optional("encryption_key_file").map_or(Some(Vec::new()), |n| key_files(r, n));
        f.finish();
        Some((dir?, key_file?))
    });
    let relays = f.optional("relays").map_or(Some(Vec::new()), |n| Some(r.identities(n, "relays")?.to_vec()));
    let admin = f.optional("admin").map_or(Some(default_admin(COLLECTOR_ADMIN_PORT)), |n| {
        read_admin(r, r.fields(n, "admin")?, COLLECTOR_ADMIN_PORT)
    });
    let retention = f.optional("retention").map_or(Some(Retention::default()), |n| read_retention(r, n));
    f.finish();
    let (store, key_files) = store?;
    Some(CollectorConfig {
        identity: identity?,
        tls: tls?,
        bind: bind?,
        store,
        key_files,
        relays: relays?,
        retention: retention?,
        admin: admin?,
    })
}

fn read_retention(r: &Reading<'_>, node: &Node) -> Option<Retention> {
    const DAY: Duration = Duration::from_secs(86_400);
    let mut f = r.fields(node, "retention")?;
    let max_age = f.optional("max_age").map(|n| r.reader.duration(n, "max_age", DAY..=DAY * 36_500));
    let max_bytes =
        f.optional("max_bytes").map(|n| r.reader.bytes(n, "max_bytes", LEAST_STORE_BYTES..=MOST_SPOOL_BYTES));
    if max_age.is_none() && max_bytes.is_none() {
        r.reader.problem(
            node.at,
            "retention needs max_age, max_bytes or both; without retention everything is kept",
        );
    }
    f.finish();
    Some(Retention { max_age: transpose(max_age)?, max_bytes: transpose(max_bytes)? })
}

/// An optional block that is there must be good.
pub(super) fn transpose<T>(block: Option<Option<T>>) -> Option<Option<T>> {
    match block {
        None => Some(None),
        Some(Some(value)) => Some(Some(value)),
        Some(None) => None,
    }
}

fn read_version(r: &Reading<'_>, f: &mut Fields<'_, '_>) {
    if let Some(node) = f.required("version")
        && r.reader.u64(node, "version", 0..=u64::MAX).is_some_and(|version| version != 1)
    {
        r.reader.problem(node.at, "version must be 1, the only one there is");
    }
}

fn read_workload(r: &Reading<'_>, node: &Node) -> Option<Workload> {
    let mut f = r.fields(node, "workload")?;
    let service = f.required("service").and_then(|n| r.name(n, "service"));
    let namespace = f.required("namespace").and_then(|n| r.name(n, "namespace"));
    // Kubernetes' downward API fills variables, not files that are mounted read-only.
    let pod = f.optional("pod").map(|n| r.name(n, "pod"));
    let node_name = f.optional("node").map(|n| r.name(n, "node"));
    f.finish();
    Some(Workload {
        service: service?,
        namespace: namespace?,
        pod: transpose(pod)?.or_else(|| from_environment("PHIWARD_POD")),
        node: transpose(node_name)?.or_else(|| from_environment("PHIWARD_NODE")),
    })
}

pub(super) fn from_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn read_audit(r: &Reading<'_>, node: &Node) -> Option<AuditConfig> {
    let mut f = r.fields(node, "audit")?;
    let spool = f.required("spool").and_then(|n| {
        let mut f = r.fields(n, "spool")?;
        let dir = f.required("dir").and_then(|n| r.path(n, "dir"));
        let max_bytes = f.optional("max_bytes").map_or(Some(DEFAULT_SPOOL_BYTES), |n| {
            r.reader.bytes(n, "max_bytes", LEAST_SPOOL_BYTES..=MOST_SPOOL_BYTES)
        });
        let durability = f.optional("durability").map_or(Some(Durability::Write), |n| {
            let words = [
                ("write", Durability::Write),
                ("fsync", Durability::Fsync),
                ("fsync_before_forward", Durability::FsyncBeforeForward),
            ];
            r.reader.one_of(n, "durability", &words)
        });
        let key_file = f.optional("encryption_key_file").map_or(Some(Vec::new()), |n| key_files(r, n));
        f.finish();
        Some((dir?, max_bytes?, durability?, key_file?))
    });
    let on_failure = f.optional("on_failure").map_or(Some(OnFailure::Deny), |n| {
        let words = [("deny", OnFailure::Deny), ("allow_with_gap", OnFailure::AllowWithGap)];
        r.reader.one_of(n, "on_failure", &words)
    });
    let key_file = f.required("key_file").and_then(|n| r.path(n, "key_file"));
    let sinks = f.optional("sinks").map_or(Some(Vec::new()), |n| read_sinks(r, n));
    f.finish();
    let (dir, max_bytes, durability, spool_key_files) = spool?;
    Some(AuditConfig {
        dir,
        max_bytes,
        durability,
        on_failure: on_failure?,
        key_file: key_file?,
        spool_key_files,
        sinks: sinks?,
    })
}

/// One file, or several: the first one's key encrypts, the others' open what is older.
fn key_files(r: &Reading<'_>, node: &Node) -> Option<Vec<PathBuf>> {
    const WHAT: &str = "encryption_key_file";
    if !matches!(node.value, Value::Seq(_)) {
        return Some(vec![r.path(node, WHAT)?]);
    }
    r.reader.nonempty_list(node, WHAT)?.iter().map(|item| r.path(item, WHAT)).collect()
}

fn default_admin(port: u16) -> AdminConfig {
    AdminConfig { bind: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), metrics: None }
}

fn read_admin(r: &Reading<'_>, mut f: Fields<'_, '_>, default_port: u16) -> Option<AdminConfig> {
    let default = default_admin(default_port);
    let bind = f.optional("bind").map_or(Some(default.bind), |n| r.address(n, "bind"));
    f.finish();
    Some(AdminConfig { bind: bind?, ..default })
}

fn read_limits(r: &Reading<'_>, node: &Node) -> Option<Limits> {
    const SECONDS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
    let mut f = r.fields(node, "limits")?;
    let mut limits = Limits::default();
    let mut good = true;
    let mut keep = |read: Option<()>| good &= read.is_some();
    if let Some(n) = f.optional("head_bytes") {
        keep(r.reader.bytes(n, "head_bytes", 8192..=1 << 20).map(|v| limits.head_bytes = v as u32));
    }
    if let Some(n) = f.optional("connections") {
        keep(r.reader.u64(n, "connections", 64..=1_000_000).map(|v| limits.connections = v as usize));
    }
    if let Some(n) = f.optional("streams") {
        keep(r.reader.u64(n, "streams", 1..=10_000).map(|v| limits.streams = v as u32));
    }
    if let Some(n) = f.optional("handshakes") {
        keep(r.reader.u64(n, "handshakes", 1..=10_000).map(|v| limits.handshakes = v as usize));
    }
    let times: [(&'static str, &mut Duration); 5] = [
        ("handshake_timeout", &mut limits.handshake_timeout),
        ("head_timeout", &mut limits.head_timeout),
        ("connect_timeout", &mut limits.connect_timeout),
        ("response_timeout", &mut limits.response_timeout),
        ("upstream_idle", &mut limits.upstream_idle),
    ];
    for (key, slot) in times {
        if let Some(n) = f.optional(key) {
            keep(r.reader.duration(n, key, SECONDS).map(|v| *slot = v));
        }
    }
    let drains = [("drain_delay", &mut limits.drain_delay), ("drain_deadline", &mut limits.drain_deadline)];
    for (key, slot) in drains {
        if let Some(n) = f.optional(key) {
            keep(r.reader.duration(n, key, Duration::ZERO..=Duration::from_secs(3600)).map(|v| *slot = v));
        }
    }
    f.finish();
    good.then_some(limits)
}

fn default_workers() -> usize {
    // Counts the cores that the process may use, a container's CPU quota included.
    std::thread::available_parallelism().map_or(1, usize::from)
}
