//! What a record repeats of those before it, so that the writer codes what it chains without searching it.
//!
//! Owns the choice of the record that a new one is compared with, part by part: one of the same type, from which it differs in hashes,
//! numbers, times and ids. What comes of it is a frame of zstd as any other. Knows where the parts of a record end, and nothing of what
//! they say.

use super::chain::{EVENT, Ends};
use super::sequences::{Frame, MAX_CONTENT};

/// So many kinds of records are known at a time. A further one takes the place of the one that was seen first.
const KINDS: usize = 16;
/// Records that end in the same bytes are of one type.
const TYPE_BYTES: usize = 16;

/// Codes records in the order of the chain.
pub(crate) struct Repeats {
    frame: Frame,
    is_open: bool,
    /// The last record of each kind.
    known: Vec<Known>,
    /// The place of the last one among them.
    last: usize,
    /// The place that the next kind takes.
    next: usize,
}

#[derive(Clone, Copy)]
struct Known {
    kind: Kind,
    at: usize,
    ends: Ends,
}

/// Records of one kind say the same but for some values: they have one type, and tell as much of their connection and decision.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    of: [u8; TYPE_BYTES],
    lengths: [u32; 2],
}

impl Repeats {
    pub(crate) fn new() -> Self {
        Self { frame: Frame::default(), is_open: false, known: Vec::with_capacity(KINDS), last: 0, next: 0 }
    }

    /// Begins a frame; what was there is gone.
    pub(crate) fn begin(&mut self) {
        self.frame.begin();
        self.is_open = true;
        self.known.clear();
        (self.last, self.next) = (0, 0);
    }

    /// Adds the record that `out` ends with, from byte `at` on. All before it are in the frame.
    pub(crate) fn record(&mut self, out: &[u8], at: usize, ends: Ends) {
        self.is_open &= self.frame.content() == at && out.len() <= MAX_CONTENT;
        if !self.is_open {
            return;
        }
        let kind = Kind::of(&out[at..], &ends);
        let record = Known { kind, at, ends };
        let exactly = self.known.iter().position(|known| known.kind == kind);
        let of_type = || self.known.iter().position(|known| known.kind.of == kind.of);
        match self.known.get(self.last) {
            None => self.frame.literal(&out[at..]),
            Some(last) => {
                let like = exactly.or_else(of_type).unwrap_or(self.last);
                self.compare(out, record, self.known[like], *last);
            }
        }
        self.last = exactly.unwrap_or(self.next);
        if exactly.is_none() {
            self.next = (self.next + 1) % KINDS;
        }
        match self.known.get_mut(self.last) {
            Some(known) => *known = record,
            None => self.known.push(record),
        }
    }

    /// The frame, if it has the first `len` bytes and no more.
    pub(crate) fn end(&mut self, len: usize) -> Option<&[u8]> {
        let whole = std::mem::take(&mut self.is_open) && self.frame.content() == len;
        if whole { self.frame.end() } else { None }
    }

    /// Adds a record by what it has in common with `like`, and with `last`, the one before it.
    fn compare(&mut self, out: &[u8], record: Known, like: Known, last: Known) {
        let (new, old) = (record.line(out), like.line(out));
        let [before_hash, _, before_prev, after_prev, ..] = record.ends.map(|end| end as usize);
        let distance = record.at - like.at;
        self.frame.copy(&new[..before_hash], distance);
        self.frame.literal(&new[before_hash..before_prev]);
        // What the record before is called.
        let hash_of_last = last.at + before_hash;
        self.frame.copy(&new[before_prev..after_prev], record.at + before_prev - hash_of_last);
        let mut ends = record.ends.iter().zip(&like.ends).map(|(end, old)| (*end as usize, *old as usize));
        let (mut at, mut old_at) = (after_prev, after_prev);
        loop {
            // All that is the same goes at once, whatever parts it is.
            let same = same_at_the_front(&new[at..], &old[old_at..]);
            self.frame.copy(&new[at..at + same], distance + at - old_at);
            (at, old_at) = (at + same, old_at + same);
            // Where they differ, they may be the same again at the end of the part.
            let Some((end, old_end)) = ends.find(|(end, _)| *end > at) else { break };
            let (rest, old) = (&new[at..end], old.get(old_at..old_end).unwrap_or_default());
            let back = same_at_the_end(rest, old);
            self.differing(&rest[..rest.len() - back], old, distance + at - old_at);
            (at, old_at) = (end - back, old_end - back);
        }
    }

