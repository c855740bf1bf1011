//! Going through the codes of one scan.

use super::bits::{Bits, Table};
use super::frame::{Frame, Scan, Tables};
use super::{Fault, next_marker};

/// Goes through the coded data that starts at `start`. Returns where it ends: at a marker, at the end of the
/// file, or up to 8 bytes after the last code.
pub(super) fn walk(
    bytes: &[u8],
    start: usize,
    frame: &mut Frame,
    tables: &Tables,
    scan: &Scan,
) -> Result<usize, Fault> {
    let mut walk = Walk {
        bits: Bits::new(bytes, start),
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
                walk.bits = restart(bytes, &walk.bits)?;
                walk.end_of_band_run = 0;
                until_restart = interval;
            }
            until_restart -= 1;
            walk.mcu(frame, tables, scan, x, y)?;
            if walk.bits.overdrawn() {
                return Err(Fault::CutShort);
            }
        }
    }
    for part in &scan.components {
        let (first, last) = scan.spectrum;
        let missing = &mut frame.components[part.index].missing_bits;
        missing[first as usize..=last as usize].fill(scan.missing_bits);
    }
    Ok(walk.bits.position())
}

/// The data after the next restart marker. Its number is not compared: what counts is that none is missing.
fn restart<'a>(bytes: &'a [u8], bits: &Bits<'a>) -> Result<Bits<'a>, Fault> {
    match next_marker(bytes, bits.position()) {
        Some((0xd0..=0xd7, start)) => Ok(Bits::new(bytes, start)),
        _ => Err(Fault::CutShort),
    }
}

/// MCUs of a scan, across and down. The only channel of a scan has one block an MCU and no padding.
pub(super) fn mcus(frame: &Frame, scan: &Scan) -> (u32, u32) {
    match scan.components.as_slice() {
        [only] => frame.components[only.index].blocks,
        _ => frame.mcus,
    }
}

struct Walk<'a> {
    bits: Bits<'a>,
    /// Progressive: blocks whose band has no more coefficients.
    end_of_band_run: u32,
}

impl Walk<'_> {
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
        let mut place = 1;
        while place < 64 {
            let bits = self.bits.peek();
            if let Some(run) = ac.run(bits)
                && place + run.coefficients() + run.ends() <= 64
            {
                self.bits.skip(run.bits());
                place += run.coefficients() + 64 * run.ends();
            } else {
                let code = ac.code(bits)?;
                self.bits.skip(code.bits());
                place += code.coefficients();
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

    /// First bits of a band of AC coefficients: section G.1.2.2.
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
        let mut place = first;
        while place <= last {
            let code = table.code(self.bits.peek())?;
            let (run, size) = (u32::from(code.symbol() >> 4), code.symbol() & 15);
            if size > 0 {
                self.bits.skip(code.bits());
                place += run;
                *nonzero |= 1_u64.checked_shl(place).unwrap_or(0);
                place += 1;
            } else {
                self.bits.skip(code.length());
                if run < 15 {
                    self.end_of_band_run = (1 << run) - 1 + self.bits.take(run);
                    break;
                }
                place += 16;
            }
        }
        Ok(())
    }

    /// One more bit of a band of AC coefficients: section G.1.2.3. Each coefficient that is not zero yet has a bit of
    /// its own among the codes.
    fn refined_band(
        &mut self,
        table: &Table,
        (first, last): (u32, u32),
        nonzero: &mut u64,
    ) -> Result<(), Fault> {
        let mut place = first;
        if self.end_of_band_run == 0 {
            while place <= last {
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
                while place <= last {
                    if *nonzero >> place & 1 == 1 {
                        self.bits.take(1);
                    } else if zeros == 0 {
                        break;
                    } else {
                        zeros -= 1;
                    }
                    place += 1;
                }
                if size > 0 && place <= last {
                    *nonzero |= 1 << place;
                }
                place += 1;
            }
        }
        if self.end_of_band_run > 0 {
            if place <= last {
                let band = (u64::MAX << place) & (u64::MAX >> (63 - last));
                self.bits.skip_many((*nonzero & band).count_ones());
            }
            self.end_of_band_run -= 1;
        }
        Ok(())
    }
}
