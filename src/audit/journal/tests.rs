//! A journal that is read after its process was killed, at whatever moment that was.

use super::*;
use crate::audit::brief;
use crate::audit::encode::TrailEvent;

const SPOOL_BYTES: u64 = 64 * MIN_HALF_BYTES;

fn owner() -> Owner {
    Owner::new("0192f3c1-7a2e-7000-8000-000000000001".into(), b"\"instance\":{},".to_vec())
}

/// A batch of `events` events that can be told apart by `from`.
fn batch(from: u64, events: u64) -> Batch {
    let mut batch = Batch::default();
    add(&mut batch, from, events);
    batch
}

fn add(batch: &mut Batch, from: u64, events: u64) {
    for number in from..from + events {
        let gap = TrailEvent::Gap { from_unix_ns: number, to_unix_ns: number, allowed: number, denied: 0 };
        let mut speller = Speller::default();
        let Pieces { head, tail } = speller.trail(&gap, number);
        batch.add(None, None, |out| brief::whole(out, &head, &tail));
    }
}

fn pieces(batch: &Batch) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut speller = Speller::default();
    batch.told().map(|told| speller.told(&told.unwrap()).unwrap().to_event()).collect()
}

struct Written {
    dir: tempfile::TempDir,
    journal: Journal,
    marker: Marker,
    disk: Disk,
    last: u64,
}

impl Written {
    fn new() -> Self {
        Self::with_key(None)
    }

    fn with_key(key: Option<&SpoolKey>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (journal, marker) = Journal::create(dir.path(), 0, SPOOL_BYTES, &owner(), key).unwrap();
        Self { dir, journal, marker, disk: Disk::default(), last: 0 }
    }

    fn append(&mut self, events: u64, appended: u64) -> bool {
        let mut batch = batch(self.last + 1, events);
        let done = self.journal.append(&self.disk, &mut batch, self.last + events, appended).unwrap();
        self.last += if done { events } else { 0 };
        done
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("journal-0")
    }

    fn left(&self) -> Left {
        read(&self.path()).unwrap().unwrap()
    }
}

/// If this fails, events of forwarded requests are lost by `kill -9`, or come back in another form.
#[test]
fn what_was_journaled_is_read_back_in_order() {
    let mut written = Written::new();
    for events in [1, 3, 2] {
        assert!(written.append(events, 0));
    }
    let left = written.left();
    assert_eq!((left.owner, left.mark), (owner(), Mark::default()));
    assert_eq!(left.events, pieces(&batch(1, 6)));
}

/// If this fails, what encryption hides stands in a journal, or a killed process loses what its journal held.
#[test]
fn an_encrypted_journal_is_read_back_and_shows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), [203; 32]).unwrap();
    let key = SpoolKey::from_file(&dir.path().join("key")).unwrap();
    let mut written = Written::with_key(Some(&key));
    for events in [1, 3, 2] {
        assert!(written.append(events, 0));
    }
    let counting = pieces(&batch(40, 1)).remove(0);
    written.journal.keep(&written.disk, 3, None, Pieces::of(&counting)).unwrap();
    let shown = std::fs::read(written.path()).unwrap();
    assert!(!shown.windows(9).any(|part| part == b"audit.gap"));
    assert_eq!(written.left().events, [pieces(&batch(1, 6)), vec![counting]].concat());
}

/// If this fails, the part of a batch that was journaled in an earlier turn is recovered twice.
#[test]
fn only_what_is_new_in_a_batch_is_journaled() {
    let mut written = Written::new();
    let mut growing = batch(1, 3);
    assert!(written.journal.append(&written.disk, &mut growing, 3, 0).unwrap());
    add(&mut growing, 4, 2);
    assert!(written.journal.append(&written.disk, &mut growing, 5, 0).unwrap());
    assert_eq!(written.left().events, pieces(&batch(1, 5)));
}

/// If this fails, what is in the segments already is appended to them again.
#[test]
fn events_before_the_newest_mark_are_not_left() {
    let mut written = Written::new();
    assert!(written.append(9, 0));
    for (position, next_seq) in [(3, 5), (7, 12), (4, 9)] {
        written.marker.mark(&written.disk, Mark { position, next_seq });
        let left = written.left();
        let newest = if position == 3 {
            Mark { position: 3, next_seq: 5 }
        } else {
            Mark { position: 7, next_seq: 12 }
        };
        assert_eq!(
            (left.mark, left.events),
            (newest, pieces(&batch(newest.position + 1, 9 - newest.position)))
        );
    }
}

/// If this fails, a half is overwritten whose events are nowhere else yet.
#[test]
fn a_half_is_begun_again_only_when_its_events_are_appended() {
    let mut written = Written::new();
    let mut first_half = 0;
    while written.journal.half == 0 {
        first_half = written.last;
        assert!(written.append(7, 0));
    }
    while written.append(7, first_half - 1) {}
    let full = written.left().events;
    assert_eq!(full, pieces(&batch(1, written.last)), "both halves are whole");
    assert!(written.append(7, first_half));
    // What the older turn left behind the new frame is not taken for newer events.
    assert_eq!(written.left().events, pieces(&batch(first_half + 1, written.last - first_half)));
}

/// If this fails, a batch that is larger than a half blocks a worker for ever or breaks what was journaled.
#[test]
fn what_does_not_fit_goes_another_way() {
    let mut written = Written::new();
    assert!(written.append(2, 0));
    assert!(!written.append(1000, 0));
    assert_eq!(written.left().events, pieces(&batch(1, 2)));
}

