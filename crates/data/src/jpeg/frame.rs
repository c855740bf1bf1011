//! Parses the segments that describe the coded data: frame, scans and Huffman tables.

use super::bits::Table;

/// The current Huffman tables and restart interval, as set by the most recent segments.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub dc: [Option<Table>; 4],
    pub ac: [Option<Table>; 4],
    /// MCUs between restart markers, 0 for none.
    pub restart_interval: u32,
}

impl Tables {
    /// Reads a DHT segment, which has one or more tables.
    pub(super) fn define(&mut self, segment: &[u8]) -> Option<()> {
        let mut rest = segment;
        while let Some((&class_and_slot, after)) = rest.split_first() {
            let (counts, after) = after.split_at_checked(16)?;
            let codes = counts.iter().map(|&count| usize::from(count)).sum();
            let (symbols, after) = after.split_at_checked(codes)?;
            let tables = match class_and_slot >> 4 {
                0 => &mut self.dc,
                1 => &mut self.ac,
                _ => return None,
            };
            let table = Table::new(counts, symbols)?;
            let slot = tables.get_mut(usize::from(class_and_slot & 15))?;
            *slot = Some(match class_and_slot >> 4 {
                0 => table,
                _ => table.with_runs(),
            });
            rest = after;
        }
        Some(())
    }
}

/// A frame: the channels of the image and its size in MCUs.
#[derive(Debug)]
pub(super) struct Frame {
    pub progressive: bool,
    pub components: Vec<Component>,
    /// MCUs of an interleaved scan, across and down.
    pub mcus: (u32, u32),
}

/// Value of `missing_bits` for a coefficient that no scan has coded yet.
const NOT_BEGUN: u8 = u8::MAX;

/// A channel.
#[derive(Debug)]
pub(super) struct Component {
    id: u8,
    /// Blocks per MCU, across and down.
    pub sampling: (u32, u32),
    /// Blocks that have pixels, across and down. A scan of this channel alone has just these blocks.
    pub blocks: (u32, u32),
    /// Blocks per row, padded to whole MCUs.
    pub stride: u32,
    /// Number of bits that each coefficient still lacks, in zigzag order; [`NOT_BEGUN`] before its first scan.
    pub missing_bits: [u8; 64],
    /// Progressive only: for each block, the set of coefficients that are nonzero so far, one bit per index in zigzag
    /// order.
    pub nonzero: Vec<u64>,
}

impl Component {
    /// Whether a scan has coded its DC coefficients.
    pub(super) fn begun(&self) -> bool {
        self.missing_bits[0] != NOT_BEGUN
    }

    /// Whether all bits of all coefficients have been coded.
    pub(super) fn complete(&self) -> bool {
        self.missing_bits == [0; 64]
    }
}

impl Frame {
    /// Reads an SOF0, SOF1 or SOF2 segment.
    pub(super) fn read(segment: &[u8], progressive: bool) -> Option<Self> {
        // Number of blocks of the largest image that is decoded, which limits the allocation here.
        const MAX_BLOCKS: u64 = (512 << 20) / 64;
        let &[_, h1, h0, w1, w0, count, ref rest @ ..] = segment else {
            return None;
        };
        let height = u32::from(u16::from_be_bytes([h1, h0]));
        let width = u32::from(u16::from_be_bytes([w1, w0]));
        let (channels, _) = rest.as_chunks::<3>();
        let channels = channels.get(..usize::from(count))?;
        let sampling = |&[_, sampling, _]: &[u8; 3]| {
            let (across, down) = (u32::from(sampling >> 4), u32::from(sampling & 15));
            ((1..=4).contains(&across) && (1..=4).contains(&down)).then_some((across, down))
        };
        let samplings: Option<Vec<_>> = channels.iter().map(sampling).collect();
        let samplings = samplings?;
        let across = samplings.iter().map(|&(across, _)| across).max()?;
        let down = samplings.iter().map(|&(_, down)| down).max()?;
        if width == 0 || height == 0 || !(1..=4).contains(&count) {
            return None;
        }
        let mcus = (width.div_ceil(8 * across), height.div_ceil(8 * down));
        let components = channels
            .iter()
            .zip(samplings)
            .map(|(&[id, _, _], sampling)| {
                let blocks = (
                    (width * sampling.0).div_ceil(8 * across),
                    (height * sampling.1).div_ceil(8 * down),
                );
                let stride = mcus.0 * sampling.0;
                let rows = mcus.1 * sampling.1;
                let all = u64::from(stride) * u64::from(rows);
                let kept = if progressive { all } else { 0 };
                (kept <= MAX_BLOCKS).then(|| Component {
                    id,
                    sampling,
                    blocks,
                    stride,
                    missing_bits: [NOT_BEGUN; 64],
                    nonzero: vec![0; kept as usize],
                })
            });
        Some(Frame {
            progressive,
            components: components.collect::<Option<_>>()?,
            mcus,
        })
    }
}

/// A scan: the channels and the coefficients that its data codes.
#[derive(Debug)]
pub(super) struct Scan {
    pub components: Vec<ScanComponent>,
    /// First and last coefficient in zigzag order.
    pub spectrum: (u32, u32),
    /// Whether it adds a bit to coefficients that an earlier scan began.
    pub refines: bool,
    /// Number of bits that its coefficients still lack after this scan.
    pub missing_bits: u8,
}

/// A channel in a scan.
#[derive(Debug)]
pub(super) struct ScanComponent {
    /// Index in the frame.
    pub index: usize,
    /// Slots of its Huffman tables.
    pub dc: usize,
    pub ac: usize,
}

impl Scan {
    /// Reads an SOS segment.
    pub(super) fn read(segment: &[u8], frame: &Frame) -> Option<Self> {
        let (&count, rest) = segment.split_first()?;
        let (pairs, rest) = rest.split_at_checked(2 * usize::from(count))?;
        let (pairs, _) = pairs.as_chunks::<2>();
        let components = pairs.iter().map(|&[id, tables]| {
            let (dc, ac) = (usize::from(tables >> 4), usize::from(tables & 15));
            let index = frame
                .components
                .iter()
                .position(|component| component.id == id)?;
            (dc < 4 && ac < 4).then_some(ScanComponent { index, dc, ac })
        });
        let components: Vec<_> = components.collect::<Option<_>>()?;
        let &[first, last, approximation, ..] = rest else {
            return None;
        };
        let spectrum = match frame.progressive {
            true => (u32::from(first), u32::from(last)),
            false => (0, 63),
        };
        let in_order = match spectrum {
            (0, last) => last == 0 || !frame.progressive,
            (first, last) => first <= last && last < 64 && components.len() == 1,
        };
        (in_order && !components.is_empty()).then_some(Scan {
            components,
            spectrum,
            refines: frame.progressive && approximation >> 4 != 0,
            missing_bits: if frame.progressive {
                approximation & 15
            } else {
                0
            },
        })
    }
}
