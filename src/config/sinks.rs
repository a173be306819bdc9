//! Reading `audit.sinks`: who gets the audit trail, how each knows the other, and which secrets that takes.

use std::collections::HashSet;
use std::time::Duration;

use rustls_pki_types::ServerName;

use super::model::{SinkConfig, SinkTrust};
use super::read::{Reading, Url};
use super::sidecar::transpose;
use crate::audit::{self, Credentials, ExtraHeader, HecOptions, SecretFile, SinkKind};
use crate::yaml::{Fields, Mark, Node, Value};

const TYPES: [&str; 5] = ["phiward", "ndjson", "otlp", "splunk_hec", "elasticsearch"];
const DEFAULT_INDEX: &str = "phiward-audit";
const DEFAULT_SOURCETYPE: &str = "phiward:audit";
const DEFAULT_ACK_TIMEOUT: Duration = Duration::from_secs(300);

pub(super) fn read_sinks(r: &Reading<'_>, node: &Node) -> Option<Vec<SinkConfig>> {
    let items = r.reader.list(node, "sinks")?;
    let mut names = HashSet::new();
    let read = items.iter().map(|item| {
        let sink = read_sink(r, item)?;
        if !names.insert(sink.sink.name.clone()) {
            r.reader.problem(item.at, format!("there is another sink called `{}`", sink.sink.name));
        }
        Some(sink)
    });
    read.collect::<Vec<_>>().into_iter().collect()
}

fn read_sink(r: &Reading<'_>, node: &Node) -> Option<SinkConfig> {
    // The type decides which keys there are, so it is looked at first.
    let word = type_word(node);
    let known = TYPES.into_iter().find(|known| Some(*known) == word);
    let what = known.map_or_else(|| "a sink".to_owned(), |known| format!("a sink of type `{known}`"));
    let mut f = r.fields(node, &what)?;
    let name = f.required("name").and_then(|n| r.name(n, "name"));
    let kind = f.required("type").and_then(|n| {
        if known.is_none() {
            r.reader.problem(n.at, format!("type must be one of {}", TYPES.join(", ")));
        }
        read_kind(r, &mut f, known?)
    });
    let url = f.required("endpoint").and_then(|n| Some((n.at, r.url(n, "endpoint")?)));
    let trust = url.as_ref().and_then(|(at, url)| read_trust(r, &mut f, known, *at, url));
    let credentials = match known {
        // The certificates show who is who on this one.
        Some("phiward") => Some(None),
        _ => read_credentials(r, &mut f, known, url.as_ref().map(|(_, url)| url)),
    };
    let headers = f.optional("headers").map_or(Some(Vec::new()), |n| read_headers(r, n));
    let required = f.optional("required").map_or(Some(true), |n| r.reader.bool(n, "required"));
    f.finish();
    let Url { https, endpoint, path } = url?.1;
    let endpoint = audit::Endpoint { https, host: endpoint.host, port: endpoint.port };
    let sink = audit::SinkConfig {
        name: name?,
        kind: kind?,
        endpoint,
        prefix: path,
        credentials: credentials?,
        headers: headers?,
        required: required?,
    };
    Some(SinkConfig { sink, trust: trust? })
}

fn type_word(node: &Node) -> Option<&str> {
    let Value::Map(entries) = &node.value else { return None };
    match &entries.iter().find(|entry| entry.key == "type")?.value.value {
        Value::Scalar { text, .. } => Some(text),
        _ => None,
    }
}

fn read_kind(r: &Reading<'_>, f: &mut Fields<'_, '_>, word: &str) -> Option<SinkKind> {
    match word {
        "phiward" => Some(SinkKind::Phiward),
        "ndjson" => Some(SinkKind::Ndjson),
        "otlp" => Some(SinkKind::Otlp),
        "elasticsearch" => {
            let index = f
                .optional("index")
                .map_or(Some(DEFAULT_INDEX.to_owned()), |n| read_index(r, n).map(str::to_owned));
            Some(SinkKind::Elasticsearch { index: index? })
        }
        _ => {
            let index = f.optional("index").map(|n| read_index(r, n).map(str::to_owned));
            let sourcetype = f
                .optional("sourcetype")
                .map_or(Some(DEFAULT_SOURCETYPE), |n| r.reader.string(n, "sourcetype"))
                .map(str::to_owned);
            let indexer_ack =
                f.optional("indexer_ack").map_or(Some(true), |n| r.reader.bool(n, "indexer_ack"));
            let range = Duration::from_secs(1)..=Duration::from_secs(3600);
            let ack_timeout = f
                .optional("ack_timeout")
                .map_or(Some(DEFAULT_ACK_TIMEOUT), |n| r.reader.duration(n, "ack_timeout", range));
            Some(SinkKind::SplunkHec(HecOptions {
                index: transpose(index)?,
                sourcetype: sourcetype?,
                indexer_ack: indexer_ack?,
                ack_timeout: ack_timeout?,
            }))
        }
    }
}

