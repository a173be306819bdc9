//! The loops over bytes that every decision runs: cutting a path into segments, folding one, hashing one.
//!
//! They know nothing of patterns and rules.

use super::path::hex_pair;

/// Where the first slash is: eight bytes at a time, and without a call, since segments are short.
pub(super) fn find_slash(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const SLASHES: u64 = u64::from_le_bytes([b'/'; 8]);
    let (words, tail) = text.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        // The lowest byte that is zero here is exact: a borrow can only reach the bytes above it.
        let differs = u64::from_le_bytes(*word) ^ SLASHES;
        let zeros = differs.wrapping_sub(ONES) & !differs & (ONES << 7);
        if zeros != 0 {
            return Some(at * 8 + zeros.trailing_zeros() as usize / 8);
        }
    }
    tail.iter().position(|byte| *byte == b'/').map(|at| words.len() * 8 + at)
}

/// A segment as the deny side compares it: every escape decoded, ASCII letters in lower case, trailing dots and spaces
/// dropped (Windows drops them from file names). So `/fhir/$reindex` denies `/fhir/%24ReIndex.` too.
pub(super) fn fold(segment: &str) -> Vec<u8> {
    let mut folded = vec![0; segment.len()];
    let length = fold_into(segment.as_bytes(), &mut folded).unwrap_or_default(); // it fits: folding never makes longer
    folded.truncate(length);
    folded
}

/// As [`fold`], into `buffer`; none when it does not fit. Returns the length.
pub(super) fn fold_into(segment: &[u8], buffer: &mut [u8]) -> Option<usize> {
    let mut kept = segment;
    while let [before @ .., b'.' | b' '] = kept {
        kept = before;
    }
    if let Some(place) = buffer.get_mut(..kept.len()) {
        let mut escaped = false;
        for (folded, byte) in place.iter_mut().zip(kept) {
            escaped |= *byte == b'%';
            *folded = byte.to_ascii_lowercase();
        }
        if !escaped {
            return Some(kept.len());
        }
    }
    let mut length = 0;
    let mut kept = 0; // the length without trailing dots and spaces
    let mut rest = segment;
    while let Some((&byte, tail)) = rest.split_first() {
        let escape = if byte == b'%' { hex_pair(tail) } else { None };
        let value = escape.unwrap_or(byte).to_ascii_lowercase();
        rest = if escape.is_some() { &tail[2..] } else { tail };
        // Trailing dots are not kept, so they need no room: a long row of them must not make a segment unmatchable.
        if let Some(place) = buffer.get_mut(length) {
            *place = value;
        }
        length += 1;
        if !matches!(value, b'.' | b' ') {
            if length > buffer.len() {
                return None;
            }
            kept = length;
        }
    }
    Some(kept)
}

const K: u64 = 0x9E37_79B9_7F4A_7C15;

/// The hash of an edge of a tree: from `node`, by the segment `key`.
pub(super) fn hash(node: u32, key: &[u8]) -> u32 {
    (mixed((u64::from(node) ^ K).wrapping_mul(K), key) >> 32) as u32
}

/// `state` with `key` mixed in, eight bytes at a time; the last eight overlap those before rather than be copied.
fn mixed(state: u64, key: &[u8]) -> u64 {
    let mut state = state ^ key.len() as u64;
    let mut mix = |word: u64| {
        state = (state ^ word).wrapping_mul(K);
        state ^= state >> 29;
    };
    let (words, tail) = key.as_chunks::<8>();
    words.iter().for_each(|word| mix(u64::from_le_bytes(*word)));
    match (tail, key.last_chunk::<8>()) {
        ([], _) => {}
        (_, Some(last)) => mix(u64::from_le_bytes(*last)),
        (tail, None) => mix(tail.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))),
    }
    state.wrapping_mul(K)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a path is cut into other segments than the application sees.
    #[test]
    fn the_first_slash_is_found_wherever_it_is() {
        for length in 0..20 {
            for at in 0..=length {
                let mut text = vec![b'.'; length]; // one less than a slash, where a borrow would show
                text.iter_mut().skip(at).for_each(|byte| *byte = b'/');
                assert_eq!(find_slash(&text), (at < length).then_some(at), "{length} {at}");
                text.iter_mut().skip(at + 1).for_each(|byte| *byte = b'0');
                assert_eq!(find_slash(&text), (at < length).then_some(at), "{length} {at}");
            }
        }
    }
}
