//! The figures of a step.

use metrics::figures::{Figure, Figures, Kind as FigureKind};
use tch::Kind;
use torch_ext::TorchError;
use torch_ext::readback::Readback;

use crate::{LastGoodCheckpoint, StepMetrics, TrainError};

/// The figures of a step while they are copied from the device.
#[derive(Debug)]
pub(super) struct PendingFigures {
    pub(super) step: u64,
    pub(super) lr: f64,
    pub(super) samples: Vec<u64>,
    pub(super) corrupt_skipped: u64,
    /// Whether the last figure is the share of the processes that have asked to stop.
    pub(super) is_shared: bool,
    /// Total, denoising and alignment loss and gradient norm, `[4]`; followed by the figures of a
    /// trained autoencoder, and by the share of [`is_shared`](Self::is_shared). The copy is queued before the next step's work.
    pub(super) copy: Readback,
}

impl PendingFigures {
    /// Waits for the figures. The alignment loss is absent unless hidden tokens are `aligned`. Also returns whether a
    /// process has asked to stop.
    ///
    /// # Errors
    /// The loss or the gradient is not finite.
    pub(super) fn read(self, aligned: bool) -> Result<(StepMetrics, bool), TrainError> {
        let mut figures = Vec::<f32>::try_from(self.copy.wait()?.f_to_kind(Kind::Float)?)?;
        let asked_to_stop = self.is_shared && figures.pop().is_some_and(|share| share > 0.0);
        let (denoiser, autoencoder) = figures.split_at(4.min(figures.len()));
        let [loss, denoising, alignment, norm] = <[f32; 4]>::try_from(denoiser)
            .map_err(|_| TorchError::Libtorch("the figures of a step are incomplete".to_owned()))?
            .map(f64::from);
        let autoencoder: Figures = Figure::of_kind(FigureKind::Autoencoder)
            .zip(autoencoder.iter().copied().map(f64::from))
            .collect();
        let autoencoder_figures = [
            ("the autoencoder's loss", Figure::AutoencoderLoss),
            ("the discriminator's loss", Figure::DiscriminatorLoss),
            (
                "the norm of the autoencoder's gradient",
                Figure::AutoencoderGradNorm,
            ),
            (
                "the norm of the discriminator's gradient",
                Figure::DiscriminatorGradNorm,
            ),
        ];
        let autoencoder_figures = autoencoder_figures
            .into_iter()
            .filter_map(|(what, figure)| Some((what, autoencoder.get(figure)?)));
        let denoiser_figures = [
            ("the denoising loss", denoising),
            ("the alignment loss", alignment),
            ("the loss", loss),
            ("the norm of the gradient", norm),
        ];
        for (what, value) in denoiser_figures.into_iter().chain(autoencoder_figures) {
            if !value.is_finite() {
                return Err(TrainError::NotFinite {
                    what,
                    value,
                    step: self.step,
                    samples: self.samples,
                    last_good: LastGoodCheckpoint::Unknown,
                });
            }
        }
        let mut figures = autoencoder;
        figures.extend([
            (Figure::Loss, loss),
            (Figure::DenoisingLoss, denoising),
            (Figure::GradNorm, norm),
            (Figure::LearningRate, self.lr),
        ]);
        figures.set(Figure::AlignmentLoss, aligned.then_some(alignment));
        let skipped = self.corrupt_skipped;
        figures.set(
            Figure::CorruptSkipped,
            (skipped > 0).then_some(skipped as f64),
        );
        let metrics = StepMetrics {
            step: self.step,
            figures,
        };
        Ok((metrics, asked_to_stop))
    }
}