/// The rules that Elasticsearch and Splunk have in common: it becomes a part of a path.
fn read_index<'n>(r: &Reading<'_>, node: &'n Node) -> Option<&'n str> {
    let text = r.reader.string(node, "index")?;
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    let begins = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !begins || text.len() > 200 || !text.bytes().all(legal) {
        let message =
            "index must be 1 to 200 lower-case letters, digits, '-', '_' or '.', a letter or digit first";
        r.reader.problem(node.at, message);
        return None;
    }
    Some(text)
}

fn read_trust(
    r: &Reading<'_>,
    f: &mut Fields<'_, '_>,
    kind: Option<&str>,
    at: Mark,
    url: &Url,
) -> Option<SinkTrust> {
    let identities = f.entry("identities").map(|e| (e.at, r.identities(&e.value, "identities")));
    let ca_file = match kind {
        Some("phiward") => None,
        _ => f.entry("ca_file").map(|e| (e.at, r.path(&e.value, "ca_file"))),
    };
    match (url.https, identities, ca_file) {
        (false, None, None) => Some(SinkTrust::Plain),
        (false, Some((at, _)), _) => {
            r.reader.problem(at, "`identities` can only be checked over https://");
            None
        }
        (false, None, Some((at, _))) => {
            r.reader.problem(at, "`ca_file` can only be used over https://");
            None
        }
        (true, Some(_), Some((at, _))) => {
            r.reader.problem_with_hint(
                at,
                "`ca_file` has no meaning beside `identities`",
                "with `identities` the receiver shows an SVID, which the bundles of this workload vouch for",
            );
            None
        }
        (true, Some((_, identities)), None) => Some(SinkTrust::Identities(identities?)),
        (true, None, None) if kind == Some("phiward") => {
            r.reader
                .problem(f.at(), "a sink over https:// needs `identities`: who may receive the audit trail");
            None
        }
        (true, None, ca_file) => {
            if ServerName::try_from(url.endpoint.host.as_str()).is_err() {
                r.reader.problem(at, "this host cannot stand in a certificate");
                return None;
            }
            Some(SinkTrust::Roots(transpose(ca_file.map(|(_, path)| path))?))
        }
    }
}

fn read_credentials(
    r: &Reading<'_>,
    f: &mut Fields<'_, '_>,
    kind: Option<&str>,
    url: Option<&Url>,
) -> Option<Option<Credentials>> {
    let file = |n: &Node, key: &str| r.path(n, key).map(|path| SecretFile::new(&path));
    let mut found = Vec::new();
    if kind == Some("splunk_hec") {
        let token = f.required("token_file")?;
        found.push((token.at, file(token, "token_file").map(Credentials::Splunk)));
    } else {
        if let Some(e) = f.entry("bearer_token_file") {
            found.push((e.at, file(&e.value, "bearer_token_file").map(Credentials::Bearer)));
        }
        if let Some(e) = f.entry("basic") {
            found.push((e.at, read_basic(r, &e.value)));
        }
        if kind == Some("elasticsearch")
            && let Some(e) = f.entry("api_key_file")
        {
            found.push((e.at, file(&e.value, "api_key_file").map(Credentials::ApiKey)));
        }
    }
    let allowed = f
        .optional("allow_plaintext_secrets")
        .map_or(Some(false), |n| r.reader.bool(n, "allow_plaintext_secrets"))?;
    if let [_, (at, _), ..] = found[..] {
        r.reader.problem(at, "a sink has one kind of credentials: there is another one above");
        return None;
    }
    let Some((at, credentials)) = found.pop() else { return Some(None) };
    if url.is_some_and(|url| !url.https && !is_loopback(&url.endpoint.host)) && !allowed {
        r.reader.problem_with_hint(
            at,
            "this secret would be sent over http:// for everybody on the way to read",
            "use https://, or set `allow_plaintext_secrets: true` where the way is protected otherwise",
        );
        return None;
    }
    credentials.map(Some)
}

fn read_basic(r: &Reading<'_>, node: &Node) -> Option<Credentials> {
    let mut f = r.fields(node, "basic")?;
    let username = f.required("username").and_then(|n| {
        let text = r.reader.string(n, "username")?;
        if text.is_empty() || text.contains(':') || !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            r.reader.problem(n.at, "username must be visible ASCII without ':' (RFC 7617)");
            return None;
        }
        Some(text.to_owned())
    });
    let password = f.required("password_file").and_then(|n| r.path(n, "password_file"));
    f.finish();
    Some(Credentials::Basic { username: username?, password: SecretFile::new(&password?) })
}

fn read_headers(r: &Reading<'_>, node: &Node) -> Option<Vec<ExtraHeader>> {
    let entries = r.reader.entries(node, "headers")?;
    let read = entries.iter().map(|entry| {
        let value = r.reader.string(&entry.value, "a header")?;
        ExtraHeader::parse(&entry.key, value)
            .map_err(|why| r.reader.problem(entry.at, format!("`{}`: {why}", entry.key)))
            .ok()
    });
    read.collect::<Vec<_>>().into_iter().collect()
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests;