    /// Adds bytes that differ from `old`, `offset` before them, in the first one at least.
    fn differing(&mut self, new: &[u8], old: &[u8], offset: usize) {
        let mut at = 0;
        while at < new.len() {
            let other = other_at_the_front(&new[at..], old.get(at..).unwrap_or_default());
            self.frame.literal(&new[at..at + other]);
            at += other;
            if at == new.len() {
                break;
            }
            let same = same_at_the_front(&new[at..], old.get(at..).unwrap_or_default());
            self.frame.copy(&new[at..at + same], offset);
            at += same;
        }
    }
}

impl Known {
    fn line<'o>(&self, out: &'o [u8]) -> &'o [u8] {
        &out[self.at..self.at + self.ends[self.ends.len() - 1] as usize]
    }
}

impl Kind {
    fn of(line: &[u8], ends: &Ends) -> Self {
        let of = line.last_chunk().copied().unwrap_or_default();
        Self { of, lengths: [ends[EVENT] - ends[EVENT - 1], ends[EVENT + 1] - ends[EVENT]] }
    }
}

/// How many bytes at the front are the same.
fn same_at_the_front(new: &[u8], old: &[u8]) -> usize {
    let wide = new.as_chunks::<32>().0.iter().zip(old.as_chunks::<32>().0);
    let mut same = 32 * wide.take_while(|(new, old)| new == old).count();
    for (new, old) in new[same..].as_chunks().0.iter().zip(old[same..].as_chunks().0) {
        let differing = u64::from_le_bytes(*new) ^ u64::from_le_bytes(*old);
        if differing != 0 {
            return same + differing.trailing_zeros() as usize / 8;
        }
        same += 8;
    }
    same + new[same..].iter().zip(&old[same..]).take_while(|(new, old)| new == old).count()
}

/// How many bytes at the end are the same.
fn same_at_the_end(new: &[u8], old: &[u8]) -> usize {
    let mut same = 0;
    for (new, old) in new.as_rchunks().1.iter().rev().zip(old.as_rchunks().1.iter().rev()) {
        let differing = u64::from_le_bytes(*new) ^ u64::from_le_bytes(*old);
        if differing != 0 {
            return same + differing.leading_zeros() as usize / 8;
        }
        same += 8;
    }
    let rest = new[..new.len() - same].iter().rev().zip(old[..old.len() - same].iter().rev());
    same + rest.take_while(|(new, old)| new == old).count()
}

