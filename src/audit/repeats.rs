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
    /// How much of the frame's content is not in the caller's buffer any more.
    gone: usize,
    #[cfg(debug_assertions)]
    content: Vec<u8>,
    /// The last record of each kind.
    known: Vec<Known>,
    /// The place of the last one among them.
    last: usize,
    /// The place that the next kind takes.
    next: usize,
}

struct Known {
    kind: Kind,
    /// Where it is in the frame's content.
    at: usize,
    ends: Ends,
    /// The record itself, once the caller's buffer has it no more.
    kept: Vec<u8>,
}

/// Records of one kind say the same but for some values: they have one type, and tell as much of their connection and decision.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    of: [u8; TYPE_BYTES],
    lengths: [u32; 2],
}

impl Repeats {
    pub(crate) fn new() -> Self {
        Self {
            frame: Frame::default(),
            is_open: false,
            gone: 0,
            #[cfg(debug_assertions)]
            content: Vec::new(),
            known: Vec::with_capacity(KINDS),
            last: 0,
            next: 0,
        }
    }

    /// Begins a frame; what was there is gone.
    pub(crate) fn begin(&mut self) {
        self.frame.begin();
        self.is_open = true;
        #[cfg(debug_assertions)]
        self.content.clear();
        self.known.clear();
        (self.gone, self.last, self.next) = (0, 0, 0);
    }

    /// Adds the record that `out` ends with, from byte `at` on. All before it are in the frame.
    pub(crate) fn record(&mut self, out: &[u8], at: usize, ends: Ends) {
        self.is_open &= self.frame.content() == self.gone + at && self.gone + out.len() <= MAX_CONTENT;
        if !self.is_open {
            return;
        }
        let new = &out[at..];
        let kind = Kind::of(new, &ends);
        let exactly = self.known.iter().position(|known| known.kind == kind);
        let of_type = || self.known.iter().position(|known| known.kind.of == kind.of);
        let at = self.gone + at;
        match self.known.get(self.last) {
            None => self.frame.literal(new),
            Some(last) => {
                let like = &self.known[exactly.or_else(of_type).unwrap_or(self.last)];
                let old = like.line(out, self.gone);
                compare(&mut self.frame, (new, at, &ends), (old, like.at, &like.ends), last.at);
            }
        }
        self.last = exactly.unwrap_or(self.next);
        if exactly.is_none() {
            self.next = (self.next + 1) % KINDS;
        }
        match self.known.get_mut(self.last) {
            Some(known) => (known.kind, known.at, known.ends) = (kind, at, ends),
            None => self.known.push(Known { kind, at, ends, kept: Vec::new() }),
        }
    }

    /// The caller empties `out`, and the frame goes on with what it has next.
    pub(crate) fn go_on(&mut self, out: &[u8]) {
        for known in self.known.iter_mut().filter(|known| known.at >= self.gone) {
            let from = known.at - self.gone;
            known.kept.clear();
            known.kept.extend_from_slice(&out[from..from + known.len()]);
        }
        self.gone += out.len();
        #[cfg(debug_assertions)]
        self.content.extend_from_slice(out);
    }

    /// The frame, if it has all that was gone on from, and `out`, and no more.
    pub(crate) fn end(&mut self, out: &[u8]) -> Option<&[u8]> {
        let whole = std::mem::take(&mut self.is_open) && self.frame.content() == self.gone + out.len();
        let coded = if whole { self.frame.end()? } else { return None };
        #[cfg(debug_assertions)]
        {
            self.content.extend_from_slice(out);
            let plain = zstd::bulk::decompress(coded, self.content.len());
            assert!(plain.is_ok_and(|plain| plain == self.content), "the frame is not what was chained");
        }
        Some(coded)
    }
}

/// Adds a record by what it has in common with one `like` it, and with the one before it, which is at `last`. Of both: the record, where it is
/// in the content, and where its parts end.
fn compare(
    frame: &mut Frame,
    (new, new_at, ends): (&[u8], usize, &Ends),
    (old, like_at, old_ends): (&[u8], usize, &Ends),
    last: usize,
) {
    let [before_hash, _, before_prev, after_prev, ..] = ends.map(|end| end as usize);
    let distance = new_at - like_at;
    frame.copy(&new[..before_hash], distance);
    frame.literal(&new[before_hash..before_prev]);
    // What the record before is called.
    let hash_of_last = last + before_hash;
    frame.copy(&new[before_prev..after_prev], new_at + before_prev - hash_of_last);
    let mut ends = ends.iter().zip(old_ends).map(|(end, old)| (*end as usize, *old as usize));
    let (mut at, mut old_at) = (after_prev, after_prev);
    loop {
        // All that is the same goes at once, whatever parts it is.
        let same = same_at_the_front(&new[at..], &old[old_at..]);
        frame.copy(&new[at..at + same], distance + at - old_at);
        (at, old_at) = (at + same, old_at + same);
        // Where they differ, they may be the same again at the end of the part.
        let Some((end, old_end)) = ends.find(|(end, _)| *end > at) else { break };
        let (rest, old) = (&new[at..end], old.get(old_at..old_end).unwrap_or_default());
        let back = same_at_the_end(rest, old);
        differing(frame, &rest[..rest.len() - back], old, distance + at - old_at);
        (at, old_at) = (end - back, old_end - back);
    }
}

