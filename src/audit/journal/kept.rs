//! The slots of a journal: one event each that is not among the journal's events yet.
//!
//! A summary counts for seconds, and a killed process must not take the count along. So what it says is written to a slot
//! whenever it grows; and once more, with the number it will have, before it becomes an event like others. Owns the form of
//! a slot and the answer to which slots hold something that is nowhere else. Knows nothing of what is counted.

use super::{Event, u32_at, u64_at};

/// How many there are.
pub(crate) const SLOTS: usize = 32;
/// What one takes of the file.
pub(super) const SLOT_BYTES: usize = 1024;
/// Magic, checksum of all after it, number, and the lengths of the event's two pieces.
const HEAD: usize = 24;
const MAGIC: u32 = 0x7068_6b31;

/// Whether an event whose pieces have so many bytes together can be kept.
pub(crate) fn fits_slot(bytes: usize) -> bool {
    bytes <= SLOT_BYTES - HEAD
}

pub(super) fn encode(out: &mut Vec<u8>, number: Option<u64>, head: &[u8], tail: &[u8]) {
    out.clear();
    out.resize(HEAD, 0);
    out[..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&number.unwrap_or(0).to_le_bytes()); // events are numbered from 1
    out[16..20].copy_from_slice(&(head.len() as u32).to_le_bytes());
    out[20..24].copy_from_slice(&(tail.len() as u32).to_le_bytes());
    out.extend_from_slice(head);
    out.extend_from_slice(tail);
    let sum = crc32fast::hash(&out[8..]);
    out[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// What was journaled, each event with its number, and in its place what was on the way there; what still counted comes
/// last, with the highest number of all. A slot that a kill cut short holds nothing: the checksum tells.
pub(super) fn join(
    journaled: impl Iterator<Item = (u64, Event)>,
    slots: &[u8],
) -> impl Iterator<Item = (u64, Event)> {
    let mut all: Vec<_> = journaled.collect();
    for (number, event) in slots.chunks(SLOT_BYTES).filter_map(decode) {
        let number = if number == 0 { u64::MAX } else { number };
        if number == u64::MAX || !all.iter().any(|(other, _)| *other == number) {
            all.push((number, event));
        }
    }
    all.sort_by_key(|(number, _)| *number); // stable, so that slots keep their order
    all.into_iter()
}

fn decode(slot: &[u8]) -> Option<(u64, Event)> {
    let (head, tail) = (u32_at(slot, 16)? as usize, u32_at(slot, 20)? as usize);
    let end = HEAD.checked_add(head)?.checked_add(tail)?;
    let sum_is_right = u32_at(slot, 4)? == crc32fast::hash(slot.get(8..end)?);
    if u32_at(slot, 0)? != MAGIC || !sum_is_right {
        return None;
    }
    let (head, tail) = slot[HEAD..end].split_at(head);
    Some((u64_at(slot, 8)?, (head.to_vec(), tail.to_vec())))
}
