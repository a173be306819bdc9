//! The journal of a worker: where an event is in the kernel before it has its place in the chain.
//!
//! `durability: write` promises that an event survives `kill -9` before its request is forwarded. For that it need not be
//! chained yet, so the worker writes it to a file of its own, once a turn of the event loop, and nobody waits for another
//! thread. The writer chains and appends it a little later. What a killed process had journaled and not appended, recovery
//! appends to the epoch it belongs to.
//!
//! A journal has two halves that are filled in turn. A half is begun again only when all its events are in a segment; when
//! that is not so yet, the events go the long way, through the writer. Before them it has slots, for summaries that are not
//! complete yet (see `kept`). The file is written full once, at the start, so that later writes go to pages and blocks that
//! are there: no allocation, no growth, nothing that a full disk can refuse.
//!
//! Owns the file's format. Knows nothing of waiting, and of the chain only that records have numbers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cipher::{Cipher, Opener, SpoolKey};
use super::encode::{Event, Pieces, Speller};
use super::frame::{Batch, Events, FRAME_HEAD};
use super::segment::Disk;

mod kept;

pub(crate) use kept::{SLOTS, fits_slot};

/// How journal files begin; a number follows.
const PREFIX: &str = "journal-";
/// How those of another version's layout end, once they are out of the way; a number follows.
const UNREAD: &str = ".unread-";
/// The block before the halves: two marks, and who the events are of.
const HEADER_BYTES: u64 = 4096;
/// Marks are written in turn to two slots, so that one is whole whatever happens to the other.
const MARK_SLOTS: [u64; 2] = [0, 512];
const HALVES_AT: u64 = HEADER_BYTES + (SLOTS * kept::SLOT_BYTES) as u64;
const OWNER_AT: u64 = 1024;
const MARK_MAGIC: u32 = 0x7068_6d31;
/// Ends in the version of the file's layout.
const OWNER_MAGIC: u32 = 0x7068_6f34;
const FRAME_MAGIC: u32 = 0x7068_6631;
/// Of a frame whose events are encrypted.
const ENCRYPTED_FRAME_MAGIC: u32 = 0x7068_6632;
/// A half holds what a busy worker records in some milliseconds, and both together stay in a CPU's cache.
const HALF_BYTES: u64 = 256 * 1024;
const MIN_HALF_BYTES: u64 = 16 * 1024;
/// How much of a new file is written at once. Linux keeps it in the page cache in pieces as large as the first write, and each later
/// write looks at every block of the piece that it changes (ext4 of 6.18): with the whole file in one, that was half of its cost.
const PIECE: usize = 16 * 1024;

/// The writing end. It lives on its worker.
pub(crate) struct Journal {
    file: Arc<File>,
    half_bytes: u64,
    half: usize,
    /// The next free byte of the half.
    at: u64,
    /// The last event in each half.
    last: [u64; 2],
    /// What is not written from where it is: slots, and frames that are encrypted.
    scratch: Vec<u8>,
    cipher: Option<Cipher>,
}

/// The writer's hold on a journal: it says in it how far the segments have come.
pub(crate) struct Marker {
    file: Arc<File>,
    turn: AtomicU64,
}

/// Who the events of a journal are of: they can be brought over to no other epoch, and not after the machine went down,
/// because then the segments may have lost what the journal says they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// As `/proc/sys/kernel/random/boot_id` has it; empty where there is none.
    pub(crate) boot: String,
    pub(crate) epoch: String,
    /// The encoded member `instance`.
    pub(crate) instance: Vec<u8>,
}

/// What a killed process left in a journal.
pub(crate) struct Left {
    pub(crate) owner: Owner,
    /// The events up to `mark.position` are in segments, and no later one is in a record before `mark.next_seq`.
    pub(crate) mark: Mark,
    /// Later events, in the order they were recorded: head and tail each.
    pub(crate) events: Vec<Event>,
}

