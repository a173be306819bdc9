//! A request written by a person, in a test of a policy or on the command line, as the raw head that is decided.

use super::{Headers, RawRequest, is_method_override_header};

/// `GET /path?query` with its headers, or `TCP listener`.
///
/// Not `Debug`: the target names patients.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    method: String,
    target: String,
    authority: Option<String>,
    /// Every line but those of `Host`.
    headers: Vec<(String, String)>,
    hosts: Vec<String>,
}

impl Request {
    /// Takes `METHOD TARGET` apart. The target is kept as it stands, malformed or not: what comes of it is the question.
    /// An absolute-form target (`http://host/path`) names the host too. None without a method and a target.
    pub fn parse(line: &str) -> Option<Self> {
        let (method, target) = line.split_once(' ')?;
        if method.is_empty() || target.is_empty() {
            return None;
        }
        let absolute = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
        let (authority, target) = match absolute {
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let path = if end == rest.len() { "/" } else { &rest[end..] };
                (Some(rest[..end].to_owned()), path)
            }
            None => (None, target),
        };
        let (method, target) = (method.to_owned(), target.to_owned());
        Some(Self { method, target, authority, headers: Vec::new(), hosts: Vec::new() })
    }

    /// Adds a header line. False, and nothing is added, when no request can have it.
    pub fn add_header(&mut self, name: &str, value: &str) -> bool {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) || value.chars().any(|c| c.is_control() && c != '\t') {
            return false;
        }
        if name.eq_ignore_ascii_case("host") {
            self.hosts.push(value.to_owned());
        } else {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        true
    }

    /// The listener of `TCP listener`: a stream that is to be opened, and no HTTP request.
    pub fn tcp_listener(&self) -> Option<&str> {
        let named = self.method == "TCP" && self.authority.is_none() && !self.target.starts_with('/');
        named.then_some(&self.target)
    }

    /// The request line as it was written.
    pub fn line(&self) -> String {
        match &self.authority {
            Some(authority) => format!("{} http://{authority}{}", self.method, self.target),
            None => format!("{} {}", self.method, self.target),
        }
    }

    /// The head, for [`super::admit`]; `host` is used when the request names none.
    pub fn raw<'a>(&'a self, host: &'a str) -> RawRequest<'a> {
        let header = self.hosts.first().map(String::as_str);
        let header = if self.authority.is_none() { header.or(Some(host)) } else { header };
        RawRequest {
            method: &self.method,
            target: &self.target,
            authority: self.authority.as_deref(),
            host: header.map(str::as_bytes),
            more_hosts: self.hosts.len() > 1,
            method_override: self.headers.iter().any(|(name, _)| is_method_override_header(name)),
            http2: false,
            headers: self,
        }
    }
}

impl Headers for Request {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.hosts.iter().for_each(|value| visit("host", value.as_bytes()));
        self.headers.iter().for_each(|(name, value)| visit(name, value.as_bytes()));
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("method", &self.method).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a policy's tests test another request than the one that is written.
    #[test]
    fn a_request_line_is_taken_apart_and_nothing_more() {
        let mut request = Request::parse("GET /a b#c?d").unwrap();
        assert!(request.add_header("Host", "x") && request.add_header("X-HTTP-Method", "PUT"));
        assert!(request.add_header("accept", "*/*"));
        let raw = request.raw("default");
        assert_eq!((raw.method, raw.target, raw.host), ("GET", "/a b#c?d", Some(&b"x"[..])));
        assert!(raw.method_override && !raw.more_hosts && raw.authority.is_none());
        let mut lines = Vec::new();
        raw.headers.each(&mut |name, value| lines.push((name.to_owned(), value.to_owned())));
        let want = [("host", "x"), ("X-HTTP-Method", "PUT"), ("accept", "*/*")];
        assert_eq!(lines, want.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())));

        let request = Request::parse("GET http://h:80?q").unwrap();
        assert_eq!((request.raw("d").target, request.raw("d").authority), ("?q", Some("h:80")));
        assert_eq!(Request::parse("GET http://h").unwrap().raw("d").target, "/");
        for line in ["", "GET", "GET ", " /a"] {
            assert_eq!(Request::parse(line), None, "{line:?}");
        }
    }

    /// If this fails, a test of a policy sends a line that no client can send, and proves nothing.
    #[test]
    fn lines_that_no_request_can_have_are_refused() {
        let mut request = Request::parse("GET /").unwrap();
        for (name, value) in
            [("", "a"), ("a b", "c"), ("a:", "b"), ("é", "a"), ("a", "b\r\nc: d"), ("host", "a\0")]
        {
            assert!(!request.add_header(name, value), "{name:?} {value:?}");
        }
        assert!(!request.raw("d").more_hosts);
    }

    /// If this fails, the tests of a TCP permission are decided as HTTP requests, or the other way round.
    #[test]
    fn tcp_names_a_listener() {
        assert_eq!(Request::parse("TCP postgres").unwrap().tcp_listener(), Some("postgres"));
        for line in ["TCP /postgres", "tcp postgres", "GET postgres", "TCP http://h/"] {
            assert_eq!(Request::parse(line).unwrap().tcp_listener(), None, "{line}");
        }
    }
}
