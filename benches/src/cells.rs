//! A trainer and a batch for it.

use data::Cursor;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, TorchError};
use training::{Config, DeviceBatch, EncoderShape, Inputs, Precision, TrainError, Trainer};

/// Width of the encoder's tokens, ViT-B's.
pub const WIDTH: i64 = 768;
/// Rows and columns of the encoder's tokens.
pub const GRID: (i64, i64) = (16, 16);

/// A trainer of `model` with iREPA, on images of `resolution` pixels without autoencoder.
///
/// # Errors
///
/// As [`Trainer::new`].
pub fn trainer(
    model: &str,
    resolution: u32,
    batch: i64,
    precision: Precision,
    fused: bool,
) -> Result<Trainer, TrainError> {
    let mut config = Config::default();
    config.model.name = model.to_owned();
    config.data.resolution = resolution;
    config.train.batch_size = batch as usize;
    config.train.precision = precision;
    config.train.fused = fused;
    config.alignment.encoder = "given".to_owned();
    let inputs = Inputs {
        device: Device::Cpu,
        num_classes: 1000,
        encoders: vec![EncoderShape {
            name: "given".to_owned(),
            width: WIDTH,
            grid: GRID,
        }],
        identity: String::new(),
    };
    Trainer::new(&config, inputs)
}

/// `count` images of noise.
///
/// # Errors
///
/// libtorch's.
pub fn batch(count: i64, resolution: u32) -> Result<DeviceBatch, TorchError> {
    let side = i64::from(resolution);
    let noise = Generator::new(Device::Cpu, 0)?.randn(&[count, 3, side, side], Kind::Float)?;
    let pixels: Tensor = noise * 60.0 + 128.0;
    Ok(DeviceBatch {
        images: pixels.clamp(0.0, 255.0).to_kind(Kind::Uint8),
        labels: Tensor::arange(count, (Kind::Int64, Device::Cpu)),
        moments: None,
        ids: (0..count as u64).collect(),
        flipped: vec![false; count as usize],
        cursor: Cursor::default(),
    })
}
