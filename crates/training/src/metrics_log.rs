//! `metrics.jsonl`: one JSON object per logged step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Number of optimiser steps done, counted from 1.
    pub step: u64,
    /// Denoising loss plus weighted alignment loss.
    pub loss: f64,
    /// Mean of the objective's loss over the batch.
    pub denoising_loss: f64,
    /// Unweighted alignment loss, the mean over encoders and losses. Absent without alignment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_loss: Option<f64>,
    /// 2-norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Figures of the autoencoder and the discriminator. Absent if the autoencoder is not trained.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub autoencoder: Option<AutoencoderMetrics>,
    /// Quality of samples of the averaged weights after the step. Empty if `evaluate.every` requires no
    /// evaluation at the step.
    #[serde(flatten)]
    pub quality: Quality,
    /// Number of corrupt samples that the data stream has skipped up to this step. Absent if it is 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub corrupt_skipped: u64,
    /// Optimiser steps per second since the previous line. Absent if it is not logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_per_s: Option<f64>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The metrics of samples. A metric that was not computed is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Frechet distance on Inception's pooled features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fid: Option<f64>,
    /// Frechet distance on Inception's spatial features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sfid: Option<f64>,
    /// Inception score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inception_score: Option<f64>,
    /// Share of samples inside the manifold of real images, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<f64>,
    /// Share of real images inside the manifold of samples, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall: Option<f64>,
    /// Kernel Inception distance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<f64>,
    /// Frechet distance on the features of `evaluate.fd_encoder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<f64>,
}

