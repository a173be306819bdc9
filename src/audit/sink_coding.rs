//! How a body is made smaller on its way: zstd (RFC 8878), for a receiver that says it takes it.
//!
//! Owns the coder and its memory. Refuses to know what is sent. An event repeats most of the one before it, so a batch goes
//! out in an eighth of its size (`docs/performance.md`).

use bytes::Bytes;
use http::{HeaderMap, header};
use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

/// What it is called in `Content-Encoding`.
pub(crate) const NAME: &str = "zstd";
/// Eight times smaller at 2 GB/s. Level -1 makes them nine times smaller at 1.4 GB/s, level -12 seven times at 2.4.
const LEVEL: i32 = -4;
/// Less than this is not worth the coder's memory, about half a MiB.
const WORTH_BYTES: usize = 8 * 1024;

/// Codes one body after the other.
#[derive(Default)]
pub(crate) struct Coder {
    /// Kept while more comes.
    compressor: Option<Compressor<'static>>,
    out: Vec<u8>,
}

impl Coder {
    /// The coded form of `body`; `None` where it is better sent as it is.
    pub(crate) fn encode(&mut self, body: &[u8]) -> Option<Bytes> {
        if body.len() < WORTH_BYTES {
            return None;
        }
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(LEVEL).ok()?),
        };
        self.out.clear();
        self.out.reserve(compress_bound(body.len()));
        compressor.compress_to_buffer(body, &mut self.out).ok()?;
        (self.out.len() < body.len()).then(|| Bytes::copy_from_slice(&self.out))
    }

    /// Gives the memory back: nothing comes for a while.
    pub(crate) fn rest(&mut self) {
        *self = Self::default();
    }
}

/// Whether an answer says that the next request may be coded so (RFC 9110 section 12.5.3).
pub(crate) fn is_taken(answer: &HeaderMap) -> bool {
    let said = answer.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    said.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").map_or(Some(1.0), |weight| weight.trim().parse().ok());
        name.trim().eq_ignore_ascii_case(NAME) && weight.is_some_and(|weight: f32| weight > 0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a receiver gets what it has not asked for, or pays for bytes that it said it can do without.
    #[test]
    fn only_who_says_so_gets_coded_bodies() {
        let said = |value: &str| {
            is_taken(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, value.parse().unwrap())]))
        };
        assert!(said("zstd") && said("gzip, ZSTD;q=0.5") && said("zstd ; q=1"));
        assert!(!said("gzip") && !said("zstd;q=0") && !said("zstd;q=x") && !said("*") && !said(""));
        assert!(!is_taken(&HeaderMap::new()));
    }

    /// If this fails, small or random bodies get larger, or a coded one is not what it was.
    #[test]
    fn a_body_is_coded_when_that_makes_it_smaller() {
        let mut coder = Coder::default();
        let events = br#"{"schema":"phiward.audit/1","type":"access.decision"}"#.repeat(1000);
        for _ in 0..2 {
            let coded = coder.encode(&events).unwrap();
            assert!(coded.len() * 10 < events.len());
            assert_eq!(zstd::bulk::decompress(&coded, events.len()).unwrap(), events);
            coder.rest();
        }
        let random: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(WORTH_BYTES).collect();
        assert_eq!((coder.encode(&random), coder.encode(&events[..WORTH_BYTES - 1])), (None, None));
    }
}
