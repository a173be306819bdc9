//! Reading which connections a sidecar takes, and where they go.

use std::collections::HashSet;
use std::net::SocketAddr;

use super::model::{
    AppProtocol, Bind, InboundConfig, InboundListener, MeshProtocol, Mode, OutboundAudit, OutboundConfig,
    ProbesConfig, ServiceConfig, Unknown,
};
use super::read::Reading;
use super::sidecar::transpose;
use crate::yaml::{Fields, Node, Value};

pub(super) fn read_inbound(r: &Reading<'_>, node: &Node) -> Option<InboundConfig> {
    let mut f = r.fields(node, "inbound")?;
    // A pod that nobody calls has none, and its kubelet still asks how it is.
    let node_of_probes = f.optional("probes");
    let listeners = if node_of_probes.is_some() { f.optional("listeners") } else { f.required("listeners") };
    let listeners = listeners.map(|n| {
        let items = r.reader.nonempty_list(n, "listeners")?;
        let mut names = HashSet::new();
        let read = items.iter().map(|item| {
            let listener = read_listener(r, item)?;
            if !names.insert(listener.name.clone()) {
                r.reader.problem(item.at, format!("there is another listener called `{}`", listener.name));
            }
            Some(listener)
        });
        all(read)
    });
    let listeners = transpose(listeners).map(Option::unwrap_or_default);
    let probes = node_of_probes.map(|n| read_probes(r, n, listeners.as_deref()));
    f.finish();
    Some(InboundConfig { listeners: listeners?, probes: transpose(probes)? })
}

fn read_probes(r: &Reading<'_>, node: &Node, listeners: Option<&[InboundListener]>) -> Option<ProbesConfig> {
    let mut f = r.fields(node, "probes")?;
    let bind = f.required("bind").and_then(|n| bind(r, n));
    let app = f.optional("app").map(|n| r.address(n, "app"));
    let paths = f.optional("paths").map_or(Some(Vec::new()), |n| {
        all(r.reader.list(n, "paths")?.iter().map(|item| {
            let path = r.reader.string(item, "a probe path")?;
            if !path.starts_with('/') || path.contains(['?', '#', '%', ' ']) || path.contains("..") {
                r.reader.problem(item.at, "a probe path must start with / and be literal, without a query");
                return None;
            }
            Some(path.to_owned())
        }))
    });
    let http = |listeners: &[InboundListener]| listeners.iter().any(|l| l.app_protocol != AppProtocol::Tcp);
    if app.is_none() && paths.as_ref().is_some_and(|paths| !paths.is_empty()) && !listeners.is_none_or(http) {
        r.reader.problem_with_hint(
            node.at,
            "no listener speaks HTTP, so there is no app to probe",
            "name it, such as `app: \"127.0.0.1:8080\"`",
        );
    }
    f.finish();
    Some(ProbesConfig { bind: bind?, app: transpose(app)?, paths: paths? })
}

fn read_listener(r: &Reading<'_>, node: &Node) -> Option<InboundListener> {
    let mut f = r.fields(node, "a listener")?;
    let name = f.required("name").and_then(|n| r.name(n, "name"));
    let bind = f.required("bind").and_then(|n| bind(r, n));
    let app = f.required("app").and_then(|n| r.address(n, "app"));
    let tcp = is_tcp(r, &mut f);
    let app_protocol = f.optional("app_protocol").map(|n| {
        if tcp == Some(true) {
            r.reader.problem(n.at, "app_protocol is for `protocol: http`");
        }
        r.reader.one_of(n, "app_protocol", &[("http", AppProtocol::Http), ("h2c", AppProtocol::H2c)])
    });
    let mode = f.optional("mode").map_or(Some(Mode::Strict), |n| {
        r.reader.one_of(n, "mode", &[("strict", Mode::Strict), ("permissive", Mode::Permissive)])
    });
    f.finish();
    let app_protocol = match (tcp?, transpose(app_protocol)?) {
        (true, _) => AppProtocol::Tcp,
        (false, spoken) => spoken.unwrap_or(AppProtocol::Http),
    };
    Some(InboundListener { name: name?, bind: bind?, app: app?, app_protocol, mode: mode? })
}