/// Adds bytes that differ from `old`, `offset` before them, in the first one at least.
fn differing(frame: &mut Frame, new: &[u8], old: &[u8], offset: usize) {
    let mut at = 0;
    while at < new.len() {
        let other = other_at_the_front(&new[at..], old.get(at..).unwrap_or_default());
        frame.literal(&new[at..at + other]);
        at += other;
        if at == new.len() {
            break;
        }
        let same = same_at_the_front(&new[at..], old.get(at..).unwrap_or_default());
        frame.copy(&new[at..at + same], offset);
        at += same;
    }
}

impl Known {
    fn len(&self) -> usize {
        self.ends[self.ends.len() - 1] as usize
    }

    /// The record, in `out` or in what was kept of what is `gone`.
    fn line<'r>(&'r self, out: &'r [u8], gone: usize) -> &'r [u8] {
        match self.at.checked_sub(gone) {
            Some(at) => &out[at..at + self.len()],
            None => &self.kept,
        }
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
    use crate::audit::frame::Pieces;

    struct Trail {
        chain: Chain,
        /// What was chained and is not in `out` any more.
        gone: Vec<u8>,
        out: Vec<u8>,
        repeats: Repeats,
    }

    impl Trail {
        fn new() -> Self {
            let mut repeats = Repeats::new();
            repeats.begin();
            let chain = Chain::new(Epoch::generate(1_795_183_402_118, None));
            Self { chain, gone: Vec::new(), out: Vec::new(), repeats }
        }

        fn go_on(&mut self) {
            self.repeats.go_on(&self.out);
            self.gone.append(&mut self.out);
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
            let coded = self.repeats.end(&self.out).unwrap().to_vec();
            self.gone.append(&mut self.out);
            assert!(zstd::bulk::decompress(&coded, self.gone.len()).unwrap() == self.gone);
            coded
        }
    }

    /// If this fails, a collector gets other records than were chained and tells of a forged trail, or as many bytes as there are.
    #[test]
    fn records_are_coded_by_what_they_repeat() {
        let coded: Vec<_> = [usize::MAX, 32 * 1024, 1].map(coded_of_400).into();
        let [(whole, plain), pieces, records] = coded[..] else { unreachable!() };
        assert!(whole * 4 < plain, "{whole} of {plain}");
        assert_eq!([pieces, records], [(whole, plain); 2], "whatever the pieces are, the frame is the same");
    }

    /// How long the frame of 400 records is, and they are, where they are written after so many bytes.
    fn coded_of_400(written_after: usize) -> (usize, usize) {
        let mut random = fastrand::Rng::with_seed(5);
        let mut trail = Trail::new();
        for number in 0..200 {
            let conn = format!(
                r#""conn":{{"alpn":"h2","cipher":"TLS13_AES_128_GCM_SHA256","direction":"inbound","listener":"api","peer_addr":"10.2.0.{}"}},"#,
                number % 7
            );
            let template = ["/fhir/Patient/{id}", "/fhir/Observation/{id}", "/notes/{id}"][number % 3];
            trail.request(&mut random, &conn, template);
            if trail.out.len() >= written_after {
                trail.go_on();
            }
        }
        (trail.coded().len(), trail.gone.len())
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
                if trail.gone.len() + trail.out.len() > MAX_CONTENT {
                    break;
                }
                if random.u8(..4) == 0 {
                    trail.go_on();
                }
            }
            if trail.gone.len() + trail.out.len() <= MAX_CONTENT {
                trail.coded();
            }
        }
    }

    /// If this fails, a frame lacks records that were chained before it was begun, or grows without bound.
    #[test]
    fn there_is_no_frame_of_a_part_or_of_too_much() {
        let mut trail = Trail::new();
        trail.append(["", ""], ["", "", ""]);
        assert!(trail.repeats.end(&[&trail.out[..], b" "].concat()).is_none(), "something else was appended");
        assert!(trail.repeats.end(&trail.out).is_none(), "it was asked for before");
        trail.repeats.begin();
        trail.append(["", ""], ["", "", ""]);
        assert!(trail.repeats.end(&trail.out).is_none(), "there was something before");
        let mut trail = Trail::new();
        let text = "x".repeat(60_000);
        while trail.out.len() <= MAX_CONTENT {
            trail.append([&text, ""], ["", "", ""]);
        }
        assert!(trail.repeats.end(&trail.out).is_none());
    }
}
