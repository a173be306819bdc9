//! A request written by a person, in a test of a policy or on the command line, as the raw head that is decided.

use super::{RawRequest, is_method_override_header};

/// `GET /path?query`, with the headers that have a part in a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    method: String,
    target: String,
    authority: Option<String>,
    hosts: Vec<String>,
    method_override: bool,
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
        Some(Self { method, target, authority, hosts: Vec::new(), method_override: false })
    }

    /// Adds a header, and says whether it can make a difference: `host` and the headers that replace the method do.
    pub fn add_header(&mut self, name: &str, value: &str) -> bool {
        if name.eq_ignore_ascii_case("host") {
            self.hosts.push(value.to_owned());
            return true;
        }
        let matters = is_method_override_header(name);
        self.method_override |= matters;
        matters
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
            method_override: self.method_override,
            http2: false,
        }
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
        assert!(!request.add_header("accept", "*/*"));
        let raw = request.raw("default");
        assert_eq!((raw.method, raw.target, raw.host), ("GET", "/a b#c?d", Some(&b"x"[..])));
        assert!(raw.method_override && !raw.more_hosts && raw.authority.is_none());

        let request = Request::parse("GET http://h:80?q").unwrap();
        assert_eq!((request.raw("d").target, request.raw("d").authority), ("?q", Some("h:80")));
        assert_eq!(Request::parse("GET http://h").unwrap().raw("d").target, "/");
        for line in ["", "GET", "GET ", " /a"] {
            assert_eq!(Request::parse(line), None, "{line:?}");
        }
    }
}