/// How far the segments have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The worker's last event that was appended.
    pub(crate) position: u64,
    /// The number of the record that will be appended next.
    pub(crate) next_seq: u64,
}

/// The size of a journal in a spool of `max_bytes`.
pub(crate) fn bytes(max_bytes: u64) -> u64 {
    HALVES_AT + 2 * half_bytes(max_bytes)
}

/// The size of each half of one.
pub(crate) fn half_bytes(max_bytes: u64) -> u64 {
    (max_bytes / 64).clamp(MIN_HALF_BYTES, HALF_BYTES)
}

impl Journal {
    /// Makes the journal of worker number `worker` in `dir`, in its full length.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn create(
        dir: &Path,
        worker: u64,
        max_bytes: u64,
        owner: &Owner,
        key: Option<&SpoolKey>,
    ) -> io::Result<(Self, Marker)> {
        let path = dir.join(format!("{PREFIX}{worker}"));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o640).open(path)?;
        let mut content = vec![0; bytes(max_bytes) as usize];
        let owner = owner.encode();
        content
            .get_mut(OWNER_AT as usize..HEADER_BYTES as usize)
            .and_then(|room| room.get_mut(..owner.len()))
            .ok_or_else(|| io::Error::other("the names of this workload are too long"))?
            .copy_from_slice(&owner);
        for (at, piece) in content.chunks(PIECE).enumerate() {
            file.write_all_at(piece, (at * PIECE) as u64)?;
        }
        let file = Arc::new(file);
        let marker = Marker { file: file.clone(), turn: AtomicU64::new(0) };
        let half_bytes = half_bytes(max_bytes);
        let cipher = key.map(Cipher::new).transpose()?;
        Ok((Self { file, half_bytes, half: 0, at: 0, last: [0; 2], scratch: Vec::new(), cipher }, marker))
    }

    /// Keeps an event that is not in the batch yet: a summary that still counts, or, with its number, one that is complete
    /// and will be there. It replaces what the slot had.
    ///
    /// # Errors
    /// What the disk says; what the slot had may be gone.
    ///
    /// # Panics
    /// In a debug build, for a slot that is not there or an event that does not fit.
    pub(crate) fn keep(
        &mut self,
        disk: &Disk,
        slot: usize,
        number: Option<u64>,
        event: Pieces<'_>,
    ) -> io::Result<()> {
        let (head, tail) = event.to_event();
        debug_assert!(slot < SLOTS && fits_slot(head.len() + tail.len()));
        kept::encode(&mut self.scratch, number, &head, &tail, self.cipher.as_mut())?;
        disk.write_at(&self.file, &self.scratch, HEADER_BYTES + (slot * kept::SLOT_BYTES) as u64)
    }

    /// Writes the events of `batch` that are new in it. The last one is the worker's event number `last`, and `appended` of its
    /// events are in segments. Gives false when there is no room before more of them are.
    ///
    /// # Errors
    /// What the disk says; what was written before is whole all the same.
    pub(crate) fn append(
        &mut self,
        disk: &Disk,
        batch: &mut Batch,
        last: u64,
        appended: u64,
    ) -> io::Result<bool> {
        let Some((mut frame, events)) = batch.frame() else { return Ok(true) };
        let mut magic = FRAME_MAGIC;
        if let Some(cipher) = &mut self.cipher {
            magic = ENCRYPTED_FRAME_MAGIC;
            let mut sealed = frame[FRAME_HEAD..].to_vec();
            cipher.seal(&mut sealed)?;
            self.scratch.clear();
            self.scratch.resize(FRAME_HEAD, 0);
            self.scratch.append(&mut sealed);
            frame = &mut self.scratch;
        }
        fill_head(frame, magic, events, last);
        let len = frame.len() as u64;
        if self.at + len > self.half_bytes {
            let other = 1 - self.half;
            if len > self.half_bytes || self.last[other] > appended {
                return Ok(false);
            }
            (self.half, self.at) = (other, 0);
        }
        let offset = HALVES_AT + self.half as u64 * self.half_bytes + self.at;
        disk.write_at(&self.file, frame, offset)?;
        self.at += len;
        self.last[self.half] = last;
        Ok(true)
    }
}

