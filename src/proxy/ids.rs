//! The identifiers of a request: its own, which is unique, and the trace's, which it continues.

use std::cell::{Cell, RefCell};

/// The identifiers of one request, fixed-size text.
#[derive(Clone, Copy)]
pub(crate) struct RequestIds {
    request: [u8; 32],
    traceparent: [u8; 55],
}

/// Makes request and trace identifiers. A request ID is unique, not secret: 64 random bits of the worker, then a count.
pub(crate) struct IdSource {
    prefix: [u8; 16],
    next: Cell<u64>,
    random: RefCell<fastrand::Rng>,
}

impl IdSource {
    pub(crate) fn new() -> Self {
        let mut random = fastrand::Rng::new();
        Self { prefix: hex16(random.u64(..)), next: Cell::new(0), random: RefCell::new(random) }
    }

    /// New identifiers. A valid `traceparent` (W3C Trace Context, section 3.2) is continued as it is, its parent span
    /// too: phiward exports no spans, so a span of its own would tear the caller's trace.
    pub(crate) fn next(&self, traceparent: Option<&[u8]>) -> RequestIds {
        let count = self.next.get();
        self.next.set(count + 1);
        let mut request = [0; 32];
        request[..16].copy_from_slice(&self.prefix);
        request[16..].copy_from_slice(&hex16(count));
        let traceparent = traceparent.and_then(valid_traceparent).unwrap_or_else(|| self.new_traceparent());
        RequestIds { request, traceparent }
    }

    fn new_traceparent(&self) -> [u8; 55] {
        let mut random = self.random.borrow_mut();
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..19].copy_from_slice(&hex16(random.u64(..)));
        text[19..35].copy_from_slice(&hex16(random.u64(1..))); // never all zero, which would be invalid
        text[36..52].copy_from_slice(&hex16(random.u64(1..)));
        text
    }
}

impl RequestIds {
    pub(crate) fn request_id(&self) -> &str {
        ascii(&self.request)
    }

    pub(crate) fn trace_id(&self) -> &str {
        ascii(&self.traceparent[3..35])
    }

    /// `traceparent` for the next hop.
    pub(crate) fn traceparent(&self) -> &[u8] {
        &self.traceparent
    }
}

/// The version 00 reading of a `traceparent`, whatever came after it in a later version.
fn valid_traceparent(value: &[u8]) -> Option<[u8; 55]> {
    let lower_hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let mut text: [u8; 55] = value.get(..55)?.try_into().ok()?;
    let well_formed = text[2] == b'-'
        && text[35] == b'-'
        && text[52] == b'-'
        && (value.len() == 55 || (value[55] == b'-' && &text[..2] != b"00"))
        && &text[..2] != b"ff"
        && text[..2].iter().chain(&text[3..35]).chain(&text[36..52]).chain(&text[53..]).all(lower_hex)
        && text[3..35] != [b'0'; 32]
        && text[36..52] != [b'0'; 16];
    text[..2].copy_from_slice(b"00");
    well_formed.then_some(text)
}

fn hex16(value: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|i| DIGITS[(value >> (60 - 4 * i)) as usize & 15])
}

fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default() // only hex digits are ever put in
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// If this fails, traces break at the sidecar, or a peer writes what it likes into the audit trail.
    #[test]
    fn only_a_valid_traceparent_is_continued() {
        let source = IdSource::new();
        assert_eq!(source.next(Some(TRACE)).trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let bad: [&[u8]; 6] = [
            b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            b"jane-doe-mrn-4711",
            b"",
        ];
        for value in bad {
            let ids = source.next(Some(value));
            assert_ne!(ids.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
            assert!(valid_traceparent(ids.traceparent()).is_some());
        }
    }

    /// If this fails, two requests share an ID and an auditor cannot tell them apart.
    #[test]
    fn request_ids_do_not_repeat() {
        let source = IdSource::new();
        let ids: std::collections::HashSet<String> =
            (0..1000).map(|_| source.next(None).request_id().to_owned()).collect();
        assert_eq!(ids.len(), 1000);
    }
}
