//! One line a person can read for each event, as `audit tail` prints it.
//!
//! Owns the wording. Text of events may come from a peer, so nothing is printed that a terminal could take for a command.

use std::fmt::Write;

use serde_json::Value;

use super::query::Row;

/// The colours of a summary; none when the output is no terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// ANSI colours.
    Colour,
    /// Text alone.
    Plain,
}

/// Summarises one line of a spool or a store, such as
/// `2026-11-20T14:03:22.118Z allow GET records.clinic/fhir/Patient/{id} by spiffe://... (rule: read-patient) 8d0c`.
pub fn summary(line: &[u8], paint: Paint) -> String {
    let Ok(event) = serde_json::from_slice::<Value>(line) else {
        return painted("unreadable line: run `phiward audit verify`", "31", paint);
    };
    let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or("");
    let number = |path: &str| event.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let time = text("/time");
    let mut out = format!("{}Z ", time.get(..23).unwrap_or(time).trim_end_matches('Z'));
    let service = text("/instance/service");
    // Writing to a String cannot fail.
    let _ = match text("/type") {
        "access.decision" => decision(&mut out, &event, paint),
        "access.complete" => {
            let status = event.pointer("/response/status").map_or("no answer".to_owned(), Value::to_string);
            let aborted = event.pointer("/response/aborted").and_then(Value::as_bool) == Some(true);
            let tint = if aborted || number("/response/status") >= 500 { "33" } else { "2" };
            let millis = number("/response/duration_us") as f64 / 1000.0;
            let head = painted(&format!("done {status}"), tint, paint);
            let (sent, received) = (number("/response/response_bytes"), number("/response/request_bytes"));
            write!(out, "{head} {millis:.1} ms, {received} bytes in, {sent} bytes out")
                .and_then(|()| if aborted { out.write_str(", aborted") } else { Ok(()) })
                .and_then(|()| optional(&mut out, " because ", text("/response/reason")))
        }
        "conn.rejected" => {
            let head = painted("refused", "31", paint);
            write!(out, "{head} connection from {}", text("/conn/peer_addr"))
                .and_then(|()| optional(&mut out, " to ", text("/conn/destination")))
                .and_then(|()| write!(out, ": {}", text("/decision/reason")))
                .and_then(|()| optional(&mut out, " by ", text("/subject/spiffe_id")))
        }
        "audit.summary" => {
            let head = painted(
                &format!("{} {} more", text("/decision/outcome"), number("/summary/count")),
                "31",
                paint,
            );
            let of = if text("/summary/of") == "conn.rejected" { "connections" } else { "requests" };
            let since = text("/summary/first").get(11..23).unwrap_or("?");
            write!(out, "{head} {of} since {since} ({}", text("/decision/reason"))
                .and_then(|()| optional(&mut out, ": ", text("/decision/rule")))
                .and_then(|()| out.write_str(")"))
                .and_then(|()| optional(&mut out, " by ", text("/subject/spiffe_id")))
        }
        "audit.gap" => {
            let head = painted("audit.gap", "31", paint);
            let (allowed, denied) = (number("/gap/allowed"), number("/gap/denied"));
            write!(out, "{head} {allowed} requests passed and {denied} were refused without an event")
        }
        kind => {
            let known = ["/policy", "/svid", "/open", "/close", "/quarantine"];
            let detail =
                known.iter().find_map(|path| event.pointer(path)).map(Value::to_string).unwrap_or_default();
            write!(out, "{} {detail}", painted(kind, "36", paint))
        }
    };
    let _ = write!(out, " [{service}").and_then(|()| optional(&mut out, " ", text("/request/id")));
    out.push(']');
    safe(&out, paint)
}

/// Summarises a request: its decision, and how it ended where that is known.
pub fn request_summary(row: &Row, paint: Paint) -> String {
    let mut out = summary(&row.event, paint);
    let completion = row.completion.as_deref().and_then(|line| serde_json::from_slice::<Value>(line).ok());
    if let Some(completion) = completion {
        let number = |path: &str| completion.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        let status = completion.pointer("/response/status").map_or("no answer".to_owned(), Value::to_string);
        let millis = number("/response/duration_us") as f64 / 1000.0;
        let _ = write!(out, " -> {status} {millis:.1} ms, {} bytes out", number("/response/response_bytes")); // to a String
        if completion.pointer("/response/aborted").and_then(Value::as_bool) == Some(true) {
            out.push_str(", aborted");
        }
    }
    out
}

fn decision(out: &mut String, event: &Value, paint: Paint) -> std::fmt::Result {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or("");
    let outcome = text("/decision/outcome");
    let tint = if outcome == "allow" { "32" } else { "31" };
    write!(out, "{} {}", painted(outcome, tint, paint), asked(event))?;
    optional(out, " by ", text("/subject/spiffe_id"))?;
    write!(out, " ({}", text("/decision/reason"))?;
    optional(out, ": ", text("/decision/rule"))?;
    out.push(')');
    let shadow = text("/decision/shadow/outcome");
    if !shadow.is_empty() {
        write!(out, " [in shadow: {shadow}, {}", text("/decision/shadow/reason"))?;
        optional(out, ": ", text("/decision/shadow/rule"))?;
        out.push(']');
    }
    Ok(())
}

