//! What a pod's annotations ask for.

use serde_json::Value;

use super::{PREFIX, Refusal};
use crate::config::{IdentityVolume, Injection};
use crate::kubernetes::capture::Network;
use crate::yaml::closest;

/// A pod's wishes, with the defaults for what it does not say.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) inject: bool,
    pub(super) ports: Vec<Port>,
    pub(super) permissive: bool,
    pub(super) passthrough: bool,
    pub(super) capture: bool,
    pub(super) policy: String,
    pub(super) identity: IdentityVolume,
    /// `outbound.services`, as JSON.
    pub(super) services: Value,
    pub(super) exclude_inbound: Vec<u16>,
    pub(super) exclude_outbound: Vec<u16>,
    pub(super) exclude_networks: Vec<String>,
    pub(super) cpu: String,
    pub(super) memory: String,
}

/// A port of the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) spoken: Spoken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Http,
    H2c,
    Tcp,
}

const KNOWN: [&str; 13] = [
    "inject",
    "ports",
    "mode",
    "unknown",
    "capture",
    "policy",
    "identity",
    "services",
    "exclude-inbound-ports",
    "exclude-outbound-ports",
    "exclude-outbound-cidrs",
    "cpu",
    "memory",
];

impl Asked {
    pub(super) fn read(pod: &Value, injection: &Injection) -> Result<Self, Refusal> {
        let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
        for key in
            annotations.into_iter().flat_map(|all| all.keys()).filter_map(|key| key.strip_prefix(PREFIX))
        {
            if !KNOWN.contains(&key) {
                let hint = closest(key, KNOWN).map_or_else(
                    || format!("the known ones are {}", KNOWN.join(", ")),
                    |near| format!("did you mean {PREFIX}{near}?"),
                );
                return Err(Refusal::new(format!("there is no annotation {PREFIX}{key}; {hint}")));
            }
        }
        let text = |key: &str| {
            annotations.and_then(|all| all.get(&format!("{PREFIX}{key}"))).and_then(Value::as_str)
        };
        let word = |key: &str, no: &str, yes: &str, default: bool| match text(key) {
            None => Ok(default),
            Some(said) if said == yes => Ok(true),
            Some(said) if said == no => Ok(false),
            Some(said) => {
                Err(Refusal::new(format!("{PREFIX}{key} is `{said}`; it can be `{yes}` or `{no}`")))
            }
        };
        let exclude_inbound = numbers("exclude-inbound-ports", text("exclude-inbound-ports"))?;
        let ports = match text("ports") {
            Some(list) => items(list).map(Port::parse).collect::<Result<_, _>>()?,
            None => declared(pod, &exclude_inbound),
        };
        let exclude_networks: Vec<String> =
            items(text("exclude-outbound-cidrs").unwrap_or("")).map(str::to_owned).collect();
        for network in &exclude_networks {
            let parsed: Result<Network, String> = network.parse();
            parsed.map_err(|error| {
                Refusal::new(format!("{PREFIX}exclude-outbound-cidrs: `{network}`: {error}"))
            })?;
        }
        let identity = text("identity").map(str::parse).transpose();
        let identity: Option<IdentityVolume> =
            identity.map_err(|error: String| Refusal::new(format!("{PREFIX}identity: {error}")))?;
        let services = text("services").map(serde_json::from_str).transpose();
        let services: Option<Value> = services.map_err(|error| {
            Refusal::new(format!(
                "{PREFIX}services is no JSON ({error}); write outbound.services as a JSON list"
            ))
        })?;
        let asked = Self {
            inject: word("inject", "false", "true", true)?,
            permissive: word("mode", "strict", "permissive", false)?,
            passthrough: word("unknown", "deny", "passthrough", false)?,
            capture: word("capture", "false", "true", true)?,
            policy: text("policy").unwrap_or(&injection.policy).to_owned(),
            identity: identity.unwrap_or_else(|| injection.identity.clone()),
            services: services.unwrap_or_else(|| Value::Array(Vec::new())),
            exclude_outbound: numbers("exclude-outbound-ports", text("exclude-outbound-ports"))?,
            cpu: text("cpu").unwrap_or(&injection.cpu).to_owned(),
            memory: text("memory").unwrap_or(&injection.memory).to_owned(),
            ports,
            exclude_inbound,
            exclude_networks,
        };
        asked.is_consistent()?;
        Ok(asked)
    }

    fn is_consistent(&self) -> Result<(), Refusal> {
        for (at, port) in self.ports.iter().enumerate() {
            if self.ports[..at].iter().any(|other| other.number == port.number)
                || self.exclude_inbound.contains(&port.number)
            {
                return Err(Refusal::new(format!("port {} is named twice", port.number)));
            }
            if (15000..15100).contains(&port.number) {
                return Err(Refusal::new(format!(
                    "port {} is the sidecar's own: it has those from 15000 to 15099",
                    port.number
                )));
            }
        }
        if self.ports.len() > 8 {
            return Err(Refusal::new(
                "more than 8 ports; name those that callers use with phiward.dev/ports",
            ));
        }
        Ok(())
    }
}

impl Port {
    /// `8080`, `8080/h2c` or `5432/tcp`.
    fn parse(text: &str) -> Result<Self, Refusal> {
        let (number, spoken) = text.split_once('/').unwrap_or((text, "http"));
        let spoken = match spoken {
            "http" => Some(Spoken::Http),
            "h2c" => Some(Spoken::H2c),
            "tcp" => Some(Spoken::Tcp),
            _ => None,
        };
        let number = number.parse().ok().filter(|number: &u16| *number > 0);
        number.zip(spoken).map(|(number, spoken)| Self { number, spoken }).ok_or_else(|| {
            Refusal::new(format!("{PREFIX}ports holds `{text}`; write a port with /http, /h2c or /tcp, such as 8080 or 5432/tcp"))
        })
    }
}

/// The TCP ports that the pod's containers declare, by their appProtocol's and names' habits all HTTP.
fn declared(pod: &Value, excluded: &[u16]) -> Vec<Port> {
    let mut found = Vec::new();
    for container in pod.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten() {
        for port in container["ports"].as_array().into_iter().flatten() {
            let number = port["containerPort"].as_u64().and_then(|number| u16::try_from(number).ok());
            let tcp = port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
            if let Some(number) = number.filter(|number| tcp && !excluded.contains(number)) {
                found.push(Port { number, spoken: Spoken::Http });
            }
        }
    }
    found
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn numbers(key: &str, list: Option<&str>) -> Result<Vec<u16>, Refusal> {
    let number = |text: &str| {
        let number = text.parse().ok().filter(|number: &u16| *number > 0);
        number.ok_or_else(|| Refusal::new(format!("{PREFIX}{key} holds `{text}`, which is no port")))
    };
    items(list.unwrap_or("")).map(number).collect()
}