impl Marker {
    /// Says how far the segments have come. That it fails matters little: recovery then compares with more records.
    pub(crate) fn mark(&self, disk: &Disk, mark: Mark) {
        let mut slot = [0; 24];
        slot[..4].copy_from_slice(&MARK_MAGIC.to_le_bytes());
        slot[8..16].copy_from_slice(&mark.position.to_le_bytes());
        slot[16..].copy_from_slice(&mark.next_seq.to_le_bytes());
        let sum = crc32fast::hash(&slot[8..]);
        slot[4..8].copy_from_slice(&sum.to_le_bytes());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = disk.write_at(&self.file, &slot, MARK_SLOTS[(turn % 2) as usize]) {
            tracing::debug!(%error, "a mark of the audit journal was not written");
        }
    }
}

impl Owner {
    pub(crate) fn new(epoch: String, instance: Vec<u8>) -> Self {
        Self { boot: this_boot(), epoch, instance }
    }

    /// Whether the machine has run on since.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        !self.boot.is_empty() && self.boot == this_boot()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 8];
        for part in [self.boot.as_bytes(), self.epoch.as_bytes(), &self.instance] {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(part);
        }
        let sum = crc32fast::hash(&out[8..]);
        out[..4].copy_from_slice(&OWNER_MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (magic, sum) = (u32_at(bytes, 0)?, u32_at(bytes, 4)?);
        let mut at = 8;
        let mut part = || {
            let len = u32_at(bytes, at)? as usize;
            let part = bytes.get(at + 4..(at + 4).checked_add(len)?)?;
            at += 4 + len;
            Some(part)
        };
        let (boot, epoch, instance) = (part()?, part()?, part()?);
        if magic != OWNER_MAGIC || sum != crc32fast::hash(bytes.get(8..at)?) {
            return None;
        }
        let text = |part: &[u8]| String::from_utf8(part.to_vec()).ok();
        Some(Self { boot: text(boot)?, epoch: text(epoch)?, instance: instance.to_vec() })
    }
}

/// The journals in a folder, in the order of their workers.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u64>().ok());
        found.extend(number.map(|number| (number, dir.join(&name))));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Removes every journal in `dir`: what they hold is in segments.
///
/// # Errors
/// The disk's.
pub(crate) fn remove_all(dir: &Path) -> io::Result<()> {
    list(dir)?.into_iter().try_for_each(std::fs::remove_file)
}

/// Puts a journal out of the way that a version with another layout has begun. Gives its new name; `None` for others.
///
/// # Errors
/// The disk's.
pub(crate) fn set_unreadable_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut magic = [0; 4];
    let begun = File::open(path)?.read_exact_at(&mut magic, OWNER_AT);
    let [version, name @ ..] = magic;
    let [our_version, our_name @ ..] = OWNER_MAGIC.to_le_bytes();
    if begun.is_err() || name != our_name || version == our_version {
        return Ok(None);
    }
    // One that was kept before stays.
    let aside = (0_u32..)
        .map(|number| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!("{UNREAD}{number}"));
            PathBuf::from(name)
        })
        .find(|name| !name.exists())
        .ok_or_else(|| io::Error::other("there are too many journals of other versions"))?;
    std::fs::rename(path, &aside)?;
    Ok(Some(aside))
}

