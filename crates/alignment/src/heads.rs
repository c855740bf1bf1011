//! The heads of a run.

use tch::Tensor;
use torch_ext::Scope;

use crate::term::distinct;
use crate::{AlignmentError, Head, Projection, Source};

/// One head for each projection that a run needs, named `projectors.0`, `projectors.1`, ... as in upstream's
/// checkpoints.
///
/// ```
/// use alignment::{HeadConfig, Heads, Projection, Source};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::Params;
///
/// # fn main() -> Result<(), alignment::AlignmentError> {
/// let params = Params::new(Device::Cpu, 0)?;
/// let projection = |source| Projection {
///     source: Source::Encoder(source),
///     depth: 4,
///     head: HeadConfig::default(),
/// };
/// let heads = Heads::new(&params.root(), &[projection(0), projection(1)], 64, &[112, 768])?;
/// assert_eq!(params.entries()[0].name, "projectors.0.projection_layer.weight");
///
/// let hidden = Tensor::randn([2, 16, 64], (Kind::Float, Device::Cpu)); // after block 4
/// let projected = heads.project(&[hidden])?;
/// assert_eq!(projected[1].size(), [2, 16, 768]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Heads {
    /// Each head, with the position of its hidden tokens.
    heads: Vec<(usize, Head)>,
    depths: Vec<i64>,
}

impl Heads {
    /// Declares the heads below `root`, for hidden tokens of width `in_width` and sources whose tokens have the widths
    /// `source_widths`.
    ///
    /// # Errors
    /// A projection names a source that `source_widths` does not list; those of [`Head::new`].
    pub fn new(
        root: &Scope,
        projections: &[Projection],
        in_width: i64,
        source_widths: &[i64],
    ) -> Result<Self, AlignmentError> {
        let scope = root.sub("projectors");
        let (depths, positions) = distinct(projections.iter().map(|projection| projection.depth));
        let mut heads = Vec::with_capacity(projections.len());
        for (index, (projection, position)) in projections.iter().zip(positions).enumerate() {
            let Source::Encoder(source) = projection.source;
            let width = source_widths
                .get(source)
                .ok_or_else(|| AlignmentError::Count {
                    what: "encoders",
                    found: source_widths.len(),
                    expected: source + 1,
                })?;
            let head = Head::new(&scope.sub(index), &projection.head, in_width, *width)?;
            heads.push((position, head));
        }
        Ok(Self { heads, depths })
    }

    /// The blocks of the denoiser, counted from 1, whose tokens [`Heads::project`] takes.
    pub fn depths(&self) -> &[i64] {
        &self.depths
    }

    /// The heads, in the order of the projections.
    pub fn iter(&self) -> impl Iterator<Item = &Head> {
        self.heads.iter().map(|(_, head)| head)
    }

    /// Projects hidden tokens `[B, T, in]`, one tensor for each of [`Heads::depths`]. Returns one tensor `[B, T, out]`
    /// for each head.
    ///
    /// # Errors
    /// The number of tensors differs; those of [`Head::forward`].
    pub fn project(&self, hidden: &[Tensor]) -> Result<Vec<Tensor>, AlignmentError> {
        if hidden.len() != self.depths.len() {
            return Err(AlignmentError::Count {
                what: "depths",
                found: hidden.len(),
                expected: self.depths.len(),
            });
        }
        self.heads
            .iter()
            .map(|(depth, head)| head.forward(&hidden[*depth]))
            .collect()
    }
}