/// What was asked for: a request, or a stream.
fn asked(event: &Value) -> String {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or("");
    if event.get("http").is_none() {
        let names = [text("/conn/service"), text("/conn/destination"), text("/conn/listener")];
        return format!("TCP {}", names.into_iter().find(|name| !name.is_empty()).unwrap_or("?"));
    }
    let method = event.pointer("/http/method").and_then(Value::as_str).unwrap_or("?");
    // An outbound call is to a configured service, or to where the app meant it to go; an inbound one is to a host.
    let names = [text("/http/service"), text("/http/host"), text("/conn/destination"), text("/http/host_h")];
    let host = names.into_iter().find(|name| !name.is_empty()).unwrap_or("");
    let path = match [text("/http/template"), text("/http/target_h")] {
        ["", ""] => String::new(),
        ["", target] => format!("/({target})"),
        [template, _] => template.to_owned(),
    };
    format!("{method} {host}{path}")
}

fn optional(out: &mut String, before: &str, text: &str) -> std::fmt::Result {
    if text.is_empty() { Ok(()) } else { write!(out, "{before}{text}") }
}

fn painted(text: &str, colour: &str, paint: Paint) -> String {
    match paint {
        Paint::Colour => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
        Paint::Plain => text.to_owned(),
    }
}

/// Replaces control characters, but for the colours of this module.
fn safe(text: &str, paint: Paint) -> String {
    if paint == Paint::Plain {
        return text.replace(char::is_control, "\u{fffd}");
    }
    let mut out = String::with_capacity(text.len());
    for (at, part) in text.split('\u{1b}').enumerate() {
        let colour = part.strip_prefix('[').and_then(|rest| rest.split_once('m')).map(|(digits, _)| digits);
        if at > 0 {
            let ours = colour.is_some_and(|digits| ["0", "2", "31", "32", "33", "36"].contains(&digits));
            out.push(if ours { '\u{1b}' } else { '\u{fffd}' });
        }
        out.push_str(&part.replace(char::is_control, "\u{fffd}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: &str = r#"{"type":"access.decision","time":"2026-11-20T14:03:22.118204771Z","instance":{"service":"records"},
        "request":{"id":"8d0c"},"subject":{"spiffe_id":"spiffe://h/web"},"http":{"method":"GET","host":"records.clinic","template":"/fhir/Patient/{id}"},
        "decision":{"outcome":"deny","reason":"deny_rule","rule":"no\u001b[2Jadmin"}}"#;

    /// If this fails, the person on call cannot read what happened at a glance.
    #[test]
    fn a_decision_reads_as_a_sentence() {
        let line = summary(
            &DENIED.as_bytes().iter().copied().filter(|b| *b != b'\n').collect::<Vec<_>>(),
            Paint::Plain,
        );
        let want = "2026-11-20T14:03:22.118Z deny GET records.clinic/fhir/Patient/{id} by spiffe://h/web \
                    (deny_rule: no\u{fffd}[2Jadmin) [records 8d0c]";
        assert_eq!(line, want);
    }

    /// If this fails, who looks for what is called and not named cannot tell where it went.
    #[test]
    fn what_goes_past_every_name_reads_with_its_destination() {
        let asked = r#"{"type":"access.decision","time":"2026-11-20T14:03:22.118204771Z","instance":{"service":"web"},"conn":{"destination":"10.96.0.7:80"},
            "http":{"method":"GET","target_h":"k1:9c"},"decision":{"outcome":"allow","reason":"passthrough"}}"#;
        let want = "2026-11-20T14:03:22.118Z allow GET 10.96.0.7:80/(k1:9c) (passthrough) [web]";
        assert_eq!(summary(asked.as_bytes(), Paint::Plain), want);
        let refused = r#"{"type":"conn.rejected","time":"2026-11-20T14:03:22.118204771Z","instance":{"service":"web"},
            "conn":{"destination":"10.96.0.7:80","peer_addr":"10.244.0.3"},"decision":{"reason":"unknown_destination"}}"#;
        let want = "2026-11-20T14:03:22.118Z refused connection from 10.244.0.3 to 10.96.0.7:80: unknown_destination [web]";
        assert_eq!(summary(refused.as_bytes(), Paint::Plain), want);
    }

    /// If this fails, a peer's text can clear or rewrite the terminal of who reads the trail.
    #[test]
    fn no_event_commands_the_terminal() {
        let line = summary(DENIED.as_bytes(), Paint::Colour);
        assert!(line.contains("\u{1b}[31mdeny\u{1b}[0m"), "{line:?}");
        assert_eq!(line.matches('\u{1b}').count(), 2, "{line:?}");
        assert_eq!(summary(b"\x1b[2J", Paint::Plain), "unreadable line: run `phiward audit verify`");
    }
}
