//! Trainers for benchmarks, with batches and encoder tokens for them.

use data::Cursor;
use diffusion::objective::x_prediction::XPrediction;
use diffusion::samplers::Method;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, TorchError};
use training::{
    Config, DeviceBatch, EncoderShape, Inputs, Objective, TrainError, TrainPrecision, Trainer,
};

/// Width of the encoder's tokens: that of ViT-B.
pub const WIDTH: i64 = 768;
/// Rows and columns of the encoder's tokens.
pub const GRID: (i64, i64) = (16, 16);

/// A training setup: a model with iREPA on images, without autoencoder.
#[derive(Debug, Clone)]
pub struct TrainerSpec {
    /// Name of the model.
    pub model: &'static str,
    /// Height and width of the images, in pixels.
    pub resolution: u32,
    /// Number of images per step.
    pub batch: i64,
    /// Precision of matrix products.
    pub precision: TrainPrecision,
    /// The setting `train.fused`.
    pub fused: bool,
    /// The setting `train.cuda_graphs`.
    pub graphs: bool,
    /// The device to train on.
    pub device: Device,
}

impl Default for TrainerSpec {
    /// SiT-S/2 on 8 images of 32 pixels (256 tokens), in float32 on the CPU.
    fn default() -> Self {
        Self {
            model: "SiT-S/2",
            resolution: 32,
            batch: 8,
            precision: TrainPrecision::Fp32,
            fused: true,
            graphs: false,
            device: Device::Cpu,
        }
    }
}

impl TrainerSpec {
    /// The trainer, which takes precomputed encoder tokens.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn trainer(&self) -> Result<Trainer, TrainError> {
        let mut config = Config::default();
        config.model.name = self.model.to_owned();
        if self.model.starts_with("JiT") {
            config.objective = Objective::XPrediction(XPrediction::default());
            config.sample.sampler.method = Method::Heun;
        }
        config.data.resolution = self.resolution;
        config.train.batch_size = self.batch as usize;
        config.train.precision = self.precision;
        config.train.fused = self.fused;
        config.train.cuda_graphs = self.graphs;
        config.alignment.encoder = "precomputed".to_owned();
        let inputs = Inputs {
            device: self.device,
            num_classes: 1000,
            encoders: vec![EncoderShape {
                name: "precomputed".to_owned(),
                width: WIDTH,
                grid: GRID,
            }],
            identity: String::new(),
        };
        Trainer::new(&config, inputs)
    }

    /// A batch of noise images for the trainer.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn images(&self) -> Result<DeviceBatch, TorchError> {
        let (count, side) = (self.batch, i64::from(self.resolution));
        let noise = Generator::new(self.device, 0)?.randn(&[count, 3, side, side], Kind::Float)?;
        let pixels: Tensor = noise * 60.0 + 128.0;
        Ok(DeviceBatch {
            images: pixels.clamp(0.0, 255.0).to_kind(Kind::Uint8),
            labels: Tensor::arange(count, (Kind::Int64, self.device)).remainder(1000),
            moments: None,
            ids: (0..count as u64).collect(),
            flipped: vec![false; count as usize],
            cursor: Cursor::default(),
        })
    }

    /// Noise in place of an encoder's tokens for the batch, `[B, T, D]`.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn tokens(&self) -> Result<Tensor, TorchError> {
        let size = [self.batch, GRID.0 * GRID.1, WIDTH];
        Generator::new(self.device, 2)?.randn(&size, Kind::Float)
    }
}
