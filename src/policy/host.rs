//! The host of a request in the one form that is compared: lower case, no port, no trailing dot.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest host name, in bytes (RFC 1035 section 2.3.4, as text and without the trailing dot).
const MAX_HOST_BYTES: usize = 253;

/// `host[:port]` as it arrived, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Authority<'a> {
    /// Lower case, without port and trailing dot; borrowed when it came so.
    pub(super) host: Cow<'a, str>,
    pub(super) port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// None when `text` is anything but a host name, an IPv4 address or a bracketed IPv6 address with an optional port:
    /// no user info, no escapes, no lists.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let port_at = match text.strip_prefix('[') {
            Some(_) => text.find(']')? + 1,
            None => text.bytes().position(|b| b == b':').unwrap_or(text.len()),
        };
        let (name, rest) = text.split_at(port_at);
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if rest.is_empty() => None,
            None => return None,
        };
        Some(Self { host: canonical_host(name)?, port })
    }

    /// True when both name the same host, and the same port as far as both name one.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        self.host == other.host && (self.port.is_none() || other.port.is_none() || self.port == other.port)
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let legal = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    if legal { text.parse().ok() } else { None }
}

/// `name` in the form that is compared, or none when it is not a host.
pub(super) fn canonical_host(name: &str) -> Option<Cow<'_, str>> {
    if is_ordinary(name) {
        return Some(Cow::Borrowed(name));
    }
    if let Some(inner) = name.strip_prefix('[') {
        let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        let text = format!("[{address}]");
        return Some(if text == name { Cow::Borrowed(name) } else { Cow::Owned(text) });
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > MAX_HOST_BYTES || !name.bytes().all(legal) {
        return None;
    }
    if name.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return None;
    }
    // `127.1` and `0x7f.0.0.1` are addresses to some resolvers and names to others (WHATWG URL, "ends in a number").
    if ends_in_number(name) && name.parse::<Ipv4Addr>().is_err() {
        return None;
    }
    let upper = name.bytes().any(|b| b.is_ascii_uppercase());
    Some(if upper { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) })
}

/// True for nearly all hosts: names that need none of the looks that [`canonical_host`] takes at the others.
fn is_ordinary(name: &str) -> bool {
    let mut label = 0;
    let mut letter_first = false;
    for byte in name.bytes() {
        match byte {
            b'.' if label > 0 => label = 0,
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' if label < 63 => {
                if label == 0 {
                    letter_first = byte.is_ascii_lowercase();
                }
                label += 1;
            }
            _ => return false,
        }
    }
    label > 0 && letter_first && name.len() <= MAX_HOST_BYTES
}

fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name).as_bytes();
    let hex = last.len() >= 2 && last[0] == b'0' && (last[1] | 0x20) == b'x';
    last.iter().all(u8::is_ascii_digit) || hex && last[2..].iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, host rules and the application disagree about which host a request is for (CVE-2021-39155).
    #[test]
    fn hosts_are_compared_in_one_form() {
        let table = [
            ("records.clinic", "records.clinic", None),
            ("Records.CLINIC:8080", "records.clinic", Some(8080)),
            ("records.clinic.", "records.clinic", None),
            ("records.clinic.:80", "records.clinic", Some(80)),
            ("10.2.0.9:15006", "10.2.0.9", Some(15006)),
            ("[::1]:80", "[::1]", Some(80)),
            ("[0:0::1]", "[::1]", None),
            ("[FD00::A]", "[fd00::a]", None),
            ("a_b-c", "a_b-c", None),
        ];
        for (text, host, port) in table {
            assert_eq!(Authority::parse(text), Some(Authority { host: host.into(), port }), "{text}");
        }
        assert!(matches!(Authority::parse("a.b:1").unwrap().host, Cow::Borrowed(_)));
    }

    /// If this fails, a host that two programs read differently is compared at all.
    #[test]
    fn what_is_not_plainly_a_host_is_none() {
        let long_label = "a".repeat(64);
        let long = "a.".repeat(130);
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            ":80",
            "a:",
            "a:b",
            "a:65536",
            "a:000080",
            "a:+1",
            "a:1:2",
            "a b",
            "a,b",
            "user@a",
            "a/b",
            "a%2eb",
            "ä",
            "a\0",
            "[::1",
            "[::1]x",
            "[::g]",
            "[fe80::1%25eth0]",
            "::1",
            "127.1",
            "0x7f.1",
            "1.2.3.256",
            "1.2.3.4.5",
            "010.0.0.1",
            "a.0x1F",
            "a.0xf",
            "a.1",
            "a?b",
            "a#b",
            &long_label,
            &long,
        ] {
            assert_eq!(Authority::parse(text), None, "{text:?}");
        }
    }
}
