//! The entropy code of zstd's sequences: finite state entropy (RFC 8878 section 4.1) with the predefined distributions.
//!
//! Owns the tables, the states and the bits. A table is what the RFC says of decoding, read the other way: for a symbol and the state
//! that a decoder will be in after it, the state before and the bits that lead from one to the other.

/// How often each symbol comes, in parts of the table's size; -1 is less than one (section 3.1.1.3.2.2).
pub(super) const LITERALS: [i16; 36] = [
    4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1,
    -1, -1,
];
pub(super) const COPIED: [i16; 53] = [
    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
];
pub(super) const OFFSETS: [i16; 29] =
    [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1];

/// More than any of the three has of states or symbols. With a mask for each index, none needs to be checked.
const SIZE: usize = 64;

/// What a coder needs of a distribution.
pub(super) struct Table {
    log: u32,
    /// The states of all symbols, one symbol after the other.
    states: [u16; SIZE],
    symbols: [Symbol; SIZE],
}

/// How a state becomes one of this symbol.
#[derive(Clone, Copy, Default)]
struct Symbol {
    /// Added to a state, its upper half is the number of bits that leave it.
    bits: u32,
    /// Added to what stays of it, the place of the next state.
    place: i32,
}

/// What a decoder's state is, and the table's size.
#[derive(Clone, Copy)]
pub(super) struct State(u32);

impl Table {
    pub(super) fn new(counts: &[i16], log: u32) -> Self {
        let spread = spread(counts, 1 << log);
        let (mut states, mut symbols) = ([0; SIZE], [Symbol::default(); SIZE]);
        let mut at = 0;
        for (symbol, count) in counts.iter().enumerate() {
            let count = u32::from(count.unsigned_abs());
            // States below the threshold lose one bit less.
            let most = log - if count > 1 { (count - 1).ilog2() } else { 0 };
            symbols[symbol] =
                Symbol { bits: (most << 16) - (count << most), place: at as i32 - count as i32 };
            for (state, _) in (0u16..).zip(&spread).filter(|(_, owner)| usize::from(**owner) == symbol) {
                states[at] = (1 << log) + state;
                at += 1;
            }
        }
        Self { log, states, symbols }
    }

    /// A state of the symbol that is read last, from which no bits lead on.
    pub(super) fn first(&self, symbol: u8) -> State {
        let symbol = self.symbols[usize::from(symbol) % SIZE];
        let bits = (symbol.bits + (1 << 15)) >> 16;
        let state = (bits << 16) - symbol.bits;
        self.state(state >> bits, symbol)
    }

    /// The state of the symbol that is read before the one of `state`.
    #[inline]
    pub(super) fn next(&self, State(state): State, symbol: u8, out: &mut BitWriter<'_>) -> State {
        let symbol = self.symbols[usize::from(symbol) % SIZE];
        let bits = (state + symbol.bits) >> 16;
        out.add(state & ((1 << bits) - 1), bits);
        self.state(state >> bits, symbol)
    }

    /// The state that a decoder begins with.
    pub(super) fn last(&self, State(state): State, out: &mut BitWriter<'_>) {
        out.add(state & ((1 << self.log) - 1), self.log);
    }

    #[inline]
    fn state(&self, rest: u32, symbol: Symbol) -> State {
        State(self.states[(rest as i32 + symbol.place) as usize % SIZE].into())
    }
}

/// The symbol of each state (section 4.1.1): the rarest from the end on, the others in steps that meet every state once.
fn spread(counts: &[i16], size: usize) -> Vec<u8> {
    let mut states = vec![0; size];
    let mut end = size;
    for (symbol, _) in (0u8..).zip(counts).filter(|(_, count)| **count < 0) {
        end -= 1;
        states[end] = symbol;
    }
    let mut at = 0;
    for (symbol, count) in (0u8..).zip(counts) {
        for _ in 0..*count {
            states[at] = symbol;
            at = (at + size / 2 + size / 8 + 3) % size;
            while at >= end {
                at = (at + size / 2 + size / 8 + 3) % size;
            }
        }
    }
    states
}

/// Bits that are read from their end: what is added last is read first (section 4.1.2).
pub(super) struct BitWriter<'o> {
    /// Has room for eight bytes more than are written.
    out: &'o mut [u8],
    at: usize,
    bits: u64,
    count: u32,
}

impl<'o> BitWriter<'o> {
    pub(super) fn new(out: &'o mut [u8]) -> Self {
        Self { out, at: 0, bits: 0, count: 0 }
    }

    /// Adds the lowest `count` bits of `value`, whose others are zero. With those since [`BitWriter::flush`], there are 57 at most.
    #[inline]
    pub(super) fn add(&mut self, value: u32, count: u32) {
        self.bits |= u64::from(value) << self.count;
        self.count += count;
    }

    /// Makes room: all whole bytes go.
    ///
    /// # Panics
    /// When there is no room for them.
    #[inline]
    pub(super) fn flush(&mut self) {
        self.out[self.at..self.at + 8].copy_from_slice(&self.bits.to_le_bytes());
        let whole = self.count / 8;
        self.at += whole as usize;
        self.bits >>= 8 * whole;
        self.count %= 8;
    }

    /// Adds a bit that says where the others end, and what is missing to a whole byte; gives the number of bytes.
    pub(super) fn close(mut self) -> usize {
        self.add(1, 1);
        self.count = self.count.next_multiple_of(8);
        self.flush();
        self.at
    }
}
