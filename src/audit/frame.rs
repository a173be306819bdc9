//! Encoded events on their way from a worker to the writer, and how a frame of the journal has them.
//!
//! Owns the batch and the layout of its events. Those of a turn stand in it as a frame, so that they are written to the journal from
//! where they are; and what the events of a connection, or of one way (see `route`), have in common stands in a frame once, and is else
//! only named: it is more than half of what they say. Knows nothing of what events say, and of a frame's head only how long it is.

use std::sync::Arc;

/// What a busy worker gathers before it sends it to the writer (see `recorder`), and some more.
const KEPT_BYTES: usize = 192 * 1024;
/// The head of a frame, which the journal fills in: magic, length of what follows the head, checksum of all after it, number of
/// events, number of the last one.
pub(crate) const FRAME_HEAD: usize = 24;
/// The head of an event: the numbers in the frame of what it has in common with those of its connection and of its way, and the lengths of what
/// it says itself: before `id`, from `instance` to where `subject` belongs, and after that. What has the next number follows at once, behind the
/// lengths of its two texts.
const EVENT_HEAD: usize = 20;
/// The lengths before two texts that events have in common.
const COMMON_HEAD: usize = 8;
/// The number of what an event does not have.
const NONE: u32 = u32::MAX;
/// So many are looked through for one that is in the batch already: some nanoseconds each.
const LOOKED_THROUGH: usize = 64;

