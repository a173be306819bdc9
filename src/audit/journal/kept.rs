//! The slots of a journal: one event each that is not among the journal's events yet.
//!
//! A summary counts for seconds, and a killed process must not take the count along. So what it says is written to a slot
//! whenever it grows; and once more, with the number it will have, before it becomes an event like others. Owns the form of
//! a slot and the answer to which slots hold something that is nowhere else. Knows nothing of what is counted.

use std::io;

use super::{u32_at, u64_at};
use crate::audit::cipher::{self, Cipher, Opener};
use crate::audit::encode::Event;

/// How many there are.
pub(crate) const SLOTS: usize = 32;
/// What one takes of the file.
pub(super) const SLOT_BYTES: usize = 1024;
/// Magic, checksum of all after it, number, and the lengths of the event's two pieces.
const HEAD: usize = 24;
/// The lengths of the two pieces.
const LENGTHS: usize = 8;
const MAGIC: u32 = 0x7068_6b31;

/// Of a slot whose event is encrypted; it says how long its text is where others say how long the head is.
const ENCRYPTED_MAGIC: u32 = 0x7068_6b32;

/// Whether an event whose pieces have so many bytes together can be kept, encrypted or not.
pub(crate) fn fits_slot(bytes: usize) -> bool {
    bytes <= SLOT_BYTES - HEAD - LENGTHS - cipher::OVERHEAD
}

pub(super) fn encode(
    out: &mut Vec<u8>,
    number: Option<u64>,
    head: &[u8],
    tail: &[u8],
    cipher: Option<&mut Cipher>,
) -> io::Result<()> {
    let lengths = [(head.len() as u32).to_le_bytes(), (tail.len() as u32).to_le_bytes()].concat();
    let mut text = [head, tail].concat();
    let (magic, lengths) = match cipher {
        None => (MAGIC, lengths),
        Some(cipher) => {
            text.splice(0..0, lengths);
            cipher.seal(&mut text)?;
            (ENCRYPTED_MAGIC, [(text.len() as u32).to_le_bytes(), [0; 4]].concat())
        }
    };
    out.clear();
    out.extend_from_slice(&magic.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&number.unwrap_or(0).to_le_bytes()); // events are numbered from 1
    out.extend_from_slice(&lengths);
    out.extend_from_slice(&text);
    let sum = crc32fast::hash(&out[8..]);
    out[4..8].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// What was journaled, each event with its number, and in its place what was on the way there; what still counted comes
/// last, with the highest number of all. A slot that a kill cut short holds nothing: the checksum tells.
pub(super) fn join(
    journaled: impl Iterator<Item = (u64, Event)>,
    slots: &[u8],
) -> io::Result<impl Iterator<Item = (u64, Event)>> {
    let mut all: Vec<_> = journaled.collect();
    for slot in slots.chunks(SLOT_BYTES) {
        let Some((number, event)) = decode(slot)? else { continue };
        let number = if number == 0 { u64::MAX } else { number };
        if number == u64::MAX || !all.iter().any(|(other, _)| *other == number) {
            all.push((number, event));
        }
    }
    all.sort_by_key(|(number, _)| *number); // stable, so that slots keep their order
    Ok(all.into_iter())
}

/// What a slot holds. None where it holds nothing that is whole.
fn decode(slot: &[u8]) -> io::Result<Option<(u64, Event)>> {
    let Some((magic, number, lengths, text)) = whole(slot) else { return Ok(None) };
    let pieces = |lengths: &[u8], text: &[u8]| {
        let (head, tail) = (u32_at(lengths, 0)? as usize, u32_at(lengths, 4)? as usize);
        let (head, rest) = text.split_at_checked(head)?;
        Some((number, (head.to_vec(), rest.get(..tail)?.to_vec())))
    };
    if magic == MAGIC {
        return Ok(pieces(lengths, text));
    }
    let mut text = text.to_vec();
    if !Opener::default().open(&mut text)? {
        return Ok(None);
    }
    Ok(text.split_at_checked(LENGTHS).and_then(|(lengths, text)| pieces(lengths, text)))
}

/// Magic, number, lengths and text of a slot whose checksum is right.
fn whole(slot: &[u8]) -> Option<(u32, u64, &[u8], &[u8])> {
    let magic = u32_at(slot, 0).filter(|magic| [MAGIC, ENCRYPTED_MAGIC].contains(magic))?;
    let len = (u32_at(slot, 16)? as usize).checked_add(u32_at(slot, 20)? as usize)?;
    let text = slot.get(HEAD..HEAD.checked_add(len)?)?;
    let sum_is_right = u32_at(slot, 4)? == crc32fast::hash(slot.get(8..HEAD + len)?);
    sum_is_right.then_some((magic, u64_at(slot, 8)?, &slot[16..HEAD], text))
}
