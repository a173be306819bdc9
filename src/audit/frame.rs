//! Events on their way from a worker to the writer, and how a frame of the journal has them.
//!
//! Owns the batch and the layout of its frames. Those of a turn stand in it as a frame, so that they are written to the journal from
//! where they are; and what many events have in common stands in a frame once, and is else only named. The writer reads a batch as a start
//! reads what a killed process left in its journal. Knows nothing of what events say, and of a frame's head only how long it is.

use std::sync::Arc;

/// What a busy worker gathers before it sends it to the writer (see `recorder`), and some more.
const KEPT_BYTES: usize = 192 * 1024;
/// The head of a frame, which the journal fills in: magic, length of what follows the head, checksum of all after it, number of
/// events, number of the last one.
pub(crate) const FRAME_HEAD: usize = 24;
/// The head of an event: the numbers in the frame of what it has in common with others of its connection and of its way, and the length of the
/// rest. What has the next number follows at once, behind the lengths of its texts.
const EVENT_HEAD: usize = 12;
/// The lengths before the texts of what is named.
const COMMON_HEAD: usize = 8;
/// The number of what an event has not.
const NONE: u32 = u32::MAX;
/// So many are looked through for one that is named in the batch already: some nanoseconds each.
const LOOKED_THROUGH: usize = 64;

/// Two texts that many events have in common. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Common(Arc<[Box<str>; 2]>);

/// An event as a frame has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'f> {
    /// What it has in common with others of its connection; two empty texts where it is of none.
    pub(crate) conn: [&'f [u8]; 2],
    /// The same of its way.
    pub(crate) route: [&'f [u8]; 2],
    /// What only it says.
    pub(crate) own: &'f [u8],
}

/// Events that travel to the writer together.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    events: u64,
    known: Vec<Known>,
    /// The frames that [`Batch::frame`] has given.
    given: Vec<Frame>,
    /// The one that it has not.
    frame: Option<Frame>,
}

struct Known {
    common: Common,
    /// The last frame that it is in, and its number there.
    frame: usize,
    number: u32,
}

#[derive(Clone, Copy)]
struct Frame {
    from: usize,
    events: u32,
    commons: u32,
}

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

impl Batch {
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// How many bytes they are, here and in the journal.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// Makes the buffers empty, and small again after a burst.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.known.clear();
        self.known.shrink_to(LOOKED_THROUGH);
        self.given.clear();
        (self.events, self.frame) = (0, None);
    }

    /// Adds an event of which `own` writes what only it says.
    pub(crate) fn add(
        &mut self,
        conn: Option<&Common>,
        route: Option<&Common>,
        own: impl FnOnce(&mut Vec<u8>),
    ) {
        let from = self.bytes.len();
        let frame = self.frame.get_or_insert(Frame { from, events: 0, commons: 0 });
        let head_at = from + if frame.events == 0 { FRAME_HEAD } else { 0 };
        frame.events += 1;
        self.events += 1;
        self.bytes.resize(head_at + EVENT_HEAD, 0);
        let [conn, route] = [conn, route].map(|common| common.map_or(NONE, |common| self.name(common)));
        let own_at = self.bytes.len();
        own(&mut self.bytes);
        let length = (self.bytes.len() - own_at) as u32;
        let head = self.bytes[head_at..head_at + EVENT_HEAD].chunks_exact_mut(4);
        head.zip([conn, route, length])
            .for_each(|(place, number)| place.copy_from_slice(&number.to_le_bytes()));
    }

    /// The number in the frame, which has the texts from here on.
    fn name(&mut self, common: &Common) -> u32 {
        let looked_through = self.known.len().saturating_sub(LOOKED_THROUGH);
        let known = self.known[looked_through..].iter().rposition(|known| known.common.is_same(common));
        let at = known.map_or(self.known.len(), |at| at + looked_through);
        if known.is_none() {
            self.known.push(Known { common: common.clone(), frame: usize::MAX, number: 0 });
        }
        let known = &mut self.known[at];
        if known.frame != self.given.len()
            && let Some(frame) = &mut self.frame
        {
            (known.frame, known.number) = (self.given.len(), frame.commons);
            frame.commons += 1;
            let texts = [common.first().as_bytes(), common.second().as_bytes()];
            texts.iter().for_each(|text| self.bytes.extend_from_slice(&(text.len() as u32).to_le_bytes()));
            texts.iter().for_each(|text| self.bytes.extend_from_slice(text));
        }
        known.number
    }

    /// Whether there are events that [`Batch::frame`] has not given.
    pub(crate) fn has_frame(&self) -> bool {
        self.frame.is_some()
    }

    /// The events since the last time as a frame, whose head is not filled in, and how many they are. The next ones begin another.
    pub(crate) fn frame(&mut self) -> Option<(&mut [u8], u32)> {
        let frame = self.frame.take()?;
        self.given.push(frame);
        Some((&mut self.bytes[frame.from..], frame.events))
    }

    /// The events in the order they were recorded, as [`Events`] gives them.
    pub(crate) fn told(&self) -> impl Iterator<Item = Option<Told<'_>>> {
        let frames = self.given.iter().chain(&self.frame);
        frames.flat_map(|frame| Events::new(frame.events, &self.bytes[frame.from + FRAME_HEAD..]))
    }
}

/// The events of a frame, in their order. One that no batch has written is `None`, and the last.
pub(crate) struct Events<'f> {
    left: u32,
    rest: &'f [u8],
    known: Vec<[&'f [u8]; 2]>,
}