/// What an event says around the members `id` and `instance`, whoever holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pieces<'a> {
    /// Before `id`.
    pub(crate) head: [&'a [u8]; 4],
    /// After `instance`.
    pub(crate) tail: [&'a [u8]; 3],
}

/// The same, on its own and in two pieces.
pub(crate) type Event = (Vec<u8>, Vec<u8>);

/// Two texts that many events have in common. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Common(Arc<[Box<str>; 2]>);

impl Common {
    pub(crate) fn new(first: Box<str>, second: Box<str>) -> Self {
        Self(Arc::new([first, second]))
    }

    pub(crate) fn first(&self) -> &str {
        &self.0[0]
    }

    pub(crate) fn second(&self) -> &str {
        &self.0[1]
    }

    /// Whether it is a clone of the other.
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Encoded events that travel to the writer together.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    cuts: Vec<Cut>,
    known: Vec<Known>,
    /// The length of all events, each with what it has in common with others.
    spelled_out: u64,
    /// The frame that is not journaled.
    frame: Option<Frame>,
    /// How many frames were begun before it.
    frames: u32,
}

/// Where the parts of an event are, each up to the next.
#[derive(Clone, Copy)]
struct Cut {
    /// The places in the list of what is known.
    conn: u32,
    route: u32,
    head: u32,
    tail: u32,
    after_subject: u32,
    end: u32,
}

struct Known {
    common: Common,
    /// The last frame that it is in, and its number there.
    frame: u32,
    number: u32,
}

struct Frame {
    from: usize,
    events: u32,
    commons: u32,
}

impl Batch {
    pub(crate) fn events(&self) -> u64 {
        self.cuts.len() as u64
    }

    /// The length of all events as they were recorded.
    pub(crate) fn bytes(&self) -> u64 {
        self.spelled_out
    }

    /// How many bytes they are here, and in the journal.
    pub(crate) fn encoded(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.cuts.is_empty()
    }

    /// Makes the buffers empty, and small again after a burst.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.cuts.clear();
        self.cuts.shrink_to(KEPT_BYTES / 256);
        self.known.clear();
        self.known.shrink_to(KEPT_BYTES / 256);
        (self.spelled_out, self.frame, self.frames) = (0, None, 0);
    }

    /// The events in the order they were recorded.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Pieces<'_>> {
        let piece = |from: u32, to: u32| &self.bytes[from as usize..to as usize];
        self.cuts.iter().map(move |cut| {
            let [[conn, subject], [before, after]] = [cut.conn, cut.route].map(|at| self.texts(at));
            Pieces {
                head: [conn, before, piece(cut.head, cut.tail), after],
                tail: [piece(cut.tail, cut.after_subject), subject, piece(cut.after_subject, cut.end)],
            }
        })
    }

    /// What is at this place of the list; nothing at [`NONE`].
    fn texts(&self, at: u32) -> [&[u8]; 2] {
        let known = self.known.get(at as usize);
        known.map_or([b"", b""], |known| [known.common.first().as_bytes(), known.common.second().as_bytes()])
    }

    /// Whether there are events that [`Batch::frame`] has not given.
    pub(crate) fn has_frame(&self) -> bool {
        self.frame.is_some()
    }

    /// The events since the last time as a frame, whose head is not filled in, and how many they are. The next ones begin another.
    pub(crate) fn frame(&mut self) -> Option<(&mut [u8], u32)> {
        let frame = self.frame.take()?;
        self.frames += 1;
        Some((&mut self.bytes[frame.from..], frame.events))
    }

    /// Takes over the events of another batch.
    pub(crate) fn append(&mut self, other: &Self) {
        for event in other.pieces() {
            let mut begun = self.begin(None, None);
            event.head.iter().for_each(|piece| begun.out().extend_from_slice(piece));
            begun.head_ends();
            event.tail.iter().for_each(|piece| begun.out().extend_from_slice(piece));
            begun.subject_belongs_here();
            begun.end();
        }
    }

    /// Begins an event, with what it has in common with others of its connection, and of its way.
    pub(crate) fn begin(&mut self, conn: Option<&Common>, route: Option<&Common>) -> Begun<'_> {
        let from = self.bytes.len();
        let frame = self.frame.get_or_insert(Frame { from, events: 0, commons: 0 });
        let head_at = from + if frame.events == 0 { FRAME_HEAD } else { 0 };
        frame.events += 1;
        self.bytes.resize(head_at + EVENT_HEAD, 0);
        let mut places = [NONE; 2];
        for (at, common) in [conn, route].into_iter().enumerate() {
            let mut number = NONE;
            if let Some(common) = common {
                (places[at], number) = self.name(common);
            }
            self.bytes[head_at + 4 * at..][..4].copy_from_slice(&number.to_le_bytes());
        }
        let [conn, route] = places;
        let head = self.bytes.len() as u32;
        let cut = Cut { conn, route, head, tail: head, after_subject: head, end: head };
        Begun { batch: self, head_at, cut }
    }

    /// The place in the list and the number in the frame, which has the texts from here on.
    fn name(&mut self, common: &Common) -> (u32, u32) {
        let looked_through = self.known.len().saturating_sub(LOOKED_THROUGH);
        let known = self.known[looked_through..].iter().rposition(|known| known.common.is_same(common));
        let at = known.map_or(self.known.len(), |at| at + looked_through);
        if known.is_none() {
            self.known.push(Known { common: common.clone(), frame: u32::MAX, number: 0 });
        }
        let (known, frames) = (&mut self.known[at], self.frames);
        if known.frame != frames
            && let Some(frame) = &mut self.frame
        {
            (known.frame, known.number) = (frames, frame.commons);
            frame.commons += 1;
            let texts = [common.first().as_bytes(), common.second().as_bytes()];
            texts.iter().for_each(|text| self.bytes.extend_from_slice(&(text.len() as u32).to_le_bytes()));
            texts.iter().for_each(|text| self.bytes.extend_from_slice(text));
        }
        (at as u32, known.number)
    }
}

/// An event that is being encoded. It is none before [`Begun::end`].
#[must_use = "an event that is not ended is not in the batch, and half of it in the frame"]
pub(crate) struct Begun<'b> {
    batch: &'b mut Batch,
    head_at: usize,
    cut: Cut,
}

