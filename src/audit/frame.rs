//! Encoded events on their way from a worker to the writer, and how a frame of the journal has them.
//!
//! Owns the batch and the layout of its events. Those of a turn stand in it as a frame, so that they are written to the journal from
//! where they are; and what all requests of a connection have in common stands in a frame once, and is else only named: it is a third of
//! what an event says. Knows nothing of what events say, and of a frame's head only how long it is.

use super::event::ConnFragment;

/// What a busy worker gathers before it sends it to the writer (see `recorder`), and some more.
const KEPT_BYTES: usize = 192 * 1024;
/// The head of a frame, which the journal fills in: magic, length of what follows the head, checksum of all after it, number of
/// events, number of the last one.
pub(crate) const FRAME_HEAD: usize = 24;
/// The head of an event: the number of its connection in the frame, and the lengths of what stands before `id`, from `instance` to where
/// `subject` belongs, and after that. A connection that has the next number follows at once, behind the lengths of its `conn` and `subject`.
const EVENT_HEAD: usize = 16;
/// The lengths before a connection's members.
const CONN_HEAD: usize = 8;
/// The number of the connection of an event that is of none.
const NO_CONN: u32 = u32::MAX;
/// So many connections are looked through for one that is in the batch already: some nanoseconds each.
const LOOKED_THROUGH: usize = 64;

/// What an event says around the members `id` and `instance`, whoever holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pieces<'a> {
    /// Before `id`.
    pub(crate) head: [&'a [u8]; 2],
    /// After `instance`.
    pub(crate) tail: [&'a [u8]; 3],
}

/// The same, on its own and in two pieces.
pub(crate) type Event = (Vec<u8>, Vec<u8>);

/// Encoded events that travel to the writer together.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    cuts: Vec<Cut>,
    conns: Vec<Conn>,
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
    /// Its place in the list of connections.
    conn: u32,
    head: u32,
    tail: u32,
    after_subject: u32,
    end: u32,
}

struct Conn {
    members: ConnFragment,
    /// The last frame that it is in, and its number there.
    frame: u32,
    number: u32,
}

struct Frame {
    from: usize,
    events: u32,
    conns: u32,
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
        self.conns.clear();
        self.conns.shrink_to(KEPT_BYTES / 256);
        (self.spelled_out, self.frame, self.frames) = (0, None, 0);
    }

    /// The events in the order they were recorded.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Pieces<'_>> {
        let piece = |from: u32, to: u32| &self.bytes[from as usize..to as usize];
        self.cuts.iter().map(move |cut| {
            let members = self.conns.get(cut.conn as usize).map(|conn| &*conn.members.0);
            let (conn, subject) = members.map_or(("", ""), |members| (&members.conn, &members.subject));
            Pieces {
                head: [conn.as_bytes(), piece(cut.head, cut.tail)],
                tail: [
                    piece(cut.tail, cut.after_subject),
                    subject.as_bytes(),
                    piece(cut.after_subject, cut.end),
                ],
            }
        })
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
            let mut begun = self.begin(None);
            event.head.iter().for_each(|piece| begun.out().extend_from_slice(piece));
            begun.head_ends();
            event.tail.iter().for_each(|piece| begun.out().extend_from_slice(piece));
            begun.subject_belongs_here();
            begun.end();
        }
    }

    /// Begins an event, of a connection if it is of one.
    pub(crate) fn begin(&mut self, conn: Option<&ConnFragment>) -> Begun<'_> {
        let from = self.bytes.len();
        let frame = self.frame.get_or_insert(Frame { from, events: 0, conns: 0 });
        let head_at = from + if frame.events == 0 { FRAME_HEAD } else { 0 };
        frame.events += 1;
        self.bytes.resize(head_at + EVENT_HEAD, 0);
        let (mut at, mut number) = (NO_CONN, NO_CONN);
        if let Some(conn) = conn {
            (at, number) = self.name(conn);
        }
        self.bytes[head_at..head_at + 4].copy_from_slice(&number.to_le_bytes());
        let head = self.bytes.len() as u32;
        let cut = Cut { conn: at, head, tail: head, after_subject: head, end: head };
        Begun { batch: self, head_at, cut }
    }

    /// The place of a connection in the list and its number in the frame, which has its members from here on.
    fn name(&mut self, members: &ConnFragment) -> (u32, u32) {
        let looked_through = self.conns.len().saturating_sub(LOOKED_THROUGH);
        let known = self.conns[looked_through..].iter().rposition(|known| known.members.is_same(members));
        let at = known.map_or(self.conns.len(), |at| at + looked_through);
        if known.is_none() {
            self.conns.push(Conn { members: members.clone(), frame: u32::MAX, number: 0 });
        }
        let (conn, frames) = (&mut self.conns[at], self.frames);
        if conn.frame != frames
            && let Some(frame) = &mut self.frame
        {
            (conn.frame, conn.number) = (frames, frame.conns);
            frame.conns += 1;
            let parts = [members.0.conn.as_bytes(), members.0.subject.as_bytes()];
            parts.iter().for_each(|part| self.bytes.extend_from_slice(&(part.len() as u32).to_le_bytes()));
            parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        }
        (at as u32, conn.number)
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
        let places = batch.bytes[head_at + 4..head_at + EVENT_HEAD].chunks_exact_mut(4);
        places.zip(lengths).for_each(|(place, length)| place.copy_from_slice(&length.to_le_bytes()));
        let conn = batch.conns.get(cut.conn as usize).map(|conn| &*conn.members.0);
        let in_common = conn.map_or(0, |members| members.conn.len() + members.subject.len());
        batch.spelled_out += u64::from(cut.end - cut.head) + in_common as u64;
        batch.cuts.push(cut);
    }
}

