//! The classic features behind the [`Encoder`] trait.

use std::collections::BTreeMap;

use ndarray::{Array3, Array4};
use tch::{Device, Kind, TchError, Tensor};

use crate::classic::{ClassicError, HogConfig, SIFT_DIM, SIFT_STRIDE, hog, sift, sift_opencv};
use crate::encoder::check_images;
use crate::{Encoder, EncoderError, EncoderSpec, Grid, Preprocessing, Tokens, WeightDtype};

/// Side in pixels of the images at the study's base resolution.
const BASE_RESOLUTION: i64 = 256;

/// HOG or SIFT, computed on the CPU by this crate, whatever the device of the images.
#[derive(Debug)]
pub(crate) struct Native {
    spec: EncoderSpec,
    method: Method,
}

#[derive(Debug, Clone)]
enum Method {
    Hog(HogConfig),
    Sift,
    SiftOpenCv,
}

impl Native {
    /// Names of the native encoders in their default configuration.
    pub(crate) const NAMES: [&'static str; 3] = ["hog", "sift", "siftopencv"];

    /// Creates the native encoder of that name: `hog`, `hog-g16_d128_ppc2_cb4`, `sift` or
    /// `siftopencv`; `None` for any other name. Upstream's names have three parts, as in
    /// `hog-vit-g16_d128`; the middle one is ignored.
    pub(crate) fn named(name: &str, resolution: i64) -> Option<Result<Self, ClassicError>> {
        let parts: Vec<&str> = name.split('-').collect();
        let method = match parts[..] {
            ["hog"] => Method::Hog(HogConfig::default()),
            ["hog", config] | ["hog", _, config] => match config.parse() {
                Ok(config) => Method::Hog(config),
                Err(error) => return Some(Err(error)),
            },
            ["sift"] | ["sift", _, _] => Method::Sift,
            ["siftopencv"] | ["siftopencv", _, _] => Method::SiftOpenCv,
            _ => return None,
        };
        Some(Ok(Self::new(name, method, resolution)))
    }

    fn new(name: &str, method: Method, resolution: i64) -> Self {
        let input_size = BASE_RESOLUTION * (resolution / BASE_RESOLUTION).max(1);
        let sift_side = input_size as usize / SIFT_STRIDE;
        let (side, width, description) = match &method {
            Method::Hog(config) => (
                config.grid,
                config.dim,
                "dense histograms of oriented gradients",
            ),
            Method::Sift => (
                sift_side,
                SIFT_DIM,
                "dense SIFT with dominant orientation (kornia's)",
            ),
            Method::SiftOpenCv => (sift_side, SIFT_DIM, "dense SIFT (OpenCV's)"),
        };
        Self {
            spec: EncoderSpec {
                name: name.to_owned(),
                description: description.to_owned(),
                family: "classic".to_owned(),
                weights: "none".to_owned(),
                licence: "MIT OR Apache-2.0".to_owned(),
                gated: false,
                sha256: None,
                grid: Grid {
                    height: side,
                    width: side,
                },
                width,
                class_token: false,
                prefix_tokens: 0,
                params_m: None,
                depth: None,
                dtype: WeightDtype::Float32,
                resolution: None,
                input_size,
                input_sizes: BTreeMap::new(),
                preprocessing: Preprocessing::RAW,
                reference: None,
            },
            method,
        }
    }

    fn tokens(&self, images: &Array4<f32>) -> Result<Array3<f32>, ClassicError> {
        match &self.method {
            Method::Hog(config) => hog(images.view(), config),
            Method::Sift => sift(images.view()),
            // OpenCV's SIFT takes bytes. As in upstream, values are rounded half to even.
            Method::SiftOpenCv => {
                let bytes = images.mapv(|value| value.clamp(0.0, 255.0).round_ties_even() as u8);
                sift_opencv(bytes.view())
            }
        }
    }
}

impl Encoder for Native {
    fn spec(&self) -> &EncoderSpec {
        &self.spec
    }

    fn encode(&self, images: &Tensor) -> Result<Tokens, EncoderError> {
        check_images(images)?;
        let device = images.device();
        let _no_grad = tch::no_grad_guard();
        let size = self.spec.input_size;
        let input = self
            .spec
            .preprocessing
            .apply(&images.f_to_device(Device::Cpu)?, size)?;
        let (batch, channels, height, width) = input.size4()?;
        let shape = [batch, channels, height, width].map(|side| side as usize);
        let pixels = Vec::<f32>::try_from(input.f_contiguous()?.f_flatten(0, -1)?)?;
        let shape_error = |error: ndarray::ShapeError| TchError::Shape(error.to_string());
        let pixels = Array4::from_shape_vec(shape, pixels).map_err(shape_error)?;
        let tokens = self.tokens(&pixels)?;
        let (batch, count, width) = tokens.dim();
        let shape = [batch, count, width].map(|side| side as i64);
        let values: Vec<f32> = tokens.into_iter().collect();
        let patch = Tensor::f_from_slice(&values)?
            .f_view(shape)?
            .f_to_kind(Kind::Float)?
            .f_to_device(device)?;
        Ok(Tokens { patch, class: None })
    }
}
