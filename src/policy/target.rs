//! From what arrived to what is decided: the request target, its host and its method, refused or in one form.

use std::borrow::Cow;

use super::host::Authority;
use super::{Headers, Method, PathRules, Reason, path, query};

/// A request's head as raw as the HTTP library gives it.
///
/// Not `Debug`: the target names patients.
#[derive(Clone, Copy)]
pub struct RawRequest<'a> {
    /// The method's name.
    pub method: &'a str,
    /// The target in origin form (`/path?query`), or `*`.
    pub target: &'a str,
    /// The host and port of an absolute-form target, or `:authority`.
    pub authority: Option<&'a str>,
    /// The value of the first `Host` line.
    pub host: Option<&'a [u8]>,
    /// True when there is more than one `Host` line.
    pub more_hosts: bool,
    /// True when there is a header for which [`is_method_override_header`] holds.
    pub method_override: bool,
    /// True for HTTP/2, where the authority is `:authority`.
    pub http2: bool,
    /// All header lines. Looked at only by rules that are about headers.
    pub headers: &'a dyn Headers,
}

/// A request that can be decided: nothing in it is left to interpret.
///
/// Not `Debug`: the path and the query name patients.
#[derive(Clone)]
pub struct Admitted<'a> {
    /// The method.
    pub method: Method,
    /// The host in lower case, without port and trailing dot; borrowed when it came so.
    pub host: Cow<'a, str>,
    /// The path in canonical form: matched and forwarded. Borrowed when it came so.
    pub path: Cow<'a, str>,
    /// The query, to be forwarded byte for byte.
    pub query: Option<&'a str>,
    pub(super) headers: &'a dyn Headers,
    /// The policy keeps `%2F` in this path, so deny rules look at both readings of it.
    pub(super) slashes: bool,
    /// The policy keeps `;` in this path, so deny rules look at both readings of it.
    pub(super) params: bool,
}

/// True for the headers that frameworks let replace the method. `name` is in lower case or not, with `-` or `_`.
pub fn is_method_override_header(name: &str) -> bool {
    const NAMES: [&str; 3] = ["x-http-method", "x-http-method-override", "x-method-override"];
    let same = |a: u8, b: u8| a.eq_ignore_ascii_case(&b) || a == b'_' && b == b'-';
    NAMES
        .iter()
        .any(|known| known.len() == name.len() && name.bytes().zip(known.bytes()).all(|(a, b)| same(a, b)))
}

/// Checks a request's head and returns it in the form that is decided and forwarded. Allocates only when the host or the
/// path did not come in that form.
///
/// # Errors
/// The first reason to refuse it, in this order: method, form of the target, hosts, path, query, override headers.
pub fn admit<'a>(raw: &RawRequest<'a>, rules: &PathRules) -> Result<Admitted<'a>, Reason> {
    if raw.method == "CONNECT" {
        return Err(Reason::Connect);
    }
    let method = Method::parse(raw.method).ok_or(Reason::UnknownMethod)?;
    if raw.target == "*" && method == Method::Options {
        return Err(Reason::OptionsAsterisk);
    }
    let host = host(raw)?;
    // A `#` on either side of the `?` is refused below, so where it would cut (RFC 3986 section 3.5) does not matter.
    let (path, query) = match raw.target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (raw.target, None),
    };
    let path = path::canonical(path, rules)?;
    if let Some(query) = query {
        query::check(query)?;
    }
    if raw.method_override {
        return Err(Reason::MethodOverride);
    }
    let slashes = rules.preserve_encoded_slash && path.contains("%2F");
    let params = rules.allow_matrix_params && (path.contains(';') || path.contains("%3B"));
    Ok(Admitted { method, host, path, query, headers: raw.headers, slashes, params })
}

/// The one host that a request is for, in the form that is compared: all that an outbound side needs to know of a request
/// whose path another sidecar's policy judges.
///
/// # Errors
/// CONNECT, or the first rule about hosts that the request breaks.
pub fn admit_host<'a>(raw: &RawRequest<'a>) -> Result<Cow<'a, str>, Reason> {
    if raw.method == "CONNECT" {
        return Err(Reason::Connect);
    }
    host(raw)
}

fn host<'a>(raw: &RawRequest<'a>) -> Result<Cow<'a, str>, Reason> {
    if raw.more_hosts {
        return Err(Reason::DuplicateHost);
    }
    let parse = |text| Authority::parse(text).ok_or(Reason::BadHost);
    let header = match raw.host {
        Some(bytes) => Some(parse(std::str::from_utf8(bytes).map_err(|_| Reason::BadHost)?)?),
        None => None,
    };
    let authority = raw.authority.map(parse).transpose()?;
    match (authority, header) {
        (None, None) => Err(Reason::MissingHost),
        (Some(one), None) | (None, Some(one)) => Ok(one.host),
        (Some(authority), Some(header)) if authority.agrees_with(&header) => Ok(authority.host),
        _ if raw.http2 => Err(Reason::HostAuthority),
        _ => Err(Reason::AbsoluteFormHost),
    }
}
