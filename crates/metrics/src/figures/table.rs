//! The table of figures.

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};

/// Which values of a figure are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Lower values.
    Lower,
    /// Higher values.
    Higher,
    /// The figure describes a run and is not optimised.
    Neither,
}

/// What a figure measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A step of the denoiser. In the results, it is the mean over the last steps.
    Training,
    /// A step of the autoencoder and the discriminator in REPA-E.
    Autoencoder,
    /// The quality of samples.
    Quality,
    /// The spatial structure of an encoder's patch tokens. It is known before training.
    Spatial,
    /// The accuracy of a classifier on an encoder's patch tokens.
    Probe,
    /// A number of things since the start of training. It is written without decimals.
    Count,
    /// Time and memory.
    Cost,
}

/// A file that figures are written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// `metrics.jsonl` and the TensorBoard event file: values of single steps.
    Log,
    /// `results.csv`, `result.json` and the report: one value per cell.
    Results,
}

/// What the table says about a figure.
struct Entry {
    name: &'static str,
    title: &'static str,
    better: Better,
    kind: Kind,
    files: &'static [File],
}

macro_rules! table {
    ($(
        $(#[$doc:meta])+
        $figure:ident: $name:literal, $title:literal, $better:ident, $kind:ident, [$($file:ident),*];
    )+) => {
        /// A figure: a number that is measured of a training step, a cell, an encoder or a set of samples.
        ///
        /// The order is that of the table, in which all files list figures.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Figure {
            $($(#[$doc])+ $figure,)+
        }

        const ENTRIES: &[(Figure, Entry)] = &[$((
            Figure::$figure,
            Entry {
                name: $name,
                title: $title,
                better: Better::$better,
                kind: Kind::$kind,
                files: &[$(File::$file),*],
            },
        )),+];

        impl Figure {
            /// All figures in the order of the table.
            pub const ALL: [Figure; ENTRIES.len()] = [$(Figure::$figure),+];
        }
    };
}

// One line per figure: its name in files and TensorBoard, its title in the report, which values are better, its kind,
// and the files that it is written to. A figure without files is printed by `runner evaluate` only. The values come from
// `training` (`trainer/figures.rs`, `repa_e.rs`) for Training and Autoencoder, from `evaluation` (`quality.rs`, `spatial.rs`,
// `probe.rs`) for Quality, Spatial and Probe, and from `sweep` (`active_cell.rs`) for Cost.
table! {
    /// Denoising loss plus weighted alignment loss.
    Loss: "loss", "loss", Lower, Training, [Log];
    /// Mean of the objective's loss over the batch.
    DenoisingLoss: "denoising_loss", "denoising loss", Lower, Training, [Log, Results];
    /// Unweighted alignment loss, the mean over terms. No direction is better, because its level depends
    /// on the encoder.
    AlignmentLoss: "alignment_loss", "alignment loss", Neither, Training, [Log, Results];
    /// 2-norm of the gradient before clipping.
    GradNorm: "grad_norm", "norm of the gradient", Neither, Training, [Log];
    /// Learning rate of the step.
    LearningRate: "lr", "learning rate", Neither, Training, [Log];

    /// The autoencoder's total loss, including alignment.
    AutoencoderLoss: "autoencoder_loss", "autoencoder's loss", Lower, Autoencoder, [Log];
    /// Reconstruction error, weighted as a term of [`Figure::AutoencoderLoss`].
    ReconstructionLoss: "reconstruction_loss", "reconstruction loss", Lower, Autoencoder, [Log];
    /// LPIPS, weighted as a term of [`Figure::AutoencoderLoss`].
    PerceptualLoss: "perceptual_loss", "perceptual loss", Lower, Autoencoder, [Log];
    /// KL divergence of the posterior, weighted as a term of [`Figure::AutoencoderLoss`].
    KlLoss: "kl_loss", "KL loss", Lower, Autoencoder, [Log];
    /// Negative mean logit of the reconstructions, not weighted.
    GanLoss: "gan_loss", "adversarial loss", Lower, Autoencoder, [Log];
    /// Alignment loss of the denoiser's hidden tokens in the autoencoder's pass, not weighted.
    AutoencoderAlignmentLoss: "autoencoder_alignment_loss", "autoencoder's alignment loss", Neither, Autoencoder, [Log];
    /// The discriminator's loss.
    DiscriminatorLoss: "discriminator_loss", "discriminator's loss", Neither, Autoencoder, [Log];
    /// Mean logit of the images.
    LogitsReal: "logits_real", "logit of images", Neither, Autoencoder, [Log];
    /// Mean logit of the reconstructions.
    LogitsFake: "logits_fake", "logit of reconstructions", Neither, Autoencoder, [Log];
    /// 2-norm of the autoencoder's gradient before clipping.
    AutoencoderGradNorm: "autoencoder_grad_norm", "norm of the autoencoder's gradient", Neither, Autoencoder, [Log];
    /// 2-norm of the discriminator's gradient before clipping.
    DiscriminatorGradNorm: "discriminator_grad_norm", "norm of the discriminator's gradient", Neither, Autoencoder, [Log];

    /// Frechet distance of Inception's pooled features.
    Fid: "fid", "FID", Lower, Quality, [Log, Results];
    /// Frechet distance of Inception's spatial features.
    Sfid: "sfid", "sFID", Lower, Quality, [Log, Results];
    /// Inception score, the mean over parts of the samples.
    InceptionScore: "inception_score", "Inception score", Higher, Quality, [Log, Results];
    /// Share of samples inside the manifold of real images, 0 to 1.
    Precision: "precision", "precision", Higher, Quality, [Log, Results];
    /// Share of real images inside the manifold of samples, 0 to 1.
    Recall: "recall", "recall", Higher, Quality, [Log, Results];
    /// Mean number of balls of real images that contain a sample, divided by the number of neighbours.
    Density: "density", "density", Higher, Quality, [];
    /// Share of balls of real images that contain a sample, 0 to 1.
    Coverage: "coverage", "coverage", Higher, Quality, [];
    /// Kernel Inception distance, the mean over subsets.
    Kid: "kid", "KID", Lower, Quality, [Log, Results];
    /// Frechet distance of the mean tokens of an encoder, `evaluate.fd_encoder`.
    Fd: "fd", "Frechet distance", Lower, Quality, [Log, Results];

    /// Local against distant similarity of the encoder's tokens ([`lds`](crate::spatial::lds)).
    Lds: "lds", "LDS, local against distant similarity", Higher, Spatial, [Results];
    /// Correlation decay slope of the encoder's tokens ([`cds`](crate::spatial::cds)).
    Cds: "cds", "CDS, correlation decay slope", Higher, Spatial, [Results];
    /// Semantic-region self-similarity of the encoder's tokens ([`srss`](crate::spatial::srss)).
    Srss: "srss", "SRSS, semantic-region self-similarity", Higher, Spatial, [Results];
    /// Root-mean-square spatial contrast of the encoder's tokens ([`rmsc`](crate::spatial::rmsc)).
    Rmsc: "rmsc", "RMSC, RMS spatial contrast", Higher, Spatial, [Results];
    /// Accuracy of a linear probe on the encoder's mean patch tokens, 0 to 1.
    LinearProbe: "linear_probe", "linear probe accuracy", Higher, Probe, [Results];

    /// Number of corrupt samples that the data stream has skipped. Absent if it is 0.
    CorruptSkipped: "corrupt_skipped", "corrupt samples skipped", Neither, Count, [Log];
    /// Optimiser steps per second: since the previous line of the log, and over the whole run in the results.
    StepsPerSecond: "steps_per_s", "steps per second", Higher, Cost, [Log, Results];
    /// Peak memory in MiB while the cell was trained and measured, including its encoder: of the allocator on CUDA, of
    /// the process on the CPU. Absent if the process ran other cells at the same time.
    PeakMemory: "peak_memory_mib", "peak memory, MiB", Lower, Cost, [Results];
}

impl Figure {
    fn entry(self) -> &'static Entry {
        // The table has one entry per variant, in the order of the variants.
        &ENTRIES[self as usize].1
    }

    /// The figure with this [name](Figure::name).
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|figure| figure.name() == name)
    }

    /// The name in files, and the tag in TensorBoard.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The name on axes, in tables and in sentences.
    pub fn title(self) -> &'static str {
        self.entry().title
    }

    /// Which values are better.
    pub fn better(self) -> Better {
        self.entry().better
    }

    /// Returns whether `left` is better than `right`.
    pub fn improves(self, left: f64, right: f64) -> bool {
        match self.better() {
            Better::Lower => left < right,
            Better::Higher => left > right,
            Better::Neither => false,
        }
    }

    /// What the figure measures.
    pub fn kind(self) -> Kind {
        self.entry().kind
    }

    /// The figures of a kind in the order of the table.
    pub fn of_kind(kind: Kind) -> impl Iterator<Item = Self> + Clone {
        let all = Self::ALL.into_iter();
        all.filter(move |figure| figure.kind() == kind)
    }

    /// Returns whether the figure is written to `file`.
    pub fn is_in(self, file: File) -> bool {
        self.entry().files.contains(&file)
    }

    /// The figures that are written to `file`, in the order of the table.
    pub fn in_file(file: File) -> impl Iterator<Item = Self> + Clone {
        let all = Self::ALL.into_iter();
        all.filter(move |figure| figure.is_in(file))
    }
}

/// The [name](Figure::name).
impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| de::Error::custom(format!("unknown figure `{name}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_in_the_order_of_the_figures_and_names_are_unique() {
        for (index, figure) in Figure::ALL.into_iter().enumerate() {
            assert_eq!((figure as usize, ENTRIES[index].0), (index, figure));
            assert_eq!(Figure::named(figure.name()), Some(figure));
            assert!(!figure.title().is_empty());
        }
        assert_eq!(Figure::named("step"), None);
    }

    #[test]
    fn only_a_better_value_improves() {
        assert!(Figure::Fid.improves(1.0, 2.0) && !Figure::Fid.improves(2.0, 1.0));
        assert!(Figure::Recall.improves(2.0, 1.0) && !Figure::Recall.improves(1.0, 1.0));
        assert!(!Figure::AlignmentLoss.improves(1.0, 2.0));
    }
}