/// Reads a journal; `None` for one that was not begun whole.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn read(path: &Path) -> io::Result<Option<Left>> {
    let content = std::fs::read(path)?;
    let Some((front, halves)) = content.split_at_checked(HALVES_AT as usize) else { return Ok(None) };
    let (header, slots) = front.split_at(HEADER_BYTES as usize);
    let Some(owner) = Owner::decode(&header[OWNER_AT as usize..]) else { return Ok(None) };
    let marks = MARK_SLOTS.iter().filter_map(|at| decode_mark(&header[*at as usize..]));
    let mark = marks.max_by_key(|mark| mark.position).unwrap_or_default();
    let mut frames: Vec<(u64, Vec<(u64, Event)>)> =
        halves.chunks(halves.len().div_ceil(2).max(1)).map(read_half).collect::<io::Result<_>>()?;
    frames.sort_by_key(|(first, _)| *first);
    let journaled = frames.into_iter().flat_map(|(_, events)| events);
    let events = kept::join(journaled, slots)?.filter(|(position, _)| *position > mark.position);
    let events = events.map(|(_, event)| event).collect();
    Ok(Some(Left { owner, mark, events }))
}

fn fill_head(frame: &mut [u8], magic: u32, events: u32, last: u64) {
    let len = (frame.len() - FRAME_HEAD) as u32;
    frame[..4].copy_from_slice(&magic.to_le_bytes());
    frame[4..8].copy_from_slice(&len.to_le_bytes());
    frame[12..16].copy_from_slice(&events.to_le_bytes());
    frame[16..24].copy_from_slice(&last.to_le_bytes());
    let sum = crc32fast::hash(&frame[12..]);
    frame[8..12].copy_from_slice(&sum.to_le_bytes());
}

/// The events of a half with their numbers, and the first number. What an older turn left behind the newest frames has lower
/// numbers, and a frame that a kill cut short has a wrong checksum: both end the half.
fn read_half(half: &[u8]) -> io::Result<(u64, Vec<(u64, Event)>)> {
    let mut found: Vec<(u64, Event)> = Vec::new();
    let mut at = 0;
    while let Some((last, events, len)) = decode_frame(&half[at..])? {
        if found.last().is_some_and(|(newest, _)| last <= *newest) {
            break;
        }
        let first = (last + 1).saturating_sub(events.len() as u64);
        found.extend((first..).zip(events));
        at += len;
    }
    Ok((found.first().map_or(0, |(first, _)| *first), found))
}

/// A frame: the number of its last event, its events, and its length. None where there is none that is whole.
///
/// # Errors
/// It is encrypted with a key that this process does not have.
fn decode_frame(at: &[u8]) -> io::Result<Option<(u64, Vec<Event>, usize)>> {
    let Some((magic, frame)) = whole_frame(at) else { return Ok(None) };
    let mut events = frame[FRAME_HEAD..].to_vec();
    if magic == ENCRYPTED_FRAME_MAGIC && !Opener::default().open(&mut events)? {
        return Ok(None);
    }
    let (Some(count), Some(last)) = (u32_at(frame, 12), u64_at(frame, 16)) else { return Ok(None) };
    let mut speller = Speller::default();
    let events = Events::new(count, &events).map(|told| Some(speller.told(&told?)?.to_event()));
    Ok(events.collect::<Option<_>>().map(|events| (last, events, frame.len())))
}

fn whole_frame(at: &[u8]) -> Option<(u32, &[u8])> {
    let magic = u32_at(at, 0).filter(|magic| [FRAME_MAGIC, ENCRYPTED_FRAME_MAGIC].contains(magic))?;
    let end = FRAME_HEAD.checked_add(u32_at(at, 4)? as usize)?;
    let frame = at.get(..end)?;
    (u32_at(frame, 8)? == crc32fast::hash(&frame[12..])).then_some((magic, frame))
}

fn decode_mark(slot: &[u8]) -> Option<Mark> {
    let sum_is_right = u32_at(slot, 4)? == crc32fast::hash(slot.get(8..24)?);
    let mark = Mark { position: u64_at(slot, 8)?, next_seq: u64_at(slot, 16)? };
    (u32_at(slot, 0)? == MARK_MAGIC && sum_is_right).then_some(mark)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn this_boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests;
