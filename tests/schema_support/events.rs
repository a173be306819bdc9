//! The published schema of audit events, and what it says of an event.

use std::sync::LazyLock;

use serde_json::Value;

use super::accepts;

pub static SCHEMA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../docs/schema/audit-event.json")).unwrap());

/// The types that the schema knows, in its order.
pub fn types() -> Vec<&'static str> {
    let refs = SCHEMA["oneOf"].as_array().unwrap().iter();
    refs.map(|one| one["$ref"].as_str().unwrap().trim_start_matches("#/$defs/")).collect()
}

/// Whether the schema takes the event. The type names the only alternative that can.
pub fn takes(event: &Value) -> bool {
    let kind = event["type"].as_str().unwrap_or_default();
    types().contains(&kind) && accepts(&SCHEMA, &SCHEMA["$defs"][kind], event)
}

/// Fails the test when the event is not as the published schema says.
pub fn judge(event: &Value) {
    assert!(takes(event), "docs/schema/audit-event.json does not take this event: {event:#}");
}