/// `protocol: http | tcp`.
fn is_tcp(r: &Reading<'_>, f: &mut Fields<'_, '_>) -> Option<bool> {
    f.optional("protocol")
        .map_or(Some(false), |n| r.reader.one_of(n, "protocol", &[("http", false), ("tcp", true)]))
}

/// One address, or a list of them.
pub(super) fn bind(r: &Reading<'_>, node: &Node) -> Option<Bind> {
    if !matches!(node.value, Value::Seq(_)) {
        return Some(vec![r.address(node, "bind")?]);
    }
    let mut known: HashSet<SocketAddr> = HashSet::new();
    all(r.reader.nonempty_list(node, "bind")?.iter().map(|item| {
        let address = r.address(item, "bind")?;
        if !known.insert(address) {
            r.reader.problem(item.at, format!("{address} is there already"));
        }
        Some(address)
    }))
}

pub(super) fn read_outbound(r: &Reading<'_>, node: &Node) -> Option<OutboundConfig> {
    let mut f = r.fields(node, "outbound")?;
    let audit = f.optional("audit").map_or(Some(OutboundAudit::Refused), |n| {
        r.reader.one_of(n, "audit", &[("refused", OutboundAudit::Refused), ("all", OutboundAudit::All)])
    });
    let bind = f.required("bind").and_then(|n| bind(r, n));
    let unknown = f.optional("unknown").map_or(Some(Unknown::Deny), |n| {
        r.reader.one_of(n, "unknown", &[("deny", Unknown::Deny), ("passthrough", Unknown::Passthrough)])
    });
    // A pod that calls nobody has none, and its captured connections are all unknown.
    let services = f.required("services").and_then(|n| {
        let (mut hosts, mut names) = (HashSet::new(), HashSet::new());
        all(r.reader.list(n, "services")?.iter().map(|item| {
            let service = read_service(r, item)?;
            if !names.insert(service.name.clone()) {
                r.reader.problem(item.at, format!("there is another service called `{}`", service.name));
            }
            for host in &service.hosts {
                if !hosts.insert(host.clone()) {
                    r.reader
                        .problem(item.at, format!("the host `{host}` belongs to another service already"));
                }
            }
            Some(service)
        }))
    });
    f.finish();
    Some(OutboundConfig { audit: audit?, bind: bind?, unknown: unknown?, services: services? })
}

fn read_service(r: &Reading<'_>, node: &Node) -> Option<ServiceConfig> {
    let mut f = r.fields(node, "a service")?;
    let name = f.required("name").and_then(|n| r.name(n, "name"));
    let tcp = is_tcp(r, &mut f);
    let endpoints = f.required("endpoints").and_then(|n| {
        all(r.reader.nonempty_list(n, "endpoints")?.iter().map(|item| r.endpoint(item, "an endpoint")))
    });
    let identities = f.required("identities").and_then(|n| r.identities(n, "identities"));
    let mesh = f.optional("mesh").map(|n| {
        if tcp == Some(true) {
            r.reader.problem(n.at, "mesh is for `protocol: http`");
        }
        r.reader.one_of(n, "mesh", &[("h2", false), ("h1", true)])
    });
    let bind = f.optional("bind").map(|n| {
        if tcp == Some(false) {
            r.reader.problem(n.at, "bind is for `protocol: tcp`; HTTP is told apart by its host");
        }
        bind(r, n)
    });
    let hosts = match tcp {
        Some(true) => f.optional("hosts").map_or(Some(Vec::new()), |n| {
            r.reader.problem(n.at, "hosts are for `protocol: http`; TCP is told apart by where it goes");
            None
        }),
        _ => f
            .required("hosts")
            .and_then(|n| all(r.reader.nonempty_list(n, "hosts")?.iter().map(|item| r.host(item, "a host")))),
    };
    f.finish();
    let mesh = match (tcp?, transpose(mesh)?) {
        (true, _) => MeshProtocol::Tcp { bind: transpose(bind)? },
        (false, Some(true)) => MeshProtocol::H1,
        (false, _) => MeshProtocol::H2,
    };
    Some(ServiceConfig { name: name?, hosts: hosts?, endpoints: endpoints?, identities: identities?, mesh })
}

/// All of them, or none; each is read either way, so that every problem is told.
fn all<T>(read: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    read.collect::<Vec<_>>().into_iter().collect()
}
