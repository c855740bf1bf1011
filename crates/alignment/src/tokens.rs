use tch::Tensor;

use crate::AlignmentError;

/// The three sizes `(batch, tokens, width)` of a batch of tokens.
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
