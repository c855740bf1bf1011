//! Huffman tables, and the bits of coded data.

use super::Fault;

/// Bits of a code that are resolved by one look into a table.
const LOOK: u32 = 10;

/// A Huffman table that knows, for each code, how many bits and coefficients it covers.
#[derive(Debug)]
pub(super) struct Table {
    /// By the next [`LOOK`] bits: a packed [`Code`]; 0 where the code is longer.
    short: Box<[u32; 1 << LOOK]>,
    /// By the next [`LOOK`] bits: a packed [`Run`]; 0 where the first code is longer. Of AC tables only.
    runs: Vec<u32>,
    /// Largest code of each length, -1 where there is none.
    largest: [i32; 17],
    /// What to add to a code of each length for the place of its symbol.
    place: [i32; 17],
    symbols: Vec<u8>,
}

/// A code and its symbol, packed: symbol, length of the code, bits of code and value, coefficients in a sequential
/// block.
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

    /// Bits of the code and of the value that follows, whose size is the symbol's low half: 31 at most.
    pub(super) fn bits(self) -> u32 {
        self.0 >> 16 & 0xff
    }

    /// How far an AC symbol of a sequential block goes; 64 for the end of the block.
    pub(super) fn coefficients(self) -> u32 {
        self.0 >> 24
    }
}

/// Several codes and their values, packed: bits of all, coefficients before the end of the block, whether they
/// end it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run(u32);

impl Run {
    fn new(bits: u32, coefficients: u32, ends: bool) -> Self {
        Run(bits | coefficients << 8 | u32::from(ends) << 24)
    }

    pub(super) fn bits(self) -> u32 {
        self.0 & 0xff
    }

    pub(super) fn coefficients(self) -> u32 {
        self.0 >> 8 & 0xffff
    }

    /// 1 if the last code ends the block, else 0.
    pub(super) fn ends(self) -> u32 {
        self.0 >> 24
    }
}

impl Table {
    /// A table from the number of codes of each length, 1 to 16, and the symbols; `None` if there are more codes than
    /// bits allow.
    pub(super) fn new(counts: &[u8], symbols: &[u8]) -> Option<Self> {
        let mut table = Table {
            short: Box::new([0; 1 << LOOK]),
            runs: Vec::new(),
            largest: [-1; 17],
            place: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut place) = (0_u32, 0_usize);
        for (&count, length) in counts.iter().zip(1_u32..) {
            table.place[length as usize] = place as i32 - code as i32;
            for &symbol in symbols.get(place..place + usize::from(count))? {
                if code >= 1 << length {
                    return None;
                }
                if length <= LOOK {
                    let first = (code << (LOOK - length)) as usize;
                    let same = 1 << (LOOK - length);
                    table.short[first..first + same].fill(Code::new(symbol, length).0);
                }
                code += 1;
            }
            place += usize::from(count);
            if count > 0 {
                table.largest[length as usize] = code as i32 - 1;
            }
            code <<= 1;
        }
        Some(table)
    }

    /// Prepares [`run`](Self::run).
    pub(super) fn with_runs(mut self) -> Self {
        let run = |pattern: u32| {
            let (mut bits, mut coefficients) = (0, 0);
            let mut ends = false;
            while bits < LOOK && !ends {
                let rest = pattern << bits & ((1 << LOOK) - 1);
                let code = Code(self.short[rest as usize]);
                if code.0 == 0 || bits + code.length() > LOOK {
                    break;
                }
                bits += code.bits();
                ends = code.coefficients() == 64;
                coefficients += if ends { 0 } else { code.coefficients() };
            }
            Run::new(bits, coefficients, ends).0
        };
        self.runs = (0..1 << LOOK).map(run).collect();
        self
    }

    /// The codes of a sequential block that are whole in the first bits; `None` if the first is not.
    #[inline(always)]
    pub(super) fn run(&self, bits: u64) -> Option<Run> {
        match self.runs.get((bits >> (64 - LOOK)) as usize) {
            None | Some(0) => None,
            Some(&run) => Some(Run(run)),
        }
    }

    /// The code at the head of `bits`, most significant first.
    #[inline(always)]
    pub(super) fn code(&self, bits: u64) -> Result<Code, Fault> {
        match self.short[(bits >> (64 - LOOK)) as usize] {
            0 => self.long_code(bits),
            code => Ok(Code(code)),
        }
    }

    #[cold]
    fn long_code(&self, bits: u64) -> Result<Code, Fault> {
        for length in LOOK + 1..=16 {
            let code = (bits >> (64 - length)) as i32;
            if code <= self.largest[length as usize] {
                let place = usize::try_from(code + self.place[length as usize]);
                let symbol = place.ok().and_then(|place| self.symbols.get(place));
                return match symbol {
                    Some(&symbol) => Ok(Code::new(symbol, length)),
                    None => Err(Fault::BadCode),
                };
            }
        }
        Err(Fault::BadCode)
    }
}

/// The bits of one stretch of coded data, which ends at a marker or with the file. Zeros follow.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// The next byte to load; the marker's 0xff once the data has ended.
    position: usize,
    /// The next bits, most significant first.
    buffer: u64,
    /// Bits of the data in the buffer; below zero when more was dropped than there was.
    left: i32,
    ended: bool,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        Bits {
            bytes,
            position,
            buffer: 0,
            left: 0,
            ended: false,
        }
    }

    /// Where the data stops, or the first byte that is not loaded yet.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Whether more bits were used than the data has.
    #[inline(always)]
    pub(super) fn overdrawn(&self) -> bool {
        self.left < 0
    }

    /// The next 32 bits or more, at the top.
    #[inline(always)]
    pub(super) fn peek(&mut self) -> u64 {
        if self.left < 32 {
            self.refill();
        }
        self.buffer
    }

    /// Passes over 32 bits or fewer, which were peeked.
    #[inline(always)]
    pub(super) fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.left -= count as i32;
    }

    /// Reads 16 bits or fewer.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> u32 {
        let value = match count {
            0 => 0,
            _ => (self.peek() >> (64 - count)) as u32,
        };
        self.skip(count);
        value
    }

    /// Passes over any number of bits.
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
                // Bits of a byte that was not taken as a whole are loaded again with it.
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
                // Any number of fill bytes may stand before a marker's code, and before the zero that makes
                // a data byte of 0xff.
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

/// Whether one of eight bytes is 0xff.
fn has_marker_byte(word: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let inverse = !word;
    inverse.wrapping_sub(LOW) & !inverse & HIGH != 0
}