impl Begun<'_> {
    /// Where its members go.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.batch.bytes
    }

    /// What follows stands after `instance`.
    pub(crate) fn head_ends(&mut self) {
        self.cut.tail = self.batch.bytes.len() as u32;
    }

    /// What follows stands after `subject`.
    pub(crate) fn subject_belongs_here(&mut self) {
        self.cut.after_subject = self.batch.bytes.len() as u32;
    }

    pub(crate) fn end(self) {
        let Self { batch, head_at, mut cut } = self;
        cut.end = batch.bytes.len() as u32;
        let lengths = [cut.tail - cut.head, cut.after_subject - cut.tail, cut.end - cut.after_subject];
        let places = batch.bytes[head_at + 8..head_at + EVENT_HEAD].chunks_exact_mut(4);
        places.zip(lengths).for_each(|(place, length)| place.copy_from_slice(&length.to_le_bytes()));
        let in_common = [cut.conn, cut.route].map(|at| batch.texts(at).map(<[u8]>::len));
        batch.spelled_out +=
            u64::from(cut.end - cut.head) + in_common.as_flattened().iter().sum::<usize>() as u64;
        batch.cuts.push(cut);
    }
}

impl<'a> Pieces<'a> {
    pub(crate) fn of((head, tail): &'a Event) -> Self {
        Self { head: [head, b"", b"", b""], tail: [tail, b"", b""] }
    }

    pub(crate) fn to_event(self) -> Event {
        (self.head.concat(), self.tail.concat())
    }
}

/// The first `count` events after a frame's head; `None` if they are not what a batch has written.
pub(crate) fn events(count: u32, mut rest: &[u8]) -> Option<Vec<Event>> {
    let (mut events, mut known): (_, Vec<[&[u8]; 2]>) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let ([conn, route, lengths @ ..], after) = numbers::<{ EVENT_HEAD / 4 }>(rest)?;
        rest = after;
        let mut texts: [[&[u8]; 2]; 2] = Default::default();
        for (texts, number) in texts.iter_mut().zip([conn, route]).filter(|(_, number)| *number != NONE) {
            if number as usize == known.len() {
                let (lengths, after) = numbers::<{ COMMON_HEAD / 4 }>(rest)?;
                let (common, after) = parts(lengths, after)?;
                known.push(common);
                rest = after;
            }
            *texts = *known.get(number as usize)?;
        }
        let [[conn, subject], [before, after_params]] = texts;
        let ([head, tail, after_subject], after) = parts(lengths, rest)?;
        let pieces =
            Pieces { head: [conn, before, head, after_params], tail: [tail, subject, after_subject] };
        events.push(pieces.to_event());
        rest = after;
    }
    Some(events)
}

/// The numbers at the beginning, and what follows.
fn numbers<const N: usize>(bytes: &[u8]) -> Option<([u32; N], &[u8])> {
    let (head, rest) = bytes.split_at_checked(4 * N)?;
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(head.as_chunks::<4>().0) {
        *number = u32::from_le_bytes(*bytes);
    }
    Some((numbers, rest))
}

