//! What of a policy was used, as the lines of an audit trail tell it.
//!
//! Reads lines that somebody else found and checked; counts what inbound sidecars allowed by a rule. Allowed requests are
//! never coalesced in the trail, so the counts are exact for the time that it covers.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Allowed requests by identity, role and permission.
#[derive(Debug, Default)]
pub struct Usage {
    since: Option<String>,
    service: Option<String>,
    uses: BTreeMap<(String, String, String), Use>,
    services: BTreeSet<String>,
    first: Option<String>,
}

/// How often something was used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Use {
    /// How many requests.
    pub count: u64,
    /// The time of the last one, RFC 3339.
    pub last: Option<String>,
}

/// The members of an event that matter here.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    time: String,
    #[serde(default)]
    instance: Instance,
    #[serde(default)]
    conn: Conn,
    #[serde(default)]
    subject: Subject,
    decision: Option<Decision>,
}

#[derive(Deserialize, Default)]
struct Instance {
    #[serde(default)]
    service: String,
}

#[derive(Deserialize, Default)]
struct Conn {
    direction: Option<String>,
}

#[derive(Deserialize, Default)]
struct Subject {
    spiffe_id: Option<String>,
}

#[derive(Deserialize)]
struct Decision {
    outcome: Option<String>,
    role: Option<String>,
    rule: Option<String>,
}

impl Usage {
    /// Counts events from `since` on: an RFC 3339 time in UTC, as events have it.
    pub fn since(since: Option<String>) -> Self {
        Self { since, ..Self::default() }
    }

    /// Counts only events of the service called `service`.
    pub fn of_service(mut self, service: Option<String>) -> Self {
        self.service = service;
        self
    }

    /// Looks at one line of a trail. What is no event, or another kind of event, is passed over.
    pub fn add(&mut self, line: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Event>(line) else { return };
        // Both are shown to people: a trail that was changed must not command their terminal.
        let is_time = event.time.bytes().all(|b| b.is_ascii_digit() || b"-:.TZ".contains(&b));
        if !is_time || event.instance.service.contains(char::is_control) {
            return;
        }
        if self.first.as_ref().is_none_or(|first| event.time < *first) {
            self.first = Some(event.time.clone());
        }
        let is_use = event.kind == "access.decision" && event.conn.direction.as_deref() == Some("inbound");
        // Events have nine digits of a second and `since` may have none, so whole seconds are compared as text.
        let seconds = |time: &str| time.get(..19).map(str::to_owned);
        let is_wanted = self.since.as_ref().is_none_or(|since| seconds(&event.time) >= seconds(since))
            && self.service.as_ref().is_none_or(|service| event.instance.service == *service);
        let Some(Decision { outcome, role: Some(role), rule: Some(rule) }) = event.decision else { return };
        let Some(id) = event.subject.spiffe_id else { return };
        if !is_use || !is_wanted || outcome.as_deref() != Some("allow") {
            return;
        }
        self.services.insert(event.instance.service);
        let used = self.uses.entry((id, role, rule)).or_default();
        used.count += 1;
        used.last = used.last.take().max(Some(event.time));
    }

    /// The time of the trail's first event.
    pub fn first(&self) -> Option<&str> {
        self.first.as_deref()
    }

    /// The services whose events were counted.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(String::as_str)
    }

    /// Identity, role and permission of everything that was used.
    pub(super) fn all(&self) -> impl Iterator<Item = (&(String, String, String), &Use)> {
        self.uses.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time: &str, direction: &str, outcome: &str, service: &str) -> String {
        format!(
            r#"{{"type":"access.decision","time":"{time}","conn":{{"direction":"{direction}"}},"instance":{{"service":"{service}"}},
            "subject":{{"spiffe_id":"spiffe://d/w"}},"decision":{{"outcome":"{outcome}","role":"r","rule":"p"}}}}"#
        )
    }

    /// If this fails, a review counts denials, calls that went out, another service's events or old ones as use.
    #[test]
    fn only_what_an_inbound_sidecar_of_the_service_allowed_in_time_is_use() {
        let mut usage = Usage::since(Some("2026-01-02T00:00:00Z".into())).of_service(Some("s".into()));
        for text in [
            line("2026-01-02T00:00:00.5Z", "inbound", "allow", "s"),
            line("2026-01-03T00:00:00Z", "inbound", "allow", "s"),
            line("2026-01-01T23:59:59.9Z", "inbound", "allow", "s"),
            line("2026-01-03T00:00:00Z", "outbound", "allow", "s"),
            line("2026-01-03T00:00:00Z", "inbound", "deny", "s"),
            line("2026-01-03T00:00:00Z", "inbound", "allow", "t"),
            "no event".to_owned(),
        ] {
            usage.add(text.as_bytes());
        }
        let all: Vec<_> = usage.all().map(|(_, used)| used.clone()).collect();
        assert_eq!(all, [Use { count: 2, last: Some("2026-01-03T00:00:00Z".into()) }]);
        assert_eq!((usage.first(), usage.services().count()), (Some("2026-01-01T23:59:59.9Z"), 1));
    }
}