impl<'a> Pieces<'a> {
    pub(crate) fn of((head, tail): &'a Event) -> Self {
        Self { head: [head, b""], tail: [tail, b"", b""] }
    }

    pub(crate) fn to_event(self) -> Event {
        (self.head.concat(), self.tail.concat())
    }
}

/// The first `count` events after a frame's head; `None` if they are not what a batch has written.
pub(crate) fn events(count: u32, mut rest: &[u8]) -> Option<Vec<Event>> {
    let (mut events, mut conns): (_, Vec<(&[u8], &[u8])>) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let ([number, lengths @ ..], after) = numbers::<{ EVENT_HEAD / 4 }>(rest)?;
        rest = after;
        if number as usize == conns.len() {
            let (lengths, after) = numbers::<{ CONN_HEAD / 4 }>(rest)?;
            let ([conn, subject], after) = parts(lengths, after)?;
            conns.push((conn, subject));
            rest = after;
        }
        let (conn, subject) =
            if number == NO_CONN { Default::default() } else { *conns.get(number as usize)? };
        let ([head, tail, after_subject], after) = parts(lengths, rest)?;
        events.push(Pieces { head: [conn, head], tail: [tail, subject, after_subject] }.to_event());
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
    use crate::audit::event::{AccessComplete, ConnFacts, Direction, ResponseFacts, SubjectFacts};

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

    /// If this fails, a killed process' events come back with the connection of another caller.
    #[test]
    fn each_event_has_its_connection_in_whatever_frame_it_is() {
        for connections in [1, 3, LOOKED_THROUGH + 1] {
            let conns: Vec<_> = (0..connections).map(conn).collect();
            let (mut batch, mut recorded) = (Batch::default(), Vec::new());
            for turn in 0..4 {
                for number in 0..2 * connections {
                    complete(&mut batch, &conns[(number * 7 + turn) % connections], "one");
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
                let subject = conn.0.subject.as_bytes();
                assert_eq!(frame.windows(subject.len()).filter(|at| *at == subject).count(), 1);
            }
            assert_eq!(batch.conns.len(), 1);
            batch.clear();
            assert!(batch.is_empty() && batch.conns.is_empty() && batch.bytes() == 0 && !batch.has_frame());
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