impl Quality {
    /// Returns the names and values.
    fn figures(&self) -> [(&'static str, Option<f64>); 7] {
        [
            ("fid", self.fid),
            ("sfid", self.sfid),
            ("inception_score", self.inception_score),
            ("precision", self.precision),
            ("recall", self.recall),
            ("kid", self.kid),
            ("fd", self.fd),
        ]
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// REPA-E's figures of autoencoder and discriminator. The weighted losses are terms of
/// `autoencoder_loss`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AutoencoderMetrics {
    /// The autoencoder's total loss, including alignment.
    pub autoencoder_loss: f64,
    /// Reconstruction error, weighted.
    pub reconstruction_loss: f64,
    /// LPIPS, weighted.
    pub perceptual_loss: f64,
    /// KL divergence of the posterior, weighted.
    pub kl_loss: f64,
    /// Negative mean logit of the reconstructions, not weighted.
    pub gan_loss: f64,
    /// Alignment loss of the denoiser's hidden tokens in the autoencoder's pass, not weighted.
    pub autoencoder_alignment_loss: f64,
    /// The discriminator's loss.
    pub discriminator_loss: f64,
    /// Mean logit of the images.
    pub logits_real: f64,
    /// Mean logit of the reconstructions.
    pub logits_fake: f64,
    /// 2-norm of the autoencoder's gradient before clipping.
    pub autoencoder_grad_norm: f64,
    /// 2-norm of the discriminator's gradient before clipping.
    pub discriminator_grad_norm: f64,
}

impl AutoencoderMetrics {
    /// Creates the metrics from `figures`, which are in the order of the fields.
    pub(crate) fn new(figures: [f64; 11]) -> Self {
        let [
            autoencoder_loss,
            reconstruction_loss,
            perceptual_loss,
            kl_loss,
            gan_loss,
            autoencoder_alignment_loss,
            discriminator_loss,
            logits_real,
            logits_fake,
            autoencoder_grad_norm,
            discriminator_grad_norm,
        ] = figures;
        Self {
            autoencoder_loss,
            reconstruction_loss,
            perceptual_loss,
            kl_loss,
            gan_loss,
            autoencoder_alignment_loss,
            discriminator_loss,
            logits_real,
            logits_fake,
            autoencoder_grad_norm,
            discriminator_grad_norm,
        }
    }

    /// Returns the names and values.
    fn figures(&self) -> [(&'static str, f64); 11] {
        [
            ("autoencoder_loss", self.autoencoder_loss),
            ("reconstruction_loss", self.reconstruction_loss),
            ("perceptual_loss", self.perceptual_loss),
            ("kl_loss", self.kl_loss),
            ("gan_loss", self.gan_loss),
            (
                "autoencoder_alignment_loss",
                self.autoencoder_alignment_loss,
            ),
            ("discriminator_loss", self.discriminator_loss),
            ("logits_real", self.logits_real),
            ("logits_fake", self.logits_fake),
            ("autoencoder_grad_norm", self.autoencoder_grad_norm),
            ("discriminator_grad_norm", self.discriminator_grad_norm),
        ]
    }
}

impl StepMetrics {
    /// Returns the names and values, without the step and absent figures.
    pub fn figures(&self) -> Vec<(&'static str, f64)> {
        let denoiser_figures = [
            ("loss", Some(self.loss)),
            ("denoising_loss", Some(self.denoising_loss)),
            ("alignment_loss", self.alignment_loss),
            ("grad_norm", Some(self.grad_norm)),
            ("lr", Some(self.lr)),
            (
                "corrupt_skipped",
                Some(self.corrupt_skipped as f64).filter(|count| *count > 0.0),
            ),
            ("steps_per_s", self.steps_per_s),
        ];
        let autoencoder_figures = self
            .autoencoder
            .iter()
            .flat_map(AutoencoderMetrics::figures);
        denoiser_figures
            .into_iter()
            .chain(self.quality.figures())
            .filter_map(|(name, figure)| Some((name, figure?)))
            .chain(autoencoder_figures)
            .collect()
    }
}

/// Appends to `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Opens the log for a run that resumes after `step`. Later lines, and a truncated line of a
    /// killed run, are removed, since their steps will be run again.
    ///
    /// # Errors
    /// The file cannot be read or written; the error names it.
    pub fn open(path: &Path, step: u64) -> io::Result<Self> {
        let named = |error| named(path, error);
        let kept: String = match fs::read_to_string(path) {
            Ok(text) => text
                .split_inclusive('\n')
                .filter(|line| {
                    line.ends_with('\n')
                        && serde_json::from_str::<StepMetrics>(line)
                            .is_ok_and(|metrics| metrics.step <= step)
                })
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(named(error)),
        };
        Ok(Self {
            file: rewrite(path, &kept).map_err(named)?,
            path: path.to_owned(),
        })
    }

    /// Replaces the last line, or removes it if `metrics` is `None`.
    ///
    /// # Errors
    /// The file cannot be read or written; the error names it.
    pub fn replace_last(&mut self, metrics: Option<&StepMetrics>) -> io::Result<()> {
        let mut text = fs::read_to_string(&self.path).map_err(|error| named(&self.path, error))?;
        let lines = text.trim_end_matches('\n');
        text.truncate(lines.rfind('\n').map_or(0, |end| end + 1));
        if let Some(metrics) = metrics {
            text.push_str(&serde_json::to_string(metrics)?);
            text.push('\n');
        }
        self.file = rewrite(&self.path, &text).map_err(|error| named(&self.path, error))?;
        Ok(())
    }

    /// Appends one line in a single write.
    ///
    /// # Errors
    /// The file cannot be written; the error names it.
    pub fn append(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        let mut line = serde_json::to_string(metrics)?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(|error| named(&self.path, error))
    }

    /// Waits until all lines are on disk. Call it before saving a checkpoint, so that the log has the
    /// lines of all steps before the checkpoint.
    ///
    /// # Errors
    /// The file cannot be synced; the error names it.
    pub fn sync(&self) -> io::Result<()> {
        self.file
            .sync_all()
            .map_err(|error| named(&self.path, error))
    }

    /// Reads a log and skips incomplete lines.
    ///
    /// # Errors
    /// The file cannot be read; the error names it.
    pub fn read(path: &Path) -> io::Result<Vec<StepMetrics>> {
        let text = fs::read_to_string(path).map_err(|error| named(path, error))?;
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }
}

/// Replaces the log at `path` by `text`, and returns it opened for appending.
fn rewrite(path: &Path, text: &str) -> io::Result<File> {
    // The file is replaced atomically, so that a crash cannot lose the kept lines.
    files::write(path, |file| file.write_all(text.as_bytes()))?;
    OpenOptions::new().append(true).open(path)
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
