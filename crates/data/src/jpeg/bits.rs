//! Huffman tables, and a reader of the bits of coded data.

use super::fault::Fault;

/// Number of bits that index the lookup tables.
const LOOKUP_BITS: u32 = 10;

/// A Huffman table with the number of bits and coefficients that each code covers.
#[derive(Debug)]
pub(super) struct Table {
    /// Indexed by the next [`LOOKUP_BITS`] bits: a packed [`Code`]; 0 if the code is longer.
    short: Box<[u32; 1 << LOOKUP_BITS]>,
    /// Indexed by the next [`LOOKUP_BITS`] bits: a packed [`CodeRun`]; 0 if the first code is longer. Empty for DC
    /// tables.
    runs: Vec<u32>,
    /// Largest code of each length, -1 if there is none.
    largest: [i32; 17],
    /// For each code length: the index of a code's symbol minus the code.
    symbol_offset: [i32; 17],
    symbols: Vec<u8>,
}

/// A code with its symbol. Packed fields: the symbol, the length of the code, the number of bits of code and value,
/// and the number of coefficients that it covers in a sequential block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Code(u32);

impl Code {
    fn new(symbol: u8, length: u32) -> Self {
        let (run, size) = (symbol >> 4, symbol & 15);
        let coefficients = match (run, size) {
            (15, 0) => 16,
            (_, 0) => 64,
            _ => u32::from(run) + 1,
        };
        let bits = length + u32::from(size);
        Code(u32::from(symbol) | length << 8 | bits << 16 | coefficients << 24)
    }

    pub(super) fn symbol(self) -> u8 {
        self.0 as u8
    }

    pub(super) fn length(self) -> u32 {
        self.0 >> 8 & 0xff
    }

    /// Number of bits of the code and of the value that follows, at most 31. The low half of the symbol is the size
    /// of the value.
    pub(super) fn bits(self) -> u32 {
        self.0 >> 16 & 0xff
    }

    /// Number of coefficients that an AC symbol of a sequential block covers; 64 for the end of the block.
    pub(super) fn coefficients(self) -> u32 {
        self.0 >> 24
    }
}

/// Several consecutive codes with their values. Packed fields: the number of bits of all, the number of coefficients
/// that they cover, and whether the last code ends the block.
#[derive(Debug, Clone, Copy)]
pub(super) struct CodeRun(u32);

impl CodeRun {
    fn new(bits: u32, coefficients: u32, ends_block: bool) -> Self {
        CodeRun(bits | coefficients << 8 | u32::from(ends_block) << 24)
    }

    pub(super) fn bits(self) -> u32 {
        self.0 & 0xff
    }

    pub(super) fn coefficients(self) -> u32 {
        self.0 >> 8 & 0xffff
    }

    /// 1 if the last code ends the block, else 0.
    pub(super) fn ends_block(self) -> u32 {
        self.0 >> 24
    }
}

impl Table {
    /// Builds a table from the number of codes of each length, 1 to 16, and the symbols. `None` if there are more codes
    /// of a length than its bits can express.
    pub(super) fn new(counts: &[u8], symbols: &[u8]) -> Option<Self> {
        let mut table = Table {
            short: Box::new([0; 1 << LOOKUP_BITS]),
            runs: Vec::new(),
            largest: [-1; 17],
            symbol_offset: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut first_symbol) = (0_u32, 0_usize);
        for (&count, length) in counts.iter().zip(1_u32..) {
            table.symbol_offset[length as usize] = first_symbol as i32 - code as i32;
            for &symbol in symbols.get(first_symbol..first_symbol + usize::from(count))? {
                if code >= 1 << length {
                    return None;
                }
                if length <= LOOKUP_BITS {
                    let first = (code << (LOOKUP_BITS - length)) as usize;
                    let same = 1 << (LOOKUP_BITS - length);
                    table.short[first..first + same].fill(Code::new(symbol, length).0);
                }
                code += 1;
            }
            first_symbol += usize::from(count);
            if count > 0 {
                table.largest[length as usize] = code as i32 - 1;
            }
            code <<= 1;
        }
        Some(table)
    }

    /// Fills the table that [`run`](Self::run) uses.
    pub(super) fn with_runs(mut self) -> Self {
        let run = |pattern: u32| {
            let (mut bits, mut coefficients) = (0, 0);
            let mut ends_block = false;
            while bits < LOOKUP_BITS && !ends_block {
                let rest = pattern << bits & ((1 << LOOKUP_BITS) - 1);
                let code = Code(self.short[rest as usize]);
                if code.0 == 0 || bits + code.length() > LOOKUP_BITS {
                    break;
                }
                bits += code.bits();
                ends_block = code.coefficients() == 64;
                coefficients += if ends_block { 0 } else { code.coefficients() };
            }
            CodeRun::new(bits, coefficients, ends_block).0
        };
        self.runs = (0..1 << LOOKUP_BITS).map(run).collect();
        self
    }

