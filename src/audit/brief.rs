//! What only one event says, in as few bytes as a worker can write without thinking: numbers as they are, texts behind their lengths.
//!
//! Owns that form. An event is spelled out where the time for it is: by the writer, or by a start that finds it in a journal. The
//! form lives as long as a process and its journal. Refuses to know JSON, and what an event has in common with others.

use super::event::{AccessComplete, AccessDecision, ResponseFacts};
use super::frame::Told;
use super::json::MAX_STRING;
use super::pseudonym::Pseudonym;

/// The first byte of each.
const WHOLE: u8 = 0;
const DECISION: u8 = 1;
const COMPLETE: u8 = 2;
/// The length of a text that is not there. Those that are there are far shorter.
const ABSENT: u16 = u16::MAX;

/// What only one event says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Brief<'f> {
    /// `access.decision`, with the pseudonyms in the order in which its way has places for them.
    Decision { request: Request<'f>, pseudonyms: &'f [[u8; Pseudonym::BYTES]] },
    /// `access.complete`.
    Complete { request: Request<'f>, response: ResponseFacts<'f> },
    /// An event that was spelled out when it was recorded, as such that are rare: what stands before `id`, and after `instance`.
    Whole { head: &'f [u8], tail: &'f [u8] },
}

/// Which request, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'f> {
    pub(crate) time_unix_ns: u64,
    /// Texts of a worker, so they are UTF-8 if nothing has damaged them; to see to that is for who writes JSON.
    pub(crate) id: &'f [u8],
    pub(crate) trace_id: Option<&'f [u8]>,
}

/// Writes what only this decision says.
pub(crate) fn decision(
    out: &mut Vec<u8>,
    ev: &AccessDecision<'_>,
    pseudonyms: impl Iterator<Item = Pseudonym>,
) {
    out.push(DECISION);
    request(out, ev.time_unix_ns, ev.request_id, ev.trace_id);
    pseudonyms.for_each(|pseudonym| out.extend_from_slice(&pseudonym.to_bytes()));
}

/// Writes what only this completion says.
pub(crate) fn complete(out: &mut Vec<u8>, ev: &AccessComplete<'_>) {
    out.push(COMPLETE);
    request(out, ev.time_unix_ns, ev.request_id, ev.trace_id);
    let ResponseFacts { status, request_bytes, response_bytes, duration_us, aborted, reason } = ev.response;
    out.push(u8::from(aborted));
    out.extend_from_slice(&status.to_le_bytes());
    [request_bytes, response_bytes, duration_us]
        .iter()
        .for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    text(out, reason);
}

/// Writes an event that is spelled out.
pub(crate) fn whole(out: &mut Vec<u8>, head: &[&[u8]], tail: &[&[u8]]) {
    out.push(WHOLE);
    let length: usize = head.iter().map(|piece| piece.len()).sum();
    out.extend_from_slice(&(length as u32).to_le_bytes());
    head.iter().chain(tail).for_each(|piece| out.extend_from_slice(piece));
}

fn request(out: &mut Vec<u8>, time_unix_ns: u64, id: &str, trace_id: Option<&str>) {
    out.extend_from_slice(&time_unix_ns.to_le_bytes());
    text(out, Some(id));
    text(out, trace_id);
}

/// A text that is longer than an event may say it stays so, and no longer.
fn text(out: &mut Vec<u8>, text: Option<&str>) {
    let text = text.map(|text| &text[..text.ceil_char_boundary(MAX_STRING + 1)]);
    let length = text.map_or(ABSENT, |text| text.len() as u16); // MAX_STRING + 4 at most
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.unwrap_or_default().as_bytes());
}

