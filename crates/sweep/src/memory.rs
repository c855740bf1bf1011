//! The memory that cells may occupy while they are trained at the same time.

use torch_ext::TorchError;

use crate::active_cell::ActiveCell;
use crate::context::Context;
use crate::failure::Reason;

/// Share of free memory that the state of cells may occupy; the rest is for a training step and for evaluation.
const FREE_SHARE: f64 = 0.8;

/// The memory in bytes that the state of cells may occupy: the limit of the user, or a share of the free memory. `None`
/// if that is unknown.
pub(crate) fn memory_limit(context: &Context) -> Result<Option<u64>, TorchError> {
    if context.memory_limit.is_some() {
        return Ok(context.memory_limit);
    }
    let free = torch_ext::device::free_memory(context.device)?;
    Ok(free.map(|free| (free as f64 * FREE_SHARE) as u64))
}

/// The memory that the state of cells may occupy.
pub(crate) struct MemoryBudget {
    /// `None` if the free memory is unknown.
    bytes: Option<u64>,
}

impl MemoryBudget {
    /// Must be called before a cell is opened, because part of a cell's state is allocated only in its first step.
    pub(crate) fn new(context: &Context) -> Result<Self, Reason> {
        Ok(Self {
            bytes: memory_limit(context)?,
        })
    }

    /// Whether another cell, as large as the largest of `cells`, fits beside them. The first cell always fits.
    pub(crate) fn fits_another(&self, cells: &[ActiveCell]) -> bool {
        let sizes = cells.iter().map(|cell| cell.run.trainer().state_bytes());
        let (occupied, largest) = sizes.fold((0, 0), |(sum, largest), size| {
            (sum + size, size.max(largest))
        });
        cells.is_empty() || self.bytes.is_none_or(|bytes| occupied + largest <= bytes)
    }
}
