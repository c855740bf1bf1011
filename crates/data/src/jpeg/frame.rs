//! The segments that describe the coded data: frame, scans, Huffman tables.

use super::bits::Table;

/// Huffman tables and the restart interval, as the last segments set them.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub dc: [Option<Table>; 4],
    pub ac: [Option<Table>; 4],
    /// MCUs between restart markers, 0 for none.
    pub restart_interval: u32,
}

impl Tables {
    /// Reads a segment DHT, which holds one table or more.
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

/// A frame: the size of the image and its channels.
#[derive(Debug)]
pub(super) struct Frame {
    pub progressive: bool,
    pub components: Vec<Component>,
    /// MCUs of an interleaved scan, across and down.
    pub mcus: (u32, u32),
}

/// A coefficient of which no scan has come.
const NOT_BEGUN: u8 = u8::MAX;

/// A channel.
#[derive(Debug)]
pub(super) struct Component {
    id: u8,
    /// Blocks of an MCU, across and down.
    pub sampling: (u32, u32),
    /// Blocks that hold pixels, across and down: those of a scan of this channel alone.
    pub blocks: (u32, u32),
    /// Blocks of whole MCUs, across.
    pub stride: u32,
    /// Bits that each coefficient still lacks, in zigzag order; [`NOT_BEGUN`] before its first scan.
    pub missing_bits: [u8; 64],
    /// Progressive: which coefficients of each block are not zero yet, by their place in zigzag order.
    pub nonzero: Vec<u64>,
}

impl Component {
    /// Whether a scan has its DC coefficients.
    pub(super) fn begun(&self) -> bool {
        self.missing_bits[0] != NOT_BEGUN
    }

    /// Whether all bits of all coefficients have come.
    pub(super) fn complete(&self) -> bool {
        self.missing_bits == [0; 64]
    }
}

impl Frame {
    /// Reads a segment SOF0, SOF1 or SOF2.
    pub(super) fn read(segment: &[u8], progressive: bool) -> Option<Self> {
        // Blocks of the largest image that is decoded, which bounds what is allocated here.
        const MOST_BLOCKS: u64 = (512 << 20) / 64;
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
                (kept <= MOST_BLOCKS).then(|| Component {
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

/// A scan: which coefficients of which channels its data codes.
#[derive(Debug)]
pub(super) struct Scan {
    pub components: Vec<ScanComponent>,
    /// First and last coefficient in zigzag order.
    pub spectrum: (u32, u32),
    /// Whether it refines coefficients that an earlier scan began.
    pub refines: bool,
    /// Bits that its coefficients lack after it.
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
    /// Reads a segment SOS.
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
