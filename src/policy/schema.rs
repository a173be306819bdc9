//! The policy file as a JSON Schema (draft 2020-12), so that editors complete and check it.
//!
//! The reader in `document` is what decides; this says the same as far as a schema can. A test asks the reader which keys it
//! knows in each mapping and compares.

use serde_json::{Value, json};

use super::method::Method;
use super::{Outcome, Reason};

/// Its name, as its `$id`.
const ID: &str = "urn:phiward:schema:policy:v1";

/// The schema of a file of `kind: Policy`.
pub fn schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": "phiward policy",
        "description": "Who may do what at one service. Everything that is not granted is denied.",
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {
            "apiVersion": {"const": "phiward/v1"},
            "kind": {"const": "Policy"},
            "metadata": {"$ref": "#/$defs/metadata"},
            "mode": mode("`shadow`: decide and record, block nothing."),
            "service": {"$ref": "#/$defs/service"},
            "path": {"$ref": "#/$defs/path"},
            "roles": {
                "description": "Named lists of permissions.",
                "type": "object",
                "propertyNames": {"$ref": "#/$defs/name"},
                "additionalProperties": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/permission"}},
            },
            "bindings": list("Who has which role.", "binding"),
            "deny": list("What is never allowed, whatever the roles say.", "deny"),
            "tests": list("Requests with what must come of them; one that fails keeps the file out.", "test"),
        },
        "$defs": definitions(),
    })
}

fn definitions() -> Value {
    let mut all = json!({
        "metadata": object(&["name", "revision"], json!({
            "name": {"$ref": "#/$defs/name"},
            "revision": label("Stands in every audit event. Quote it, so that it is text."),
            "owner": label("Who answers for the file."),
            "review": object(&["by", "due"], json!({
                "by": label("Who reviews the file."),
                "due": time("`validate` warns after it."),
            })),
        })),
        "service": object(&[], json!({
            "hosts": named_list("hosts", "The names under which the service is called; requests for another are denied."),
            "health": named_list("paths", "`GET` of exactly these needs no identity."),
        })),
        "path": object(&[], json!({
            "encoded_slash": {"enum": ["reject", "preserve"], "description": "`preserve` keeps %2F as part of a segment."},
            "matrix_params": {"enum": ["reject", "allow"], "description": "`allow` keeps ';' as part of a segment."},
            "max_bytes": {
                "description": "Longest path, without the query: 16 to 65536 bytes.",
                "anyOf": [
                    {"type": "integer", "minimum": 16, "maximum": 65_536},
                    {"type": "string", "pattern": "^[0-9]+(B|KiB)?$"},
                ],
            },
        })),
        "permission": permission(),
        "binding": object(&["role", "identities"], json!({
            "role": {"$ref": "#/$defs/name"},
            "identities": {"$ref": "#/$defs/identities"},
            "valid": {
                "description": "When it holds; at least one of the two.",
                "type": "object",
                "additionalProperties": false,
                "minProperties": 1,
                "properties": {"from": time("A date begins with its first second, UTC."), "until": until()},
            },
        })),
        "deny": deny(),
        "test": test(),
    });
    if let (Some(all), Value::Object(parts)) = (all.as_object_mut(), parts()) {
        all.extend(parts);
    }
    all
}

fn permission() -> Value {
    let mut permission = object(
        &["name"],
        json!({
            "name": {"$ref": "#/$defs/name", "description": "Unique in its role; stands in events as `decision.rule`."},
            "mode": mode("`shadow`: it grants nothing, and events tell what it would grant."),
            "tcp": object(&["listeners"], json!({"listeners": {
                "type": "array", "minItems": 1, "uniqueItems": true, "items": {"$ref": "#/$defs/name"},
            }})),
            "methods": {"$ref": "#/$defs/methods"},
            "paths": {"$ref": "#/$defs/paths"},
            "hosts": {"$ref": "#/$defs/hosts"},
            "headers": {"$ref": "#/$defs/headers"},
            "query": {"$ref": "#/$defs/query"},
        }),
    );
    let http = ["methods", "paths", "hosts", "headers", "query"];
    let any_of_http: Vec<_> = http.iter().map(|key| json!({"required": [key]})).collect();
    permission["oneOf"] = json!([
        {"required": ["methods", "paths"], "not": {"required": ["tcp"]}},
        {"required": ["tcp"], "not": {"anyOf": any_of_http}},
    ]);
    permission
}

fn deny() -> Value {
    let mut deny = object(
        &["name"],
        json!({
            "name": {"$ref": "#/$defs/name"},
            "paths": {"$ref": "#/$defs/paths"},
            "methods": {"$ref": "#/$defs/methods"},
            "hosts": {"$ref": "#/$defs/hosts"},
            "identities": {"$ref": "#/$defs/identities"},
            "until": until(),
            "headers": {"$ref": "#/$defs/headers"},
            "reason": label("Shown by `explain`; not in events."),
            "mode": mode("`shadow`: it denies nothing, and events tell what it would deny."),
        }),
    );
    let one_of = ["paths", "methods", "hosts", "identities", "headers"];
    deny["anyOf"] = one_of.iter().map(|key| json!({"required": [key]})).collect();
    deny
}

