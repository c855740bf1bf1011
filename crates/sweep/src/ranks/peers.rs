//! The ranks as readers of one data stream.

use std::collections::BTreeSet;
use std::error::Error;

use data::Peers;
use tch::{Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::distributed::{ProcessGroup, Reduce};

/// Ranks that tell each other which samples are corrupt, in a process group of their own: batches may be made in another
/// thread than steps.
pub(crate) struct GroupPeers(pub(crate) ProcessGroup);

impl Peers for GroupPeers {
    fn union(&mut self, corrupt: &[u64]) -> Result<Vec<u64>, Box<dyn Error + Send + Sync>> {
        Ok(union(&self.0, corrupt)?)
    }
}

fn union(group: &ProcessGroup, corrupt: &[u64]) -> Result<Vec<u64>, TorchError> {
    let most = Tensor::f_from_slice(&[corrupt.len() as i64])?;
    group.all_reduce_(&most, Reduce::Max)?;
    let most = usize::try_from(most.f_int64_value(&[0])?).unwrap_or_default();
    if most == 0 {
        return Ok(Vec::new());
    }
    // Filled up with -1 to the same length.
    let own = corrupt.iter().map(|&index| index as i64);
    let own: Vec<i64> = own.chain(std::iter::repeat(-1)).take(most).collect();
    let all = group.all_gather(&Tensor::f_from_slice(&own)?)?;
    let mut union = BTreeSet::new();
    for indices in all {
        let indices = Vec::<i64>::try_from(indices.f_to_kind(Kind::Int64)?)?;
        union.extend(
            indices
                .into_iter()
                .filter_map(|index| u64::try_from(index).ok()),
        );
    }
    Ok(union.into_iter().collect())
}
