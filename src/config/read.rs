//! Readers for what configuration files hold beyond plain scalars: paths, addresses, endpoints, identities.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::model::Endpoint;
use crate::identity::{SpiffeId, TrustDomain};
use crate::yaml::{Fields, Node, Reader};

/// `http[s]://host:port/path`.
pub(super) struct Url {
    pub(super) https: bool,
    pub(super) endpoint: Endpoint,
    /// Empty, or beginning and not ending with `/`.
    pub(super) path: String,
}

/// A file being read: where problems go, and what relative paths are relative to.
pub(super) struct Reading<'r> {
    pub(super) reader: &'r Reader,
    base: PathBuf,
}

impl<'r> Reading<'r> {
    pub(super) fn new(reader: &'r Reader, base: &Path) -> Self {
        // The current folder only fails to be named when it was removed; then relative paths stay relative.
        Self { reader, base: std::path::absolute(base).unwrap_or_else(|_| base.to_owned()) }
    }

    pub(super) fn fields<'n>(&self, node: &'n Node, what: &'r str) -> Option<Fields<'n, 'r>> {
        self.reader.fields(node, what)
    }

    pub(super) fn path(&self, node: &Node, what: &str) -> Option<PathBuf> {
        let text = self.reader.string(node, what)?;
        if text.is_empty() {
            self.reader.problem(node.at, format!("{what} must not be empty"));
            return None;
        }
        Some(self.base.join(text))
    }

    pub(super) fn address(&self, node: &Node, what: &str) -> Option<SocketAddr> {
        let text = self.reader.string(node, what)?;
        text.parse().ok().or_else(|| {
            self.reader.problem_with_hint(
                node.at,
                format!("{what} must be an address with a port"),
                "such as \"127.0.0.1:8080\" or \"[::1]:8080\"; names are not resolved here",
            );
            None
        })
    }

    pub(super) fn endpoint(&self, node: &Node, what: &str) -> Option<Endpoint> {
        let text = self.reader.string(node, what)?;
        parse_endpoint(text).or_else(|| {
            self.reader.problem_with_hint(
                node.at,
                format!("{what} must be a host and a port"),
                "such as \"records.clinic.svc.cluster.local:15006\"",
            );
            None
        })
    }

    /// `http://host:port` or `https://host:port`, and a path or none.
    pub(super) fn url(&self, node: &Node, what: &str) -> Option<Url> {
        let text = self.reader.string(node, what)?;
        let parts = text
            .strip_prefix("https://")
            .map(|rest| (true, rest))
            .or_else(|| text.strip_prefix("http://").map(|rest| (false, rest)));
        let parsed = parts.and_then(|(https, rest)| {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let path = path.strip_suffix('/').unwrap_or(path).to_owned();
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.' | b'~');
            let endpoint = parse_endpoint(authority)?;
            path.bytes().all(plain).then_some(Url { https, endpoint, path })
        });
        parsed.or_else(|| {
            self.reader.problem_with_hint(
                node.at,
                format!("{what} must be http:// or https:// with a host and a port"),
                "such as \"https://collector.audit:15200\"; a path may follow, a query or a user's name may not",
            );
            None
        })
    }

    pub(super) fn trust_domain(&self, node: &Node, what: &str) -> Option<TrustDomain> {
        let text = self.reader.string(node, what)?;
        TrustDomain::parse(text)
            .map_err(|error| self.reader.problem(node.at, format!("{what} is no trust domain: {error}")))
            .ok()
    }

    pub(super) fn identity(&self, node: &Node, what: &str) -> Option<SpiffeId> {
        let text = self.reader.string(node, what)?;
        SpiffeId::parse(text)
            .map_err(|error| self.reader.problem(node.at, format!("{what} holds no SPIFFE ID: {error}")))
            .ok()
    }

    pub(super) fn identities(&self, node: &Node, what: &str) -> Option<Arc<[SpiffeId]>> {
        let items = self.reader.nonempty_list(node, what)?;
        let ids = items.iter().map(|item| self.identity(item, what));
        // Collected first, so that every bad item is reported.
        let ids: Vec<Option<SpiffeId>> = ids.collect();
        ids.into_iter().collect()
    }

    /// A short name for events, metrics and file names.
    pub(super) fn name(&self, node: &Node, what: &str) -> Option<String> {
        let text = self.reader.string(node, what)?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 63 || !text.bytes().all(legal) || text.starts_with('.') {
            let message = format!("{what} must be 1 to 63 letters, digits, '-', '_' or '.'");
            self.reader.problem(node.at, message);
            return None;
        }
        Some(text.to_owned())
    }

    pub(super) fn host(&self, node: &Node, what: &str) -> Option<String> {
        let text = self.reader.string(node, what)?;
        if !is_host_name(text) || text.bytes().any(|b| b.is_ascii_uppercase()) {
            self.reader.problem_with_hint(
                node.at,
                format!("{what} must be a host name in lower case without a port"),
                "hosts are compared in lower case, without port and trailing dot",
            );
            return None;
        }
        Some(text.to_owned())
    }
}

fn parse_endpoint(text: &str) -> Option<Endpoint> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Some(Endpoint { host: addr.ip().to_string(), port: addr.port() });
    }
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
    is_host_name(host).then(|| Endpoint { host: host.to_owned(), port })
}

fn is_host_name(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(legal)
        && !text.starts_with('.')
        && !text.ends_with('.')
        && !text.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a call goes to a host or port that nobody wrote.
    #[test]
    fn endpoints_are_a_host_and_a_port() {
        let parsed = |text| parse_endpoint(text).map(|e| (e.host, e.port));
        assert_eq!(parsed("records.clinic:15006"), Some(("records.clinic".into(), 15006)));
        assert_eq!(parsed("[::1]:15006"), Some(("::1".into(), 15006)));
        assert_eq!(parsed("10.0.0.1:80"), Some(("10.0.0.1".into(), 80)));
        for bad in ["records", "records:", "records:0", "records:65536", ":80", "a b:80", "::1:80", "a..b:80"]
        {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
