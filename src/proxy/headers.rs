//! Header fields at the border: what is hop-by-hop ends here, what the app is told to trust is set here.
//!
//! Rebuilds nothing: fields are removed and set in place. Values are never looked at further than the rules below need,
//! and never logged.

use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

use super::ids::RequestIds;

/// Who the client is, for the app (the format Envoy made common; see CVE-2023-27487 for what trusting a client's copy costs).
pub(crate) const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The request's ID, as in the audit trail.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C Trace Context.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const TRAILERS: &[u8] = b"trailers";

/// Names that only phiward may say to an app. Names that start with `x-phiward-` are as reserved.
const RESERVED_PREFIX: &str = "x-phiward-";
const TRUSTED: [HeaderName; 3] = [X_FORWARDED_CLIENT_CERT, X_REQUEST_ID, TRACEPARENT];

/// Removes from a request what was meant for this hop alone, and every copy of what only phiward may say.
///
/// `Connection` may name further fields (RFC 9110, section 7.6.1), on any of its lines. It may not name a field that the
/// app is told to trust or that frames or routes the message: naming those strips them on some proxies (CVE-2024-45410).
pub(crate) fn clean_request(headers: &mut HeaderMap) {
    let found = Found::look(headers);
    if found.hop_by_hop {
        let wants_trailers = headers.get_all(header::TE).iter().any(|v| has_token(v, TRAILERS));
        strip_hop_by_hop(headers);
        if wants_trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    if found.reserved {
        strip_reserved(headers);
    }
}

/// Removes from a response what was meant for this hop alone.
pub(crate) fn clean_response(headers: &mut HeaderMap) {
    if headers.keys().any(is_hop_by_hop) {
        strip_hop_by_hop(headers);
    }
}

/// What kinds of field a head has. One look at each name costs less than a look-up by hash for each field that might be
/// there, and most heads have none of them.
struct Found {
    hop_by_hop: bool,
    reserved: bool,
}

impl Found {
    fn look(headers: &HeaderMap) -> Self {
        let mut found = Self { hop_by_hop: false, reserved: false };
        for name in headers.keys() {
            found.hop_by_hop |= is_hop_by_hop(name);
            found.reserved |= is_reserved(name);
        }
        found
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TE
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

/// Sets what the app, or the next sidecar, may rely on.
pub(crate) fn set_trusted(headers: &mut HeaderMap, ids: &RequestIds, client_cert: Option<&HeaderValue>) {
    // Both are made of hex digits and dashes, which a header value may always hold.
    if let Ok(value) = HeaderValue::from_str(ids.request_id()) {
        headers.insert(X_REQUEST_ID, value);
    }
    if let Ok(value) = HeaderValue::from_bytes(ids.traceparent()) {
        headers.insert(TRACEPARENT, value);
    }
    if let Some(value) = client_cert {
        headers.insert(X_FORWARDED_CLIENT_CERT, value.clone());
    }
}

/// Whether `Connection` names `Upgrade`, without which an `Upgrade` field means nothing.
pub(crate) fn names_upgrade(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|v| has_token(v, b"upgrade"))
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        // `remove` would return the first line's value and drop the others unseen.
        let mut named: Vec<HeaderName> = Vec::new();
        for line in headers.get_all(header::CONNECTION) {
            let tokens = line.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
            named.extend(tokens.filter_map(|t| HeaderName::from_bytes(t).ok()).filter(may_be_named));
        }
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    headers.remove(header::TE);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
}

/// Fields that end-to-end semantics or the next hop's trust hang on; `Connection` cannot take them away.
fn may_be_named(name: &HeaderName) -> bool {
    let end_to_end = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::AUTHORIZATION,
        header::COOKIE,
        header::FORWARDED,
        header::TRAILER,
        header::EXPECT,
    ];
    !end_to_end.contains(name) && !TRUSTED.contains(name)
}

/// A field that says what only phiward may say, or an alias of one. [`set_trusted`] replaces `x-request-id` and
/// `traceparent` themselves in any case.
fn is_reserved(name: &HeaderName) -> bool {
    let text = name.as_str();
    if text.contains('_') {
        // Apps behind CGI-like gateways read `x_request_id` as `x-request-id`.
        let meant = text.replace('_', "-");
        return meant.starts_with(RESERVED_PREFIX) || TRUSTED.iter().any(|n| n.as_str() == meant);
    }
    *name == X_FORWARDED_CLIENT_CERT || text.starts_with(RESERVED_PREFIX)
}

fn strip_reserved(headers: &mut HeaderMap) {
    let reserved: Vec<HeaderName> = headers.keys().filter(|name| is_reserved(name)).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
}

/// Whether the comma-separated `value` has `token`, in any case.
pub(crate) fn has_token(value: &HeaderValue, token: &[u8]) -> bool {
    value.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    /// If this fails, a field that a second `Connection` line names reaches the app.
    #[test]
    fn every_connection_line_is_honoured() {
        let mut headers = map(&[
            ("connection", "close, x-one"),
            ("connection", "X-Two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
        ]);
        clean_request(&mut headers);
        assert_eq!(names(&headers), ["x-three"]);
    }

    /// If this fails, `Connection: host` or `Connection: authorization` changes what the app sees of a request.
    #[test]
    fn connection_cannot_take_away_end_to_end_fields() {
        let mut headers = map(&[
            ("connection", "host, authorization, content-length"),
            ("host", "a"),
            ("authorization", "x"),
        ]);
        clean_request(&mut headers);
        assert_eq!(names(&headers), ["authorization", "host"]);
    }

    /// If this fails, a client tells the app who it is.
    #[test]
    fn copies_and_aliases_of_trusted_fields_are_stripped() {
        let mut headers = map(&[
            ("x-forwarded-client-cert", "URI=spiffe://hospital.local/admin"),
            ("x_forwarded_client_cert", "URI=spiffe://hospital.local/admin"),
            ("x-request_id", "1"),
            ("x-request-id", "1"),
            ("traceparent", "1"),
            ("x-phiward-anything", "1"),
            ("x_phiward_anything", "1"),
            ("x-snake_case", "kept"),
        ]);
        clean_request(&mut headers);
        let ids = super::super::ids::IdSource::new().next(None);
        set_trusted(&mut headers, &ids, None);
        assert_eq!(names(&headers), ["traceparent", "x-request-id", "x-snake_case"]);
        assert_eq!(headers.get_all("x-request-id").iter().count(), 1);
        assert_eq!(headers["x-request-id"], ids.request_id());
        assert_eq!(headers["traceparent"].as_bytes(), ids.traceparent());
    }

    /// If this fails, gRPC calls lose their trailers, or another transfer coding crosses the hop.
    #[test]
    fn te_keeps_trailers_and_nothing_else() {
        let mut headers = map(&[("te", "gzip, trailers")]);
        clean_request(&mut headers);
        assert_eq!(headers.get("te").unwrap(), "trailers");
        let mut headers = map(&[("te", "gzip")]);
        clean_request(&mut headers);
        assert!(headers.is_empty());
    }
}
