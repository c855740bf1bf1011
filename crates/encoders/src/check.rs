//! Checks a loaded encoder against its declared properties and measures its speed.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use crate::repeatable::Outputs;
use crate::{Encoder, EncoderError, Precision, Reference, Tokens};

/// Options of [`check()`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CheckOptions {
    /// Device that the encoder runs on.
    pub device: Device,
    /// Precision that the encoder was loaded with.
    pub precision: Precision,
    /// Side of the images in pixels.
    pub resolution: i64,
    /// Batch size when the speed is measured.
    pub batch: i64,
    /// Duration of the speed measurement in seconds; at least one batch is run.
    pub seconds: f64,
}

/// Result of [`check()`].
#[derive(Debug, Clone, PartialEq)]
pub struct CheckReport {
    /// Shape of the patch tokens of one image, `[T, D]`.
    pub tokens: (usize, usize),
    /// Whether the encoder returns a class token.
    pub class_token: bool,
    /// Whether all tokens are finite.
    pub finite: bool,
    /// Whether a second run returned the same bits.
    pub deterministic: bool,
    /// Largest difference between the tokens of an image encoded alone and in a batch of five,
    /// relative to the largest value.
    pub batch_difference: f64,
    /// Largest difference from the values that Python recorded, relative to the largest of them;
    /// `None` if the sidecar has no reference values, or has them for images of another size.
    pub reference_difference: Option<f64>,
    /// Images per second, including preprocessing.
    pub images_per_s: f64,
    /// Largest difference allowed in this precision.
    pub tolerance: f64,
}

impl CheckReport {
    /// Describes each failed check; empty if all passed.
    pub fn flaws(&self) -> Vec<String> {
        let mut flaws = Vec::new();
        if !self.finite {
            flaws.push("tokens are NaN or infinite".to_owned());
        }
        if !self.deterministic {
            flaws.push("a second run returns different bits".to_owned());
        }
        for (what, difference) in [
            (
                "an image's tokens depend on its batch",
                Some(self.batch_difference),
            ),
            (
                "tokens differ from those of Python",
                self.reference_difference,
            ),
        ] {
            if let Some(difference) = difference
                && difference > self.tolerance
            {
                let allowed = self.tolerance;
                flaws.push(format!(
                    "{what}: by {difference:.1e}, {allowed:.0e} is allowed"
                ));
            }
        }
        flaws
    }
}

/// Runs an encoder on the reference images, alone and in batches of 2 and 5, and measures its speed.
/// A [`TorchScript`](crate::TorchScript) encoder also checks the shapes of its tokens in each run.
///
/// # Errors
/// The encoder fails, or returns tokens whose shape differs from the declared one.
pub fn check(encoder: &dyn Encoder, options: &CheckOptions) -> Result<CheckReport, EncoderError> {
    let spec = encoder.spec();
    let pair = Reference::images(options.resolution)?.f_to_device(options.device)?;
    let mirrored = pair.f_flip([-1])?;
    let five = Tensor::f_cat(&[&pair, &mirrored, &pair.f_narrow(0, 0, 1)?], 0)?;

    let tokens = encoder.encode(&pair)?;
    let again = encoder.encode(&pair)?;
    let together = encoder.encode(&five)?;
    let mut batch_difference: f64 = 0.0;
    for index in [0, 1] {
        let alone = encoder.encode(&pair.f_narrow(0, index, 1)?)?;
        let difference = alone.difference(&together.of_image(index)?)?;
        batch_difference = if difference.is_nan() {
            f64::INFINITY
        } else {
            batch_difference.max(difference)
        };
    }
    let reference_side = spec.resolution.unwrap_or(256);
    let reference_difference = match &spec.reference {
        Some(reference) if reference_side == options.resolution => {
            Some(reference.difference(&tokens)?)
        }
        _ => None,
    };
    Ok(CheckReport {
        tokens: (spec.grid.tokens(), spec.width),
        class_token: tokens.class.is_some(),
        finite: is_finite(&tokens)?,
        deterministic: tokens.patch == again.patch && tokens.class == again.class,
        batch_difference,
        reference_difference,
        images_per_s: images_per_s(encoder, &pair, options)?,
        tolerance: options.precision.tolerance(),
    })
}

fn is_finite(tokens: &Tokens) -> Result<bool, EncoderError> {
    for tensor in tokens.tensors() {
        if !bool::try_from(tensor.f_isfinite()?.f_all()?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn images_per_s(
    encoder: &dyn Encoder,
    pair: &Tensor,
    options: &CheckOptions,
) -> Result<f64, EncoderError> {
    let batch = options.batch.max(1);
    let images = pair
        .f_repeat([(batch + 1) / 2, 1, 1, 1])?
        .f_narrow(0, 0, batch)?;
    // Reading a value synchronises with the device.
    let run = || -> Result<(), EncoderError> {
        let sum = encoder.encode(&images)?.patch.f_sum(Kind::Float)?;
        Ok(f64::try_from(sum).map(|_| ())?)
    };
    run()?;
    let started = Instant::now();
    let mut batches = 0;
    loop {
        run()?;
        batches += 1;
        let seconds = started.elapsed().as_secs_f64();
        if seconds >= options.seconds {
            return Ok((batches * batch) as f64 / seconds);
        }
    }
}