/// The parts of these lengths, and what follows.
fn parts<const N: usize>(lengths: [u32; N], mut rest: &[u8]) -> Option<([&[u8]; N], &[u8])> {
    let mut parts = [&rest[..0]; N];
    for (part, length) in parts.iter_mut().zip(lengths) {
        (*part, rest) = rest.split_at_checked(length as usize)?;
    }
    Some((parts, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::clock::InstantText;
    use crate::audit::event::{
        AccessComplete, ConnFacts, ConnFragment, Direction, ResponseFacts, SubjectFacts,
    };

    fn conn(number: usize) -> ConnFragment {
        let id = format!("spiffe://hospital.local/web-{number}");
        ConnFragment::new(&ConnFacts {
            direction: Direction::Inbound,
            listener: "api",
            peer: "10.2.0.9".parse().unwrap(),
            destination: None,
            service: None,
            tls: None,
            subject: Some(SubjectFacts { spiffe_id: &id, cert_sha256: "ab" }),
        })
    }

    fn complete(batch: &mut Batch, conn: &ConnFragment, id: &str) {
        let response = ResponseFacts { status: 200, ..ResponseFacts::default() };
        let ev = AccessComplete { time_unix_ns: 1, request_id: id, trace_id: None, conn, response };
        batch.complete(&ev, &mut InstantText::new());
    }

    /// The events of the frame that a batch has now, as they are read back.
    fn read(batch: &mut Batch) -> Vec<Event> {
        let (frame, count) = batch.frame().unwrap();
        events(count, &frame[FRAME_HEAD..]).unwrap()
    }

    /// If this fails, a killed process' events come back with the connection of another caller, or by the right of another.
    #[test]
    fn each_event_has_its_connection_and_its_way_in_whatever_frame_it_is() {
        for connections in [1, 3, LOOKED_THROUGH + 1] {
            let conns: Vec<_> = (0..connections).map(conn).collect();
            let way =
                |number| Common::new(format!("way {number},").into(), format!("way {number}'s end,").into());
            let ways: Vec<_> = (0..connections).map(way).collect();
            let (mut batch, mut recorded) = (Batch::default(), Vec::new());
            for turn in 0..4 {
                for number in 0..2 * connections {
                    complete(&mut batch, &conns[(number * 7 + turn) % connections], "one");
                }
                for number in 0..2 * connections {
                    let (conn, way) =
                        (&conns[number % connections], &ways[(number * 5 + turn) % connections]);
                    let mut event = batch.begin(Some(&conn.common), Some(way));
                    event.out().extend_from_slice(b"params,");
                    event.head_ends();
                    event.subject_belongs_here();
                    event.end();
                }
                batch.trail(
                    &crate::audit::encode::TrailEvent::Gap {
                        from_unix_ns: 1,
                        to_unix_ns: 2,
                        allowed: 3,
                        denied: 4,
                    },
                    &mut InstantText::new(),
                    5,
                );
                recorded.extend(read(&mut batch));
            }
            let said: Vec<_> = batch.pieces().map(Pieces::to_event).collect();
            assert!(recorded == said, "{connections} connections");
            let lengths = said.iter().map(|(head, tail)| (head.len() + tail.len()) as u64);
            assert_eq!(batch.bytes(), lengths.sum::<u64>());
            let named = |number: usize| format!("web-{number}\"").into_bytes();
            let of =
                |event: &Event, number| event.1.windows(named(number).len()).any(|at| at == named(number));
            assert!(of(&said[0], 0) && of(&said[1], 7 % connections));
            let (head, _) = &said[2 * connections + 1];
            let way = 5 % connections;
            assert!(head.ends_with(format!("way {way},params,way {way}'s end,").as_bytes()));
        }
    }

    /// If this fails, a worker copies into each event what a frame needs once, or a batch that is used again names connections that are gone.
    #[test]
    fn a_connection_stands_once_in_a_frame() {
        let (mut batch, conn) = (Batch::default(), conn(1));
        for _ in 0..2 {
            for _ in 0..2 {
                (0..10).for_each(|_| complete(&mut batch, &conn, "one"));
                let (frame, _) = batch.frame().unwrap();
                let subject = conn.subject().as_bytes();
                assert_eq!(frame.windows(subject.len()).filter(|at| *at == subject).count(), 1);
            }
            assert_eq!(batch.known.len(), 1);
            batch.clear();
            assert!(batch.is_empty() && batch.known.is_empty() && batch.bytes() == 0 && !batch.has_frame());
        }
    }

    /// If this fails, a damaged journal makes the start panic.
    #[test]
    fn no_bytes_make_reading_panic() {
        let mut batch = Batch::default();
        [conn(0), conn(1)].iter().cycle().take(6).for_each(|conn| complete(&mut batch, conn, "one"));
        let whole = batch.frame().unwrap().0[FRAME_HEAD..].to_vec();
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let mut damaged = whole.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..damaged.len());
                damaged[at] = random.u8(..);
            }
            damaged.truncate(random.usize(..=damaged.len()).max(random.usize(..=damaged.len())));
            let _ = events(6, &damaged); // whatever it is, it is no panic
        }
    }
}