fn test() -> Value {
    let outcomes = [Outcome::Allow, Outcome::Deny, Outcome::Reject].map(Outcome::as_str);
    let reasons: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    object(
        &["as", "request", "expect"],
        json!({
            "as": {
                "description": "Who asks; `any` when the result must not depend on it.",
                "type": "string",
                "pattern": "^(any|spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+)$",
            },
            "request": {"description": "A method and a target, or TCP and a listener.", "type": "string", "pattern": "^[^ ]+ ."},
            "headers": {
                "description": "Header lines: a value, or a list with the value of each line.",
                "type": "object",
                "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            },
            "host": {"type": "string"},
            "now": time("When it is made, instead of now."),
            "expect": {"enum": outcomes},
            "shadow": {"enum": [Outcome::Allow.as_str(), Outcome::Deny.as_str()], "description": "What must come of it when rules in shadow count too."},
            "rule": {"$ref": "#/$defs/name"},
            "reason": {"enum": reasons},
        }),
    )
}

/// What several parts are made of.
fn parts() -> Value {
    let methods = Method::ALL.map(Method::as_str);
    let param = json!({"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.:$-]{0,63}$"});
    let params = json!({"type": "array", "uniqueItems": true, "items": param});
    let mut some_params = params.clone();
    some_params["minItems"] = json!(1);
    let value = json!({"type": "string", "minLength": 1, "maxLength": 256});
    json!({
        "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        "methods": {
            "description": "There is no wildcard, and HEAD is granted only where it is listed.",
            "type": "array", "minItems": 1, "uniqueItems": true, "items": {"enum": methods},
        },
        "paths": {
            "description": "`*` and `{name}` stand for one segment, a last `**` for zero or more.",
            "type": "array", "minItems": 1, "uniqueItems": true, "items": {"type": "string", "pattern": "^/[^?#]*$"},
        },
        "hosts": {
            "description": "Lower case, without port and wildcard.",
            "type": "array", "minItems": 1, "uniqueItems": true, "items": {"type": "string", "pattern": "^[^A-Z/*]+$"},
        },
        "identities": {
            "description": "SPIFFE IDs; `*` stands for one segment, a last `**` for one or more.",
            "type": "array", "minItems": 1, "uniqueItems": true,
            "items": {"type": "string", "pattern": "^spiffe://[a-z0-9._-]+(/([A-Za-z0-9._-]+|\\*))*(/\\*\\*)?$"},
        },
        "headers": {
            "description": "The values that each header may have.",
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[a-z][a-z0-9-]{0,63}$"},
            "additionalProperties": {
                "type": "array", "minItems": 1, "uniqueItems": true,
                "items": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[^,]+$"},
            },
        },
        "query": {
            "description": "Which query parameters there may be; each that is named, once.",
            "type": "object",
            "additionalProperties": false,
            "minProperties": 1,
            "properties": {
                "allow": {"description": "These and no others; an empty list lets none pass.", "allOf": [params]},
                "require_any": {"description": "At least one of these, with a value.", "allOf": [some_params]},
                "require": {
                    "description": "Each of these, with this value or one of the list.",
                    "type": "object", "minProperties": 1, "propertyNames": param,
                    "additionalProperties": {"anyOf": [value, {"type": "array", "minItems": 1, "uniqueItems": true, "items": value}]},
                },
                "max": {
                    "description": "If it is there, a whole number up to this.",
                    "type": "object", "minProperties": 1, "propertyNames": param,
                    "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 999_999_999_999_999_999_u64},
                },
            },
        },
    })
}

/// A mapping with these keys and no others.
fn object(required: &[&str], properties: Value) -> Value {
    let mut object = json!({"type": "object", "additionalProperties": false, "properties": properties});
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn list(description: &str, of: &str) -> Value {
    json!({"description": description, "type": "array", "minItems": 1, "items": {"$ref": format!("#/$defs/{of}")}})
}

fn named_list(of: &str, description: &str) -> Value {
    json!({"$ref": format!("#/$defs/{of}"), "description": description})
}

fn mode(description: &str) -> Value {
    json!({"enum": ["enforce", "shadow"], "description": description})
}

fn label(description: &str) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 256, "description": description})
}

fn until() -> Value {
    time("A date ends with its last second, UTC.")
}

fn time(description: &str) -> Value {
    json!({
        "type": "string",
        "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9:.]+(Z|[+-][0-9]{2}:[0-9]{2}))?$",
        "description": description,
    })
}
