//! Checks the codes of one scan.

use super::bits::{BitReader, Table};
use super::fault::Fault;
use super::frame::{Frame, Scan, Tables};
use super::marker::next_marker;

/// Checks the coded data that starts at `start`. Returns where reading stopped: at a marker, at the end of the
/// file, or up to 8 bytes after the last code.
pub(super) fn check(
    bytes: &[u8],
    start: usize,
    frame: &mut Frame,
    tables: &Tables,
    scan: &Scan,
) -> Result<usize, Fault> {
    let mut checker = ScanChecker {
        bits: BitReader::new(bytes, start),
        end_of_band_run: 0,
    };
    let (across, down) = mcus(frame, scan);
    let interval = match tables.restart_interval {
        0 => u64::MAX,
        interval => interval.into(),
    };
    let mut until_restart = interval;
    for y in 0..down {
        for x in 0..across {
            if until_restart == 0 {
                checker.bits = restart(bytes, &checker.bits)?;
                checker.end_of_band_run = 0;
                until_restart = interval;
            }
            until_restart -= 1;
            checker.mcu(frame, tables, scan, x, y)?;
            if checker.bits.overdrawn() {
                return Err(Fault::Truncated);
            }
        }
    }
    for part in &scan.components {
        let (first, last) = scan.spectrum;
        let missing = &mut frame.components[part.index].missing_bits;
        missing[first as usize..=last as usize].fill(scan.missing_bits);
    }
    Ok(checker.bits.position())
}

/// Reads the data after the next restart marker. The number of the marker is not checked, only that it exists.
fn restart<'a>(bytes: &'a [u8], bits: &BitReader<'a>) -> Result<BitReader<'a>, Fault> {
    match next_marker(bytes, bits.position()) {
        Some((0xd0..=0xd7, start)) => Ok(BitReader::new(bytes, start)),
        _ => Err(Fault::Truncated),
    }
}

/// The number of MCUs of a scan, across and down. A scan of one channel has one block per MCU and no padding.
pub(super) fn mcus(frame: &Frame, scan: &Scan) -> (u32, u32) {
    match scan.components.as_slice() {
        [only] => frame.components[only.index].blocks,
        _ => frame.mcus,
    }
}

struct ScanChecker<'a> {
    bits: BitReader<'a>,
    /// Progressive only: number of following blocks whose band has no further coefficients.
    end_of_band_run: u32,
}

impl ScanChecker<'_> {
    fn mcu(
        &mut self,
        frame: &mut Frame,
        tables: &Tables,
        scan: &Scan,
        x: u32,
        y: u32,
    ) -> Result<(), Fault> {
        let alone = scan.components.len() == 1;
        for part in &scan.components {
            let component = &mut frame.components[part.index];
            let dc = || tables.dc[part.dc].as_ref().ok_or(Fault::BadSegment);
            let ac = || tables.ac[part.ac].as_ref().ok_or(Fault::BadSegment);
            let (wide, high) = if alone { (1, 1) } else { component.sampling };
            if !frame.progressive {
                let (dc, ac) = (dc()?, ac()?);
                for _ in 0..wide * high {
                    self.sequential_block(dc, ac)?;
                }
                continue;
            }
            for (row, column) in
                (0..high).flat_map(|row| (0..wide).map(move |column| (row, column)))
            {
                let block = (y * high + row) * component.stride + x * wide + column;
                let nonzero = &mut component.nonzero[block as usize];
                match (scan.spectrum.0, scan.refines) {
                    (0, false) => self.dc(dc()?)?,
                    (0, true) => drop(self.bits.take(1)),
                    (_, false) => self.first_band(ac()?, scan.spectrum, nonzero)?,
                    (_, true) => self.refined_band(ac()?, scan.spectrum, nonzero)?,
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn sequential_block(&mut self, dc: &Table, ac: &Table) -> Result<(), Fault> {
        self.dc(dc)?;
        let mut index = 1;
        while index < 64 {
            let bits = self.bits.peek();
            if let Some(run) = ac.run(bits)
                && index + run.coefficients() + run.ends_block() <= 64
            {
                self.bits.skip(run.bits());
                index += run.coefficients() + 64 * run.ends_block();
            } else {
                let code = ac.code(bits)?;
                self.bits.skip(code.bits());
                index += code.coefficients();
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn dc(&mut self, table: &Table) -> Result<(), Fault> {
        let code = table.code(self.bits.peek())?;
        if code.symbol() > 15 {
            return Err(Fault::BadCode);
        }
        self.bits.skip(code.bits());
        Ok(())
    }

    /// Reads the first scan of a band of AC coefficients: section G.1.2.2.
    fn first_band(
        &mut self,
        table: &Table,
        (first, last): (u32, u32),
        nonzero: &mut u64,
    ) -> Result<(), Fault> {
        if self.end_of_band_run > 0 {
            self.end_of_band_run -= 1;
            return Ok(());
        }
        let mut index = first;
        while index <= last {
            let code = table.code(self.bits.peek())?;
            let (run, size) = (u32::from(code.symbol() >> 4), code.symbol() & 15);
            if size > 0 {
                self.bits.skip(code.bits());
                index += run;
                *nonzero |= 1_u64.checked_shl(index).unwrap_or(0);
                index += 1;
            } else {
                self.bits.skip(code.length());
                if run < 15 {
                    self.end_of_band_run = (1 << run) - 1 + self.bits.take(run);
                    break;
                }
                index += 16;
            }
        }
        Ok(())
    }

    /// Reads a scan that adds one bit to a band of AC coefficients: section G.1.2.3. Each coefficient that is already
    /// nonzero has a correction bit between the codes.
    fn refined_band(
        &mut self,
        table: &Table,
        (first, last): (u32, u32),
        nonzero: &mut u64,
    ) -> Result<(), Fault> {
        let mut index = first;
        if self.end_of_band_run == 0 {
            while index <= last {
                let code = table.code(self.bits.peek())?;
                self.bits.skip(code.length());
                let (run, size) = (u32::from(code.symbol() >> 4), code.symbol() & 15);
                if size > 0 {
                    self.bits.take(1);
                } else if run < 15 {
                    self.end_of_band_run = (1 << run) + self.bits.take(run);
                    break;
                }
                let mut zeros = run;
                while index <= last {
                    if *nonzero >> index & 1 == 1 {
                        self.bits.take(1);
                    } else if zeros == 0 {
                        break;
                    } else {
                        zeros -= 1;
                    }
                    index += 1;
                }
                if size > 0 && index <= last {
                    *nonzero |= 1 << index;
                }
                index += 1;
            }
        }
        if self.end_of_band_run > 0 {
            if index <= last {
                let band = (u64::MAX << index) & (u64::MAX >> (63 - last));
                self.bits.skip_many((*nonzero & band).count_ones());
            }
            self.end_of_band_run -= 1;
        }
        Ok(())
    }
}
