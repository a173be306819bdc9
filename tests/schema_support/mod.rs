//! What the tests of published schemas share: files as an editor reads them, and a judge for the keywords in use.

#![allow(dead_code)] // each test binary uses a part of this
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod events;

use std::cell::RefCell;
use std::collections::BTreeMap;

use phiward::yaml::{self, Node};
use serde_json::{Map, Value, json};

/// A node as an editor's YAML reader gives it.
pub fn as_json(node: &Node) -> Value {
    match &node.value {
        yaml::Value::Map(entries) => Value::Object(
            entries.iter().map(|entry| (entry.key.clone(), as_json(&entry.value))).collect::<Map<_, _>>(),
        ),
        yaml::Value::Seq(items) => items.iter().map(as_json).collect(),
        yaml::Value::Scalar { text, plain: true } => match text.as_str() {
            "true" => json!(true),
            "false" => json!(false),
            _ => text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number)),
        },
        yaml::Value::Scalar { text, .. } => json!(text),
    }
}

/// The keywords of draft 2020-12 that the schemas use.
pub fn accepts(root: &Value, schema: &Value, value: &Value) -> bool {
    if let Some(whatever) = schema.as_bool() {
        return whatever;
    }
    let rules = schema.as_object().unwrap();
    rules.iter().all(|(keyword, rule)| {
        let each = |list: &Value| -> Vec<bool> {
            list.as_array().unwrap().iter().map(|one| accepts(root, one, value)).collect()
        };
        let count = |list: Option<usize>, limit: &Value| {
            list.is_none_or(|count| count >= usize::try_from(limit.as_u64().unwrap()).unwrap())
        };
        match keyword.as_str() {
            "$ref" => {
                accepts(root, root.pointer(rule.as_str().unwrap().trim_start_matches('#')).unwrap(), value)
            }
            "type" => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "integer" => value.is_i64(),
                "boolean" => value.is_boolean(),
                other => panic!("{other}"),
            },
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "required" => value.as_object().is_none_or(|object| {
                rule.as_array().unwrap().iter().all(|key| object.contains_key(key.as_str().unwrap()))
            }),
            "properties" => value.as_object().is_none_or(|object| {
                object.iter().all(|(key, value)| rule.get(key).is_none_or(|rule| accepts(root, rule, value)))
            }),
            "additionalProperties" => value.as_object().is_none_or(|object| {
                let known = |key: &String| schema["properties"].get(key).is_some();
                object
                    .iter()
                    .filter(|(key, _)| !known(key))
                    .all(|(_, value)| rule != &json!(false) && accepts(root, rule, value))
            }),
            "propertyNames" => value
                .as_object()
                .is_none_or(|object| object.keys().all(|key| accepts(root, rule, &json!(key)))),
            "items" => {
                value.as_array().is_none_or(|items| items.iter().all(|item| accepts(root, rule, item)))
            }
            "minItems" => count(value.as_array().map(Vec::len), rule),
            "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= rule.as_u64().unwrap()),
            "minProperties" => count(value.as_object().map(Map::len), rule),
            "minLength" => count(value.as_str().map(str::len), rule),
            "maxLength" => value.as_str().is_none_or(|text| text.len() as u64 <= rule.as_u64().unwrap()),
            "uniqueItems" => value
                .as_array()
                .is_none_or(|items| (1..items.len()).all(|at| !items[..at].contains(&items[at]))),
            "minimum" => value.as_i64().is_none_or(|number| number >= rule.as_i64().unwrap()),
            "maximum" => value.as_i64().is_none_or(|number| number <= rule.as_i64().unwrap()),
            "oneOf" => each(rule).into_iter().filter(|accepted| *accepted).count() == 1,
            "anyOf" => each(rule).contains(&true),
            "allOf" => !each(rule).contains(&false),
            "not" => !accepts(root, rule, value),
            "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().unwrap(), text)),
            "description" | "title" | "$schema" | "$id" | "$defs" => true,
            other => panic!("the schema uses a keyword that this test does not know: {other}"),
        }
    })
}

thread_local! {
    static PATTERNS: RefCell<BTreeMap<String, regex::Regex>> = const { RefCell::new(BTreeMap::new()) };
}

/// Whether the pattern, which is one of our own, occurs in the text. `$` is the end of the text alone, as in ECMA 262.
fn matches(pattern: &str, text: &str) -> bool {
    PATTERNS.with_borrow_mut(|known| {
        let compiled =
            known.entry(pattern.to_owned()).or_insert_with_key(|pattern| regex::Regex::new(pattern).unwrap());
        compiled.is_match(text)
    })
}
