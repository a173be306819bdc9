//! The configuration of a pod's sidecar.

use std::path::Path;

use serde_json::{Value, json};

use super::ask::{Asked, Port, Spoken};
use super::probes::Rewritten;
use super::{INBOUND, METRICS, OUTBOUND, PROBES, Refusal, parts};
use crate::config::{self, IdentityVolume, Injection};
use crate::identity::TrustDomain;

/// As JSON, which is YAML.
pub(super) fn of(
    pod: &Value,
    namespace: &str,
    injection: &Injection,
    asked: &Asked,
    probes: Option<&Rewritten>,
) -> Result<String, Refusal> {
    let mut config = json!({
        "version": 1,
        "workload": {"service": service(pod), "namespace": namespace},
        "identity": identity_from(&asked.identity, &injection.trust_domain),
        "outbound": {
            "bind": both("127.0.0.1", "[::1]", OUTBOUND),
            "unknown": if asked.passthrough { "passthrough" } else { "deny" },
            "services": asked.services,
        },
        "audit": {
            "spool": {"dir": parts::SPOOL},
            "key_file": format!("{}/audit-hmac.key", parts::KEY),
            "sinks": injection.sinks,
        },
        // The pod's other containers reach all of it; Prometheus reads the metrics.
        "admin": {"bind": "127.0.0.1:15000", "metrics": both("0.0.0.0", "[::]", METRICS)},
    });
    let listeners = asked.ports.iter().zip(0..).map(|(port, at)| listener(*port, at, asked.permissive));
    let listeners: Vec<Value> = listeners.collect();
    let mut probe = json!({"bind": both("0.0.0.0", "[::]", PROBES)});
    if let Some(rewritten) = probes {
        probe["app"] = json!(format!("127.0.0.1:{}", rewritten.port));
        probe["paths"] = json!(rewritten.paths);
    }
    config["inbound"] = json!({"probes": probe});
    // A pod that nobody calls needs no policy.
    if !listeners.is_empty() {
        config["inbound"]["listeners"] = json!(listeners);
        config["policy"] = json!({"file": format!("{}/policy.yaml", parts::POLICY)});
    }
    let text = config.to_string();
    // By the loader of `run`: what it would refuse in the pod is refused here, where somebody reads it.
    config::parse_sidecar(&text, Path::new("the sidecar's configuration"))
        .map_err(|error| Refusal::new(error.to_string()))?;
    Ok(text)
}

fn listener(port: Port, at: u16, permissive: bool) -> Value {
    let mut listener = json!({
        "name": format!("port-{}", port.number),
        "bind": both("0.0.0.0", "[::]", listener_port(at)),
        "app": format!("127.0.0.1:{}", port.number),
        "mode": if permissive { "permissive" } else { "strict" },
    });
    match port.spoken {
        Spoken::Http => {}
        Spoken::H2c => listener["app_protocol"] = json!("h2c"),
        Spoken::Tcp => listener["protocol"] = json!("tcp"),
    }
    listener
}

/// The listener of the app's port number `at`.
pub(super) fn listener_port(at: u16) -> u16 {
    INBOUND + 10 * at
}

/// In both families; one that the pod does not have is left out when the sidecar starts.
fn both(v4: &str, v6: &str, port: u16) -> Value {
    json!([format!("{v4}:{port}"), format!("{v6}:{port}")])
}

fn identity_from(identity: &IdentityVolume, trust_domain: &TrustDomain) -> Value {
    let at = parts::IDENTITY;
    let files = |certificate: &str, key: &str, bundle: &str| json!({"certificate": format!("{at}/{certificate}"), "private_key": format!("{at}/{key}"), "bundle": format!("{at}/{bundle}")});
    let trust_domain = trust_domain.to_string();
    match identity {
        IdentityVolume::Spire => {
            json!({"trust_domain": trust_domain, "source": "spire", "spire": {"socket": format!("unix://{at}/spire-agent.sock")}})
        }
        IdentityVolume::CertManager => {
            json!({"trust_domain": trust_domain, "files": files("tls.crt", "tls.key", "ca.crt")})
        }
        IdentityVolume::Secret(_) => {
            json!({"trust_domain": trust_domain, "files": files("svid.pem", "svid.key", "bundle.pem")})
        }
    }
}

/// How the workload is called: by its label, else by its name without what a controller adds.
fn service(pod: &Value) -> String {
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
    let label = text("/metadata/labels/app.kubernetes.io~1name").or(text("/metadata/labels/app"));
    let name = label.or(text("/metadata/name")).or(text("/metadata/generateName"));
    name.unwrap_or("workload").trim_end_matches('-').chars().take(63).collect()
}