    /// The codes of a sequential block that lie completely within the first [`LOOKUP_BITS`] bits; `None` if the first
    /// code does not.
    #[inline(always)]
    pub(super) fn run(&self, bits: u64) -> Option<CodeRun> {
        match self.runs.get((bits >> (64 - LOOKUP_BITS)) as usize) {
            None | Some(0) => None,
            Some(&run) => Some(CodeRun(run)),
        }
    }

    /// The code at the start of `bits`, most significant bit first.
    #[inline(always)]
    pub(super) fn code(&self, bits: u64) -> Result<Code, Fault> {
        match self.short[(bits >> (64 - LOOKUP_BITS)) as usize] {
            0 => self.long_code(bits),
            code => Ok(Code(code)),
        }
    }

    #[cold]
    fn long_code(&self, bits: u64) -> Result<Code, Fault> {
        for length in LOOKUP_BITS + 1..=16 {
            let code = (bits >> (64 - length)) as i32;
            if code <= self.largest[length as usize] {
                let index = usize::try_from(code + self.symbol_offset[length as usize]);
                let symbol = index.ok().and_then(|index| self.symbols.get(index));
                return match symbol {
                    Some(&symbol) => Ok(Code::new(symbol, length)),
                    None => Err(Fault::BadCode),
                };
            }
        }
        Err(Fault::BadCode)
    }
}

/// Reads the bits of one stretch of coded data, which ends at a marker or at the end of the file. After the end it
/// returns zeros.
#[derive(Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// The next byte to load. At the end of the data, the position of the marker's 0xff.
    position: usize,
    /// The next bits, most significant first.
    buffer: u64,
    /// Number of bits of the data in the buffer; negative if more bits were skipped than the data has.
    left: i32,
    ended: bool,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        BitReader {
            bytes,
            position,
            buffer: 0,
            left: 0,
            ended: false,
        }
    }

    /// The position of the first byte that is not loaded; at the end of the data, of the marker.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Whether more bits were read than the data has.
    #[inline(always)]
    pub(super) fn overdrawn(&self) -> bool {
        self.left < 0
    }

    /// Returns at least the next 32 bits, starting at the most significant bit, without consuming them.
    #[inline(always)]
    pub(super) fn peek(&mut self) -> u64 {
        if self.left < 32 {
            self.refill();
        }
        self.buffer
    }

    /// Skips up to 32 bits, which must have been peeked.
    #[inline(always)]
    pub(super) fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.left -= count as i32;
    }

    /// Reads up to 16 bits.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> u32 {
        let value = match count {
            0 => 0,
            _ => (self.peek() >> (64 - count)) as u32,
        };
        self.skip(count);
        value
    }

    /// Skips any number of bits.
    pub(super) fn skip_many(&mut self, count: u32) {
        let mut count = count;
        while count > 0 {
            let some = count.min(32);
            self.peek();
            self.skip(some);
            count -= some;
        }
    }

    fn refill(&mut self) {
        if self.ended {
            return;
        }
        if let Some(next) = self.bytes.get(self.position..self.position + 8)
            && let Ok(next) = <[u8; 8]>::try_from(next)
        {
            let word = u64::from_be_bytes(next);
            if !has_marker_byte(word) {
                let count = (63 - self.left as u32) / 8;
                self.buffer |= word >> self.left;
                self.left += 8 * count as i32;
                self.position += count as usize;
                // Clears the bits of a partly loaded byte, which the next refill loads completely.
                self.buffer &= u64::MAX << (64 - self.left);
                return;
            }
        }
        while self.left <= 56 {
            let Some(&byte) = self.bytes.get(self.position) else {
                self.ended = true;
                return;
            };
            let mut next = self.position + 1;
            if byte == 0xff {
                // Any number of fill bytes may precede the code of a marker, and the zero that stands for a data
                // byte of 0xff.
                while self.bytes.get(next) == Some(&0xff) {
                    next += 1;
                }
                if self.bytes.get(next) != Some(&0) {
                    self.ended = true;
                    return;
                }
                next += 1;
            }
            self.buffer |= u64::from(byte) << (56 - self.left);
            self.left += 8;
            self.position = next;
        }
    }
}

/// Whether one of the eight bytes is 0xff.
fn has_marker_byte(word: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let inverse = !word;
    inverse.wrapping_sub(LOW) & !inverse & HIGH != 0
}
