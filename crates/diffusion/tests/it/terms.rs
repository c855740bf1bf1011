//! Alignment terms of the golden cases.

use alignment::{
    AlignmentError, AlignmentLoss, AlignmentOutput, Head, HeadConfig, LossKind, Source,
    SpatialNorm, Term,
};
use tch::Tensor;
use torch_ext::Scope;

/// The cosine loss, averaged over `encoders` encoders.
fn cosine(encoders: usize, norm: SpatialNorm, coefficient: f64) -> AlignmentLoss {
    let terms = (0..encoders).map(|encoder| Term {
        source: Source::Encoder(encoder),
        depth: 1,
        head: HeadConfig::Linear,
        norm,
        loss: LossKind::Cosine.build(),
        coefficient: coefficient / encoders as f64,
    });
    AlignmentLoss::new(terms.collect()).unwrap()
}

/// The cosine loss of each encoder's tokens and projected tokens, averaged over the encoders.
pub fn compare(
    norm: SpatialNorm,
    coefficient: f64,
    tokens: &[Tensor],
    projected: &[Tensor],
) -> Result<AlignmentOutput, AlignmentError> {
    let tokens: Vec<&Tensor> = tokens.iter().collect();
    let projected: Vec<&Tensor> = projected.iter().collect();
    cosine(tokens.len(), norm, coefficient).forward(&tokens, &projected[..1], &projected)
}

/// Declares one head for each of `widths`, as a run with as many encoders does.
pub fn heads(root: &Scope, config: &HeadConfig, in_width: i64, widths: &[i64]) -> Vec<Head> {
    let scope = root.sub("projectors");
    let heads = widths.iter().enumerate();
    heads
        .map(|(index, &width)| Head::new(&scope.sub(index), config, in_width, width).unwrap())
        .collect()
}
