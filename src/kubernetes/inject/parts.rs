//! The containers and volumes that a pod gets.

use serde_json::{Value, json};

use super::ask::Asked;
use super::config::listener_port;
use super::{CONFIG, METRICS, OUTBOUND, PROBES, SIDECAR, UID};
use crate::config::{IdentityVolume, Injection};

pub(super) const POLICY: &str = "/etc/phiward/policy";
pub(super) const KEY: &str = "/etc/phiward/key";
pub(super) const IDENTITY: &str = "/run/phiward/identity";
pub(super) const SPOOL: &str = "/var/lib/phiward/audit";

/// The capture step, and the sidecar: a native one (an init container that goes on), so that a Job's pod ends with its app, and the
/// app's own init containers find it running. It starts before the rules do: until then nothing of the app runs.
pub(super) fn containers(injection: &Injection, asked: &Asked) -> Vec<Value> {
    let mut all = vec![sidecar(injection, asked)];
    if asked.capture {
        all.push(capture(injection, asked));
    }
    all
}

fn sidecar(injection: &Injection, asked: &Asked) -> Value {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut mounts = vec![
        json!({"name": "phiward-config", "mountPath": "/etc/phiward/config", "readOnly": true}),
        json!({"name": "phiward-key", "mountPath": KEY, "readOnly": true}),
        json!({"name": "phiward-identity", "mountPath": IDENTITY, "readOnly": true}),
        json!({"name": "phiward-spool", "mountPath": "/var/lib/phiward"}),
    ];
    let get = |path: &str| json!({"path": path, "port": PROBES});
    let mut container = json!({
        "name": SIDECAR,
        "image": injection.image,
        "restartPolicy": "Always",
        "args": ["run", "--config", "/etc/phiward/config/sidecar.yaml"],
        "env": [field("PHIWARD_POD", "metadata.name"), field("PHIWARD_NODE", "spec.nodeName")],
        "resources": {
            "requests": {"cpu": asked.cpu, "memory": asked.memory},
            "limits": {"memory": asked.memory},
        },
        // By this name the chart's PodMonitor finds it.
        "ports": [{"name": "phiward-metrics", "containerPort": METRICS}],
        "startupProbe": {"httpGet": get("/ready"), "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {"httpGet": get("/ready"), "periodSeconds": 5},
        "livenessProbe": {"httpGet": get("/live"), "periodSeconds": 10},
        // At the beginning of a pod's end, while SIGTERM only comes to a native sidecar after the app has ended: callers are to be
        // gone by then.
        "lifecycle": {"preStop": {"exec": {"command": ["/phiward", "k8s", "leave"]}}},
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": UID, "runAsGroup": UID,
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    if !asked.ports.is_empty() {
        mounts.push(json!({"name": "phiward-policy", "mountPath": POLICY, "readOnly": true}));
    }
    container["volumeMounts"] = Value::Array(mounts);
    container
}

fn capture(injection: &Injection, asked: &Asked) -> Value {
    let mut args =
        vec!["k8s".to_owned(), "capture".into(), format!("--uid={UID}"), format!("--outbound={OUTBOUND}")];
    let mut list = |flag: &str, items: Vec<String>| {
        if !items.is_empty() {
            args.push(format!("--{flag}={}", items.join(",")));
        }
    };
    let pairs =
        asked.ports.iter().zip(0..).map(|(port, at)| format!("{}:{}", port.number, listener_port(at)));
    list("inbound", pairs.collect());
    if !asked.ports.is_empty() {
        let open = [PROBES, METRICS].iter().chain(&asked.exclude_inbound);
        list("open-ports", open.map(u16::to_string).collect());
    }
    list("exclude-outbound-ports", asked.exclude_outbound.iter().map(u16::to_string).collect());
    list("exclude-outbound-cidrs", asked.exclude_networks.clone());
    json!({
        "name": "phiward-capture",
        "image": injection.image,
        "args": args,
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "16Mi"}},
        "securityContext": {
            "runAsNonRoot": false, "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

pub(super) fn volumes(injection: &Injection, asked: &Asked) -> Vec<Value> {
    let identity = match &asked.identity {
        IdentityVolume::Spire => json!({"csi": {"driver": "csi.spiffe.io", "readOnly": true}}),
        IdentityVolume::CertManager => {
            json!({"csi": {"driver": "spiffe.csi.cert-manager.io", "readOnly": true}})
        }
        IdentityVolume::Secret(name) => json!({"secret": {"secretName": name}}),
    };
    let field = json!({"path": "sidecar.yaml", "fieldRef": {"fieldPath": format!("metadata.annotations['{CONFIG}']")}});
    let mut all = vec![
        json!({"name": "phiward-config", "downwardAPI": {"items": [field]}}),
        json!({"name": "phiward-key", "secret": {"secretName": injection.audit_key}}),
        named("phiward-identity", identity),
        // On the node's disk for as long as the pod lives; what is delivered does not need it.
        json!({"name": "phiward-spool", "emptyDir": {"sizeLimit": "2Gi"}}),
    ];
    if !asked.ports.is_empty() {
        all.push(json!({"name": "phiward-policy", "configMap": {"name": asked.policy}}));
    }
    all
}

fn named(name: &str, mut volume: Value) -> Value {
    volume["name"] = json!(name);
    volume
}