impl<'f> Brief<'f> {
    /// Reads what an event alone says; `None` where no worker has written it.
    pub(crate) fn of(told: &Told<'f>) -> Option<Self> {
        let (kind, rest) = told.own.split_first()?;
        match *kind {
            DECISION => {
                let (request, rest) = Request::read(rest)?;
                let (pseudonyms, rest) = rest.as_chunks();
                rest.is_empty().then_some(Self::Decision { request, pseudonyms })
            }
            COMPLETE => {
                let (request, rest) = Request::read(rest)?;
                let (aborted, rest) = rest.split_first()?;
                let (status, rest) = rest.split_first_chunk()?;
                let (numbers, rest) = rest.split_first_chunk::<24>()?;
                let mut numbers = numbers.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number));
                let (reason, rest) = read_text(rest)?;
                let reason = reason.map(std::str::from_utf8).transpose().ok()?;
                let response = ResponseFacts {
                    status: u16::from_le_bytes(*status),
                    request_bytes: numbers.next()?,
                    response_bytes: numbers.next()?,
                    duration_us: numbers.next()?,
                    aborted: *aborted != 0,
                    reason,
                };
                rest.is_empty().then_some(Self::Complete { request, response })
            }
            WHOLE => {
                let (length, rest) = rest.split_first_chunk()?;
                let (head, tail) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
                Some(Self::Whole { head, tail })
            }
            _ => None,
        }
    }
}

impl<'f> Request<'f> {
    fn read(bytes: &'f [u8]) -> Option<(Self, &'f [u8])> {
        let (time, rest) = bytes.split_first_chunk()?;
        let (id, rest) = read_text(rest)?;
        let (trace_id, rest) = read_text(rest)?;
        Some((Self { time_unix_ns: u64::from_le_bytes(*time), id: id?, trace_id }, rest))
    }
}

fn read_text(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = u16::from_le_bytes(*length);
    if length == ABSENT {
        return Some((None, rest));
    }
    let (text, rest) = rest.split_at_checked(length.into())?;
    Some((Some(text), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(own: &[u8]) -> Option<Brief<'_>> {
        Brief::of(&Told { conn: [b""; 2], route: [b""; 2], own })
    }

    /// If this fails, a damaged journal makes the start panic, or what is left of an event is taken for one.
    #[test]
    fn no_bytes_make_reading_panic_and_a_part_is_no_event() {
        let mut complete = vec![COMPLETE];
        request(&mut complete, 5, "r\u{e9}quest", Some("trace"));
        complete.extend_from_slice(&[7; 27]);
        text(&mut complete, Some("reason"));
        let mut decision = vec![DECISION];
        request(&mut decision, 5, "request", None);
        decision.extend_from_slice(&[7; 32]);
        let Some(Brief::Decision { request, pseudonyms }) = read(&decision) else { panic!() };
        assert_eq!((request.time_unix_ns, request.id, request.trace_id), (5, &b"request"[..], None));
        assert_eq!(pseudonyms, [[7; 16]; 2]);
        let Some(Brief::Complete { response, .. }) = read(&complete) else { panic!() };
        assert_eq!((response.status, response.reason), (0x0707, Some("reason")));
        assert!((0..complete.len()).all(|length| read(&complete[..length]).is_none()));
        let mut random = fastrand::Rng::with_seed(4);
        for whole in [complete, decision] {
            for _ in 0..20_000 {
                let mut damaged = whole.clone();
                let at = random.usize(..damaged.len());
                damaged[at] = random.u8(..);
                damaged.truncate(random.usize(..=damaged.len()));
                let _ = read(&damaged); // whatever it is, it is no panic
            }
        }
    }

    /// If this fails, a text of a peer takes more of a batch and a journal than the event will say of it, or is cut in a character.
    #[test]
    fn a_text_that_is_too_long_stays_too_long() {
        for of in ["a", "\u{e9}", "\u{10ffff}"] {
            let (long, mut out) = (of.repeat(40_000), Vec::new());
            text(&mut out, Some(&long));
            let (read, rest) = read_text(&out).unwrap();
            let read = std::str::from_utf8(read.unwrap()).unwrap();
            assert!(rest.is_empty() && read.len() > MAX_STRING && long.starts_with(read));
            assert!(out.len() < MAX_STRING + 8);
        }
    }
}