/// If this fails, a kill in the middle of a write makes recovery bring over half an event, or drop the whole ones.
#[test]
fn a_frame_that_was_cut_short_ends_the_journal() {
    let mut written = Written::new();
    assert!(written.append(2, 0));
    let end = HALVES_AT as usize + written.journal.at as usize;
    assert!(written.append(2, 0));
    let whole = std::fs::read(written.path()).unwrap();
    for cut in [
        0,
        1,
        3,
        FRAME_HEAD - 1,
        FRAME_HEAD,
        FRAME_HEAD + 9,
        written.journal.at as usize - 1 + HALVES_AT as usize - end,
    ] {
        let mut torn = whole.clone();
        torn[end + cut..end + written.journal.half_bytes as usize / 2].fill(0);
        std::fs::write(written.path(), &torn).unwrap();
        assert_eq!(written.left().events, pieces(&batch(1, 2)), "cut after {cut} bytes");
    }
}

/// If this fails, a damaged journal makes the start panic or brings over what nobody recorded.
#[test]
fn no_bytes_make_it_panic() {
    let mut written = Written::new();
    assert!(written.append(3, 0));
    let all = pieces(&batch(1, 3));
    written.journal.keep(&written.disk, 0, None, Pieces::of(&all[0])).unwrap();
    let whole = std::fs::read(written.path()).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..2000 {
        let mut damaged = whole.clone();
        for _ in 0..random.usize(1..4) {
            let part = if random.bool() { 0 } else { HALVES_AT as usize };
            let at = part + random.usize(..HEADER_BYTES as usize + 600);
            damaged[at] = random.u8(..);
        }
        damaged.truncate(random.usize(..=damaged.len()).max(random.usize(..=whole.len())));
        std::fs::write(written.path(), &damaged).unwrap();
        if let Some(left) = read(&written.path()).unwrap() {
            assert!(left.events.iter().all(|event| all.contains(event)));
        }
    }
}

/// If this fails, a machine that lost power brings over events that the segments had and lost, in places that a collector
/// already has.
#[test]
fn a_journal_of_another_boot_is_known_as_such() {
    assert!(owner().is_of_this_boot());
    assert!(!Owner { boot: "another".into(), ..owner() }.is_of_this_boot());
    assert!(!Owner { boot: String::new(), ..owner() }.is_of_this_boot());
}

/// If this fails, journals are taken for something else, or something else for a journal.
#[test]
fn journals_are_listed_by_worker_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    for worker in [10, 2, 0] {
        Journal::create(dir.path(), worker, SPOOL_BYTES, &owner(), None).unwrap();
    }
    std::fs::write(dir.path().join("journal-x"), "").unwrap();
    let names: Vec<_> = list(dir.path()).unwrap();
    assert_eq!(names, ["journal-0", "journal-2", "journal-10"].map(|name| dir.path().join(name)));
    remove_all(dir.path()).unwrap();
    assert!(list(dir.path()).unwrap().is_empty() && dir.path().join("journal-x").exists());
}

/// If this fails, a summary that a killed process was about to record is lost, comes twice, or comes in another's place.
#[test]
fn a_kept_event_is_left_until_it_is_among_the_others() {
    let mut written = Written::new();
    let (kept, ended) = (batch(70, 1), batch(80, 1));
    let (kept, ended) = (pieces(&kept).remove(0), pieces(&ended).remove(0));
    let keep = |written: &mut Written, slot, number, event: &(Vec<u8>, Vec<u8>)| {
        written.journal.keep(&written.disk, slot, number, Pieces::of(event)).unwrap();
    };
    assert!(written.append(2, 0));
    keep(&mut written, 0, None, &kept);
    keep(&mut written, SLOTS - 1, Some(3), &ended);
    assert_eq!(written.left().events, [pieces(&batch(1, 2)), vec![ended, kept.clone()]].concat());
    assert!(written.append(2, 0), "event 3 is there now");
    assert_eq!(written.left().events, [pieces(&batch(1, 4)), vec![kept.clone()]].concat());
    written.marker.mark(&written.disk, Mark { position: 4, next_seq: 9 });
    assert_eq!(written.left().events, [kept], "and in a segment");
    let file = OpenOptions::new().write(true).open(written.path()).unwrap();
    file.write_all_at(b"x", HEADER_BYTES + 30).unwrap();
    assert_eq!(written.left().events, []);
}

/// If this fails, events that a killed process had journaled vanish without a word when another version starts after it.
#[test]
fn a_journal_of_another_version_is_kept_and_not_read() {
    let mut written = Written::new();
    assert!(written.append(2, 0));
    assert_eq!(set_unreadable_aside(&written.path()).unwrap(), None);
    let file = OpenOptions::new().write(true).open(written.path()).unwrap();
    let magic = OWNER_MAGIC - 1;
    file.write_all_at(&magic.to_le_bytes(), OWNER_AT).unwrap();
    let whole = std::fs::read(written.path()).unwrap();
    let kept = set_unreadable_aside(&written.path()).unwrap().unwrap();
    assert!(list(written.dir.path()).unwrap().is_empty());
    std::fs::write(written.path(), &whole[..HALVES_AT as usize]).unwrap();
    assert_ne!(
        set_unreadable_aside(&written.path()).unwrap().unwrap(),
        kept,
        "one that was kept before stays"
    );
    assert_eq!(std::fs::read(kept).unwrap(), whole);
    std::fs::write(written.path(), "cut").unwrap();
    assert_eq!(set_unreadable_aside(&written.path()).unwrap(), None, "it was not begun whole");
}
