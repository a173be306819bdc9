//! Manifests: YAML to JSON values and back, and where in a document its pods are.

use std::fmt::Write;

use serde_json::{Map, Number, Value, json};

use crate::yaml::{self, Node, Problem};

/// The documents of a file.
///
/// # Errors
/// The first document that is no YAML, its number and its problem.
pub fn documents(text: &str) -> Result<Vec<Value>, (usize, Problem)> {
    let mut all = Vec::new();
    for (number, document) in split(text).into_iter().enumerate() {
        let blank = document.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        if !blank {
            all.push(value(&yaml::parse(document.as_bytes()).map_err(|problem| (number + 1, problem))?));
        }
    }
    Ok(all)
}

/// At lines that are `---`. A line of a block scalar that is just that would be indented.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents
}

/// A node as JSON, by YAML's core schema (YAML 1.2.2, section 10.3).
pub fn value(node: &Node) -> Value {
    match &node.value {
        yaml::Value::Seq(items) => Value::Array(items.iter().map(value).collect()),
        yaml::Value::Map(entries) => {
            entries.iter().map(|entry| (entry.key.clone(), value(&entry.value))).collect::<Map<_, _>>().into()
        }
        yaml::Value::Scalar { text, plain: false } => json!(text),
        yaml::Value::Scalar { text, plain: true } => match text.as_str() {
            "" | "~" | "null" => Value::Null,
            "true" => json!(true),
            "false" => json!(false),
            text => {
                let number = text.parse::<i64>().map(Number::from).ok();
                let float = || {
                    text.parse().ok().filter(|_| text.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
                };
                number
                    .or_else(|| float().and_then(Number::from_f64))
                    .map_or_else(|| json!(text), Value::Number)
            }
        },
    }
}

/// Documents as YAML, strings in double quotes where they could be read as anything else.
pub fn text(documents: &[Value]) -> String {
    let mut out = String::new();
    for (number, document) in documents.iter().enumerate() {
        if number > 0 {
            out.push_str("---\n");
        }
        write_block(&mut out, document, 0, false);
    }
    out
}

fn write_block(out: &mut String, value: &Value, depth: usize, inline: bool) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (at, (key, value)) in map.iter().enumerate() {
                let pad = if inline && at == 0 { "" } else { &pad };
                // Writing to a String cannot fail.
                let _ = write!(out, "{pad}{}:", scalar(&json!(key)));
                write_after_key(out, value, depth);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let _ = write!(out, "{pad}- ");
                write_block(out, item, depth + 1, true);
            }
        }
        value => {
            let _ = writeln!(out, "{}", scalar(value));
        }
    }
}

fn write_after_key(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            write_block(out, value, depth + 1, false);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write_block(out, value, depth, false);
        }
        value => {
            out.push(' ');
            write_block(out, value, depth, true);
        }
    }
}

fn scalar(value: &Value) -> String {
    let simple = |text: &str| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(legal)
            && !words.contains(&text.to_ascii_lowercase().as_str())
    };
    match value {
        Value::String(text) if simple(text) => text.clone(),
        value => value.to_string(), // JSON is YAML
    }
}

/// The pods that `document` is or makes: each is an object with `metadata` and `spec`.
pub fn pods(document: &mut Value) -> Vec<&mut Value> {
    let path = match document["kind"].as_str() {
        Some("Pod") => "",
        Some("Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" | "ReplicationController") => {
            "/spec/template"
        }
        Some("CronJob") => "/spec/jobTemplate/spec/template",
        Some("List") => {
            let items = document.get_mut("items").and_then(Value::as_array_mut);
            return items.into_iter().flatten().flat_map(pods).collect();
        }
        _ => return Vec::new(),
    };
    document.pointer_mut(path).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, what is applied to a cluster is not what was written.
    #[test]
    fn what_is_read_is_written_again() {
        let source = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations: {\"b\": \"true\", c: \"1\"}\nspec:\n  list:\n  - x: 1\n    k: [1, 2.5, null, true, \"no\"]\n  - text: |\n      two\n      lines\n  empty: {}\n  none: []\n---\n# nothing\n---\nkind: Service\n";
        let documents = documents(source).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0]["spec"]["list"][1]["text"], "two\nlines\n");
        let again = text(&documents);
        assert_eq!(super::documents(&again).unwrap(), documents, "{again}");
    }
}