/// How many bytes at the front are to be taken for others, in whole words.
fn other_at_the_front(new: &[u8], old: &[u8]) -> usize {
    let mut words = new.as_chunks::<8>().0.iter().zip(old.as_chunks::<8>().0);
    words.position(|(new, old)| new == old).map_or(new.len(), |words| 8 * words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::chain::{Chain, Epoch};
    use crate::audit::encode::Pieces;

    struct Trail {
        chain: Chain,
        out: Vec<u8>,
        repeats: Repeats,
    }

    impl Trail {
        fn new() -> Self {
            let mut repeats = Repeats::new();
            repeats.begin();
            Self { chain: Chain::new(Epoch::generate(1_795_183_402_118, None)), out: Vec::new(), repeats }
        }

        fn append(&mut self, head: [&str; 2], tail: [&str; 3]) {
            let at = self.out.len();
            let event = Pieces { head: head.map(str::as_bytes), tail: tail.map(str::as_bytes) };
            let appended = self.chain.append(&mut self.out, event, br#""instance":{"namespace":"clinic","service":"records","spiffe_id":"spiffe://hospital.local/ns/clinic/sa/records","version":"0.1.0"},"#);
            self.repeats.record(&self.out, at, appended.ends);
        }

        /// Appends the two records of a request.
        fn request(&mut self, random: &mut fastrand::Rng, conn: &str, template: &str) {
            let id = format!(r#""request":{{"id":"{:032x}"}},"#, random.u128(..));
            let decision = format!(
                r#""decision":{{"outcome":"allow","rule":"read"}},"http":{{"params":{{"id":"k1:{:016x}"}},"template":"{template}"}},"#,
                random.u64(..)
            );
            let response = format!(
                r#"{id}"response":{{"duration_us":{},"status":200}},"schema":"phiward.audit/1","#,
                random.u16(..)
            );
            let plain = format!(r#"{id}"schema":"phiward.audit/1","#);
            let time = |kind: &str, random: &mut fastrand::Rng| {
                format!(
                    r#""time":"2026-11-20T14:03:22.{:09}Z","type":"{kind}"}}"#,
                    random.u32(..1_000_000_000)
                )
            };
            let (subject, at) = (
                r#""subject":{"cert_sha256":"c4112d2e8389f95558cfe605e907656880ee0c01b44d18665d31cb4f17dea860","spiffe_id":"spiffe://hospital.local/web"},"#,
                time("access.decision", random),
            );
            self.append([conn, &decision], [&plain, subject, &at]);
            let at = time("access.complete", random);
            self.append([conn, ""], [&response, subject, &at]);
        }

        /// The frame, which a library decodes to what was chained.
        fn coded(&mut self) -> Vec<u8> {
            let coded = self.repeats.end(self.out.len()).unwrap().to_vec();
            assert!(zstd::bulk::decompress(&coded, self.out.len()).unwrap() == self.out);
            coded
        }
    }

    /// If this fails, a collector gets other records than were chained and tells of a forged trail, or as many bytes as there are.
    #[test]
    fn records_are_coded_by_what_they_repeat() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut trail = Trail::new();
        for number in 0..200 {
            let conn = format!(
                r#""conn":{{"alpn":"h2","cipher":"TLS13_AES_128_GCM_SHA256","direction":"inbound","listener":"api","peer_addr":"10.2.0.{}"}},"#,
                number % 7
            );
            let template = ["/fhir/Patient/{id}", "/fhir/Observation/{id}", "/notes/{id}"][number % 3];
            trail.request(&mut random, &conn, template);
        }
        let coded = trail.coded().len();
        assert!(coded * 4 < trail.out.len(), "{coded} of {}", trail.out.len());
    }

    /// If this fails, records that have little in common are coded wrong.
    #[test]
    fn records_of_any_kind_are_coded_as_they_are() {
        let mut random = fastrand::Rng::with_seed(9);
        for round in 0..60 {
            let mut trail = Trail::new();
            for _ in 0..random.usize(1..60) {
                let texts: Vec<String> = (0..5)
                    .map(|_| {
                        let len = random.usize(..[3, 30, 3000][round % 3]);
                        (0..len)
                            .map(|_| if random.u8(..9) == 0 { random.alphanumeric() } else { 'x' })
                            .collect()
                    })
                    .collect();
                let [a, b, c, d, e] = &texts[..] else { unreachable!() };
                trail.append([a, b], [c, d, e]);
                if trail.out.len() > MAX_CONTENT {
                    break;
                }
            }
            if trail.out.len() <= MAX_CONTENT {
                trail.coded();
            }
        }
    }

    /// If this fails, a frame lacks records that were chained before it was begun, or grows without bound.
    #[test]
    fn there_is_no_frame_of_a_part_or_of_too_much() {
        let mut trail = Trail::new();
        trail.append(["", ""], ["", "", ""]);
        assert!(trail.repeats.end(trail.out.len() + 1).is_none(), "something else was appended");
        assert!(trail.repeats.end(trail.out.len()).is_none(), "it was asked for before");
        trail.repeats.begin();
        trail.append(["", ""], ["", "", ""]);
        assert!(trail.repeats.end(trail.out.len()).is_none(), "there was something before");
        let mut trail = Trail::new();
        let text = "x".repeat(60_000);
        while trail.out.len() <= MAX_CONTENT {
            trail.append([&text, ""], ["", "", ""]);
        }
        assert!(trail.repeats.end(trail.out.len()).is_none());
    }
}