impl<'f> Events<'f> {
    /// The first `count` after a frame's head.
    pub(crate) fn new(count: u32, frame: &'f [u8]) -> Self {
        Self { left: count, rest: frame, known: Vec::new() }
    }

    fn read(&mut self) -> Option<Told<'f>> {
        let ([conn, route, length], rest) = numbers::<{ EVENT_HEAD / 4 }>(self.rest)?;
        self.rest = rest;
        let [conn, route] = [self.common(conn)?, self.common(route)?];
        let ([own], rest) = parts([length], self.rest)?;
        self.rest = rest;
        Some(Told { conn, route, own })
    }

    /// The texts of this number, which follow where it is the next one.
    fn common(&mut self, number: u32) -> Option<[&'f [u8]; 2]> {
        if number == NONE {
            return Some(Default::default());
        }
        if number as usize == self.known.len() {
            let (lengths, rest) = numbers::<{ COMMON_HEAD / 4 }>(self.rest)?;
            let (common, rest) = parts(lengths, rest)?;
            self.known.push(common);
            self.rest = rest;
        }
        self.known.get(number as usize).copied()
    }
}

impl<'f> Iterator for Events<'f> {
    type Item = Option<Told<'f>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let told = self.read();
        if told.is_none() {
            self.left = 0;
        }
        Some(told)
    }
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

    type Owned = ([Vec<u8>; 2], [Vec<u8>; 2], Vec<u8>);

    fn common(what: &str, number: usize) -> Common {
        Common::new(format!("{what} {number}'s beginning").into(), format!("{what} {number}'s end").into())
    }

    fn owned(told: Told<'_>) -> Owned {
        (told.conn.map(<[u8]>::to_vec), told.route.map(<[u8]>::to_vec), told.own.to_vec())
    }

    fn of_batch(batch: &Batch) -> Vec<Owned> {
        batch.told().map(|told| owned(told.unwrap())).collect()
    }

    /// The events of the frame that a batch has now, as they are read back.
    fn of_frame(batch: &mut Batch) -> Vec<Owned> {
        let (frame, count) = batch.frame().unwrap();
        Events::new(count, &frame[FRAME_HEAD..]).map(|told| owned(told.unwrap())).collect()
    }

    /// If this fails, an event is told of another caller's connection or by another's right, by the writer or after a kill.
    #[test]
    fn each_event_has_its_connection_and_its_way_in_whatever_frame_it_is() {
        for number in [1, 3, LOOKED_THROUGH + 1] {
            let [conns, ways] =
                ["conn", "way"].map(|what| (0..number).map(|at| common(what, at)).collect::<Vec<_>>());
            let texts = |common: Option<&Common>| {
                common.map_or_else(Default::default, |common| {
                    [common.first().as_bytes().to_vec(), common.second().as_bytes().to_vec()]
                })
            };
            let (mut batch, mut in_frames, mut added) = (Batch::default(), Vec::new(), Vec::new());
            for turn in 0..4 {
                for at in 0..3 * number {
                    let conn = (at % 5 != 4).then(|| &conns[(at * 7 + turn) % number]);
                    let way = (at % 2 == 0).then(|| &ways[(at * 5 + turn) % number]);
                    let own = vec![at as u8; at % 4];
                    batch.add(conn, way, |out| out.extend_from_slice(&own));
                    added.push((texts(conn), texts(way), own));
                }
                if turn < 3 {
                    in_frames.extend(of_frame(&mut batch));
                }
            }
            assert!(of_batch(&batch) == added, "{number} of each, in a batch whose last frame was not given");
            in_frames.extend(of_frame(&mut batch));
            assert!(in_frames == added && of_batch(&batch) == added, "{number} of each");
            assert_eq!(batch.events(), added.len() as u64);
        }
    }

    /// If this fails, a worker copies into each event what a frame needs once, or a batch that is used again names what is gone.
    #[test]
    fn what_is_in_common_stands_once_in_a_frame() {
        let (mut batch, conn, way) = (Batch::default(), common("conn", 1), common("way", 1));
        for _ in 0..2 {
            for _ in 0..2 {
                (0..10).for_each(|_| batch.add(Some(&conn), Some(&way), |out| out.push(1)));
                let (frame, _) = batch.frame().unwrap();
                for text in [conn.first(), conn.second(), way.first(), way.second()] {
                    assert_eq!(frame.windows(text.len()).filter(|at| *at == text.as_bytes()).count(), 1);
                }
            }
            assert_eq!(batch.known.len(), 2);
            batch.clear();
            assert!(batch.is_empty() && batch.known.is_empty() && batch.bytes() == 0 && !batch.has_frame());
        }
    }

    /// If this fails, a damaged journal makes the start panic.
    #[test]
    fn no_bytes_make_reading_panic() {
        let (mut batch, conns) = (Batch::default(), [common("conn", 0), common("conn", 1)]);
        let way = common("way", 0);
        conns
            .iter()
            .cycle()
            .take(6)
            .for_each(|conn| batch.add(Some(conn), Some(&way), |out| out.extend([7; 9])));
        let whole = batch.frame().unwrap().0[FRAME_HEAD..].to_vec();
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let mut damaged = whole.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..damaged.len());
                damaged[at] = random.u8(..);
            }
            damaged.truncate(random.usize(..=damaged.len()).max(random.usize(..=damaged.len())));
            let read: Vec<_> = Events::new(6, &damaged).collect(); // whatever it is, it is no panic
            assert!(read.iter().rev().skip(1).all(Option::is_some));
        }
    }
}
