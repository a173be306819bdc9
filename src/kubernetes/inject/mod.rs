//! A pod with a sidecar: pure, from one JSON value to another.
//!
//! Owns what is added to a pod and what is refused. The sidecar's configuration is written here, judged by the loader that
//! `run` uses, and travels as an annotation of the pod: no other object has to be made for it, and whoever looks at the pod sees
//! it. Doing it twice changes nothing.

mod ask;
mod config;
mod parts;
mod probes;

use serde_json::{Value, json};

use crate::config::Injection;
use ask::Asked;

/// The prefix of all annotations and labels.
const PREFIX: &str = "phiward.dev/";
/// Says that a pod has its sidecar.
const STATUS: &str = "phiward.dev/status";
/// Holds the sidecar's configuration.
const CONFIG: &str = "phiward.dev/config";
/// The container's name.
const SIDECAR: &str = "phiward";
/// The user that the sidecar runs as, whose connections the capture rules leave alone.
const UID: u64 = 15099;
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const PROBES: u16 = 15008;
const METRICS: u16 = 15009;

/// What became of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has a sidecar now.
    Injected,
    /// It has one already.
    Already,
    /// It asked for none.
    Declined,
}

/// Why a pod gets no sidecar: for who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("phiward cannot inject its sidecar: {0}")]
pub struct Refusal(String);

impl Refusal {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Puts a sidecar into `pod`, an object with `metadata` and `spec`, which will be in `namespace`.
///
/// # Errors
/// What stands against it; the pod is unchanged then.
pub fn inject(pod: &mut Value, namespace: &str, injection: &Injection) -> Result<Outcome, Refusal> {
    if pod.pointer("/metadata/annotations").and_then(|all| all.get(STATUS)).is_some() {
        let has_sidecar = pod["spec"]["initContainers"]
            .as_array()
            .is_some_and(|containers| containers.iter().any(|container| container["name"] == SIDECAR));
        return if has_sidecar {
            Ok(Outcome::Already)
        } else {
            Err(Refusal::new(format!(
                "the annotation {STATUS} says that there is a sidecar, and there is none: remove it"
            )))
        };
    }
    let asked = Asked::read(pod, injection)?;
    if !asked.inject {
        return Ok(Outcome::Declined);
    }
    refuse_impossible(pod, &asked)?;
    let mut changed = pod.clone();
    let probes = probes::rewrite(&mut changed, &asked)?;
    let config = config::of(pod, namespace, injection, &asked, probes.as_ref())?;
    annotate(&mut changed, &config);
    let spec = &mut changed["spec"];
    put_first(spec, "initContainers", parts::containers(injection, &asked));
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    volumes.extend(parts::volumes(injection, &asked));
    spec["volumes"] = Value::Array(volumes);
    *pod = changed;
    Ok(Outcome::Injected)
}

fn refuse_impossible(pod: &Value, asked: &Asked) -> Result<(), Refusal> {
    let spec = &pod["spec"];
    if spec["hostNetwork"] == true {
        return Err(Refusal::new(
            "the pod has `hostNetwork: true`, and so no network of its own to guard; remove it, or opt out with the annotation \
             phiward.dev/inject: \"false\"",
        ));
    }
    let containers = || {
        ["containers", "initContainers"]
            .into_iter()
            .flat_map(|kind| spec[kind].as_array().into_iter().flatten())
    };
    if let Some(taken) =
        containers().find_map(|c| c["name"].as_str().filter(|name| name.starts_with(SIDECAR)))
    {
        return Err(Refusal::new(format!("a container is called `{taken}` already")));
    }
    let as_us = |context: &Value| context["securityContext"]["runAsUser"] == UID;
    if asked.capture && (as_us(spec) || containers().any(as_us)) {
        return Err(Refusal::new(format!(
            "the pod runs as user {UID}, which is the sidecar's: its connections would go around the sidecar; give it another"
        )));
    }
    Ok(())
}

fn annotate(pod: &mut Value, config: &str) {
    let annotations = &mut pod["metadata"]["annotations"];
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[CONFIG] = json!(config);
    annotations[STATUS] = json!("injected");
}

fn put_first(spec: &mut Value, key: &str, mut items: Vec<Value>) {
    items.extend(spec[key].as_array().cloned().unwrap_or_default());
    spec[key] = Value::Array(items);
}

/// The difference of two pods as a JSON patch (RFC 6902): whole members, because that is all that [`inject`] changes.
pub fn patch(before: &Value, after: &Value) -> Value {
    const MEMBERS: [&str; 4] =
        ["/metadata/annotations", "/spec/initContainers", "/spec/containers", "/spec/volumes"];
    let changed = MEMBERS.iter().filter(|path| before.pointer(path) != after.pointer(path));
    // "add" replaces a member that is there (section 4.1).
    changed
        .filter_map(|path| Some(json!({"op": "add", "path": path, "value": after.pointer(path)?})))
        .collect()
}

#[cfg(test)]
mod tests;
