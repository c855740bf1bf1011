//! Checks the shapes of token tensors.

use tch::Tensor;

use crate::AlignmentError;

/// Returns the sizes `(batch, tokens, width)` of a batch of tokens.
pub(crate) fn sizes(
    what: &'static str,
    tokens: &Tensor,
) -> Result<(i64, i64, i64), AlignmentError> {
    match tokens.size()[..] {
        [batch, count, width] => Ok((batch, count, width)),
        ref found => Err(AlignmentError::NotTokens {
            what,
            found: found.to_vec(),
        }),
    }
}

/// Returns the sizes `(batch, tokens, width)` of encoder tokens and projected tokens, which must be
/// equal.
pub(crate) fn pair(target: &Tensor, projected: &Tensor) -> Result<(i64, i64, i64), AlignmentError> {
    let sizes = sizes("encoder tokens", target)?;
    self::sizes("projected tokens", projected)?;
    if target.size() != projected.size() {
        return Err(AlignmentError::ShapeMismatch {
            target: target.size(),
            what: "projected tokens",
            found: projected.size(),
        });
    }
    Ok(sizes)
}
