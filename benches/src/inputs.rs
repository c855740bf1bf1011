//! Inputs of the benchmarks, generated from seeds, so that no data set is needed.

use std::f32::consts::TAU;
use std::fs;
use std::path::Path;

use jpeg_encoder::{ColorType, Encoder, EncodingError, SamplingFactor};
use ndarray::{Array2, Array3};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Height and width of the token grid.
pub const GRID: usize = 16;
/// Width of a token: that of ViT-B.
pub const WIDTH: usize = 768;

/// Plane waves over an image, as `[horizontal frequency, vertical frequency, phase]` in radians.
struct Waves(Vec<[f32; 3]>);

impl Waves {
    /// Random waves with between `low` and `high` periods along a side of length 1, uniform on a logarithmic
    /// scale.
    fn draw(rng: &mut ChaCha8Rng, count: usize, low: f32, high: f32) -> Self {
        let mut wave = || {
            let periods = low * (high / low).powf(rng.random_range(0.0..1.0));
            let direction = rng.random_range(0.0..TAU);
            let phase = rng.random_range(0.0..TAU);
            let [across, down] = [direction.cos(), direction.sin()].map(|x| x * periods * TAU);
            [across, down, phase]
        };
        Self((0..count).map(|_| wave()).collect())
    }

    /// The value of each wave at position `(x, y)`.
    fn values(&self, x: f32, y: f32) -> impl Iterator<Item = f32> {
        let value = move |&[across, down, phase]: &[f32; 3]| (across * x + down * y + phase).sin();
        self.0.iter().map(value)
    }
}

/// Tokens `[images, 256, 768]` that vary smoothly over the image, with added noise, and masks
/// `[images, 256]` of one disc per image.
pub fn tokens(images: usize, seed: u64) -> (Array3<f32>, Array2<bool>) {
    const WAVES: usize = 6;
    let side = GRID as f32;
    let mut tokens = Array3::zeros((images, GRID * GRID, WIDTH));
    let mut masks = Array2::from_elem((images, GRID * GRID), false);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for image in 0..images {
        let waves = Waves::draw(&mut rng, WAVES, 0.2, 3.0);
        let mixture = Array2::from_shape_fn((WIDTH, WAVES + 1), |_| rng.random_range(-1.0..1.0));
        let [x0, y0] = [(); 2].map(|()| rng.random_range(4.0..12.0_f32));
        let radius = rng.random_range(2.0..6.0_f32);
        for t in 0..GRID * GRID {
            let (x, y) = ((t % GRID) as f32, (t / GRID) as f32);
            masks[(image, t)] = (x - x0).hypot(y - y0) < radius;
            let values: Vec<f32> = waves.values(x / side, y / side).chain([1.0]).collect();
            for (d, mixture) in mixture.outer_iter().enumerate() {
                let smooth: f32 = mixture.iter().zip(&values).map(|(a, b)| a * b).sum();
                tokens[(image, t, d)] = smooth + rng.random_range(-0.5..0.5);
            }
        }
    }
    (tokens, masks)
}

/// Writes JPEGs like those of ImageNet into `folder`: 500 x 375 pixels in landscape or portrait format,
/// quality 90 to 95, colour at half the resolution, with smooth surfaces, fine structure and noise.
///
/// # Errors
/// The folder cannot be written.
pub fn write_jpegs(folder: &Path, count: usize, seed: u64) -> Result<(), EncodingError> {
    fs::create_dir_all(folder)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for index in 0..count {
        let (width, height) = match index % 4 {
            3 => (375_u16, 500_u16),
            _ => (500, 375),
        };
        let waves = Waves::draw(&mut rng, 12, 0.5, 120.0);
        let base: [f32; 3] = [(); 3].map(|()| rng.random_range(60.0..190.0));
        let colours: Vec<[f32; 3]> = waves
            .0
            .iter()
            .map(|&[across, down, _]| {
                // Fine structure has low contrast, as in photographs.
                let strength = 60.0 / (1.0 + across.hypot(down) / TAU).sqrt();
                [(); 3].map(|()| rng.random_range(-strength..strength))
            })
            .collect();
        let mut pixels = Vec::with_capacity(usize::from(width) * usize::from(height) * 3);
        for y in 0..height {
            for x in 0..width {
                let noise = rng.random_range(-8.0..8.0);
                let mut pixel = base.map(|value| value + noise);
                let position = (f32::from(x) / 500.0, f32::from(y) / 500.0);
                for (value, colour) in waves.values(position.0, position.1).zip(&colours) {
                    for (pixel, colour) in pixel.iter_mut().zip(colour) {
                        *pixel += value * colour;
                    }
                }
                pixels.extend(pixel.map(|value| value.clamp(0.0, 255.0) as u8));
            }
        }
        let path = folder.join(format!("{index:04}.jpg"));
        let mut encoder = Encoder::new_file(path, 90 + (index % 6) as u8)?;
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        encoder.encode(&pixels, width, height, ColorType::Rgb)?;
    }
    Ok(())
}
