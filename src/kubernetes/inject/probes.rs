//! A kubelet has no certificate: its HTTP probes go to the sidecar's probe listener, which asks the app.

use serde_json::{Value, json};

use super::ask::Asked;
use super::{PROBES, Refusal};

/// What the probe listener is to ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rewritten {
    pub(super) port: u64,
    pub(super) paths: Vec<String>,
}

/// Leads the probes of a pod's containers to the probe listener. Those of excluded ports stay as they are. Without capture it is
/// the same: an app that nobody is to reach but its sidecar listens on loopback, where no kubelet asks.
pub(super) fn rewrite(pod: &mut Value, asked: &Asked) -> Result<Option<Rewritten>, Refusal> {
    let mut rewritten = Rewritten::default();
    if asked.ports.is_empty() {
        return Ok(None);
    }
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        let ports = container["ports"].clone();
        for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
            if let Some(probe) = container.get_mut(kind) {
                one(probe, &ports, asked, &mut rewritten)
                    .map_err(|error| Refusal::new(format!("{kind}: {error}")))?;
            }
        }
    }
    Ok(Some(rewritten).filter(|rewritten| !rewritten.paths.is_empty()))
}

const WAYS_OUT: &str = "use httpGet, or name its port in phiward.dev/exclude-inbound-ports";

fn one(probe: &mut Value, ports: &Value, asked: &Asked, rewritten: &mut Rewritten) -> Result<(), String> {
    for (kind, why) in [
        ("grpc", "a gRPC probe"),
        ("tcpSocket", "a TCP probe, which the sidecar would answer whatever the app does,"),
    ] {
        if let Some(port) = probe.get(kind).and_then(|action| number_of(&action["port"], ports)) {
            if asked.exclude_inbound.iter().any(|open| u64::from(*open) == port) {
                return Ok(());
            }
            return Err(format!("{why} cannot pass the sidecar: {WAYS_OUT}"));
        }
    }
    let Some(get) = probe.get_mut("httpGet") else { return Ok(()) };
    let port = number_of(&get["port"], ports).ok_or("its port is neither a number nor the name of one")?;
    if asked.exclude_inbound.iter().any(|open| u64::from(*open) == port) {
        return Ok(());
    }
    if get["scheme"] == "HTTPS" {
        return Err(format!("an HTTPS probe cannot pass the sidecar: {WAYS_OUT}"));
    }
    if !matches!(rewritten.port, 0) && rewritten.port != port {
        return Err(format!(
            "the pod's probes go to the ports {} and {port}, and the sidecar asks one: name the other in phiward.dev/exclude-inbound-ports",
            rewritten.port
        ));
    }
    let path = get["path"].as_str().filter(|path| !path.is_empty()).unwrap_or("/").to_owned();
    if !path.starts_with('/')
        || path.contains(['?', '#', '%', ' '])
        || path.contains("..")
        || ["/live", "/ready"].contains(&path.as_str())
    {
        return Err(format!(
            "the path {path} cannot be probed through the sidecar: it must be literal, and not /live or /ready; {WAYS_OUT}"
        ));
    }
    get["port"] = json!(PROBES);
    rewritten.port = port;
    if !rewritten.paths.contains(&path) {
        rewritten.paths.push(path);
    }
    Ok(())
}

fn number_of(port: &Value, ports: &Value) -> Option<u64> {
    let named =
        |name: &str| ports.as_array()?.iter().find(|port| port["name"] == name)?["containerPort"].as_u64();
    port.as_u64().or_else(|| port.as_str().and_then(named))
}
