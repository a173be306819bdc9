//! Bytes that are sent one piece after the other, from where they are.
//!
//! Owns nothing but their order: what is large is not copied to stand in one piece.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Pieces that wait to be sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pieces(VecDeque<Bytes>);

impl Pieces {
    /// Adds a piece behind the others.
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.0.push_back(piece); // `chunk` gives something as long as something is left
        }
    }
}

impl From<Bytes> for Pieces {
    fn from(piece: Bytes) -> Self {
        let mut pieces = Self::default();
        pieces.push(piece);
        pieces
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = slices.iter_mut().zip(&self.0);
        pieces.map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut sent: usize) {
        while let Some(piece) = self.0.front_mut() {
            if sent < piece.len() {
                return piece.advance(sent);
            }
            sent -= piece.len();
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a body goes out with bytes missing or twice where one write did not take all of it.
    #[test]
    fn every_byte_goes_once_whatever_a_write_takes() {
        let texts: [&'static [u8]; 5] = [b"", b"abc", b"", b"d", b"efgh"];
        for step in 1..9 {
            let (mut pieces, mut sent) = (Pieces::default(), Vec::new());
            texts.iter().for_each(|text| pieces.push(Bytes::from_static(text)));
            while pieces.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 8];
                let filled = pieces.chunks_vectored(&mut slices);
                let all: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                assert!(all.len() == pieces.remaining() && all.starts_with(pieces.chunk()));
                let part = step.min(all.len());
                sent.extend_from_slice(&all[..part]);
                pieces.advance(part);
            }
            assert_eq!(sent, b"abcdefgh", "{step} at a time");
        }
    }
}
