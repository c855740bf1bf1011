//! Encoders without a file behind the [`Encoder`] trait: classic features, and networks with random weights.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use ndarray::{Array3, Array4};
use tch::{Device, Kind, TchError, Tensor};

use crate::classic::{
    ClassicError, DCT_DIM, HogConfig, PIXELS_DIM, SIFT_DIM, STRIDE, dct, hog, pixels, sift,
    sift_opencv,
};
use crate::encoder::check_images;
use crate::random::{Architecture, RandomNetwork};
use crate::{
    Encoder, EncoderError, EncoderSpec, Grid, Order, Preprocessing, Resize, Tokens, WeightDtype,
};

/// Side in pixels of the images at the study's base resolution.
const BASE_RESOLUTION: i64 = 256;

/// The preprocessing of networks with random weights: as for networks trained on ImageNet.
const NORMALISED: Preprocessing = Preprocessing {
    scale: true,
    order: Order::ResizeFirst,
    resize: Resize::Bilinear,
    antialias: false,
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
};

/// An encoder that is part of this crate.
#[derive(Debug)]
pub(crate) struct Native {
    spec: EncoderSpec,
    method: Method,
    /// The network of [`Method::Random`], once it is needed.
    network: OnceCell<RandomNetwork>,
}

/// How the tokens are computed.
#[derive(Debug, Clone, Copy)]
enum Method {
    /// On the CPU, whatever the device of the images.
    Classic(Classic),
    /// On the device of the images.
    Random(Architecture),
}

#[derive(Debug, Clone, Copy)]
enum Classic {
    Hog(HogConfig),
    Sift,
    SiftOpenCv,
    Pixels,
    Dct,
}

impl Method {
    /// Grid side for an input of `input_size` pixels, and width of a token.
    fn shape(self, input_size: i64) -> (usize, usize) {
        let patches = input_size as usize / STRIDE;
        match self {
            Self::Classic(Classic::Hog(config)) => (config.grid, config.dim),
            Self::Classic(Classic::Sift | Classic::SiftOpenCv) => (patches, SIFT_DIM),
            Self::Classic(Classic::Pixels) => (patches, PIXELS_DIM),
            Self::Classic(Classic::Dct) => (patches, DCT_DIM),
            Self::Random(architecture) => (patches, architecture.width() as usize),
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Classic(Classic::Hog(_)) => "dense histograms of oriented gradients",
            Self::Classic(Classic::Sift) => "dense SIFT with dominant orientation (kornia's)",
            Self::Classic(Classic::SiftOpenCv) => "dense SIFT (OpenCV's)",
            Self::Classic(Classic::Pixels) => "colours of each patch, 4 x 4 (control)",
            Self::Classic(Classic::Dct) => "lowest frequencies of each patch (control)",
            Self::Random(Architecture::Cnn) => "four convolutions with random weights (control)",
            Self::Random(Architecture::Vit) => {
                "vision transformer of four blocks with random weights (control)"
            }
        }
    }
}

impl Native {
    /// Names of the native encoders in their default configuration.
    pub(crate) const NAMES: [&'static str; 7] = [
        "hog",
        "sift",
        "siftopencv",
        "pixels",
        "dct",
        "random-cnn",
        "random-vit",
    ];

    /// Creates the native encoder of that name: one of [`Self::NAMES`], or `hog-g16_d128_ppc2_cb4`; `None` for any
    /// other name. Upstream's names have three parts, as in `hog-vit-g16_d128`; the middle one is ignored.
    pub(crate) fn named(name: &str, resolution: i64) -> Option<Result<Self, ClassicError>> {
        let parts: Vec<&str> = name.split('-').collect();
        let method = match parts[..] {
            ["random", "cnn"] => Method::Random(Architecture::Cnn),
            ["random", "vit"] => Method::Random(Architecture::Vit),
            ["hog"] => Method::Classic(Classic::Hog(HogConfig::default())),
            ["hog", config] | ["hog", _, config] => match config.parse() {
                Ok(config) => Method::Classic(Classic::Hog(config)),
                Err(error) => return Some(Err(error)),
            },
            ["sift"] | ["sift", _, _] => Method::Classic(Classic::Sift),
            ["siftopencv"] | ["siftopencv", _, _] => Method::Classic(Classic::SiftOpenCv),
            ["pixels"] => Method::Classic(Classic::Pixels),
            ["dct"] => Method::Classic(Classic::Dct),
            _ => return None,
        };
        Some(Ok(Self::new(name, method, resolution)))
    }

    fn new(name: &str, method: Method, resolution: i64) -> Self {
        let input_size = BASE_RESOLUTION * (resolution / BASE_RESOLUTION).max(1);
        let (side, width) = method.shape(input_size);
        let (family, preprocessing) = match method {
            Method::Classic(_) => ("classic", Preprocessing::RAW),
            Method::Random(_) => ("random weights", NORMALISED),
        };
        Self {
            spec: EncoderSpec {
                name: name.to_owned(),
                description: method.description().to_owned(),
                family: family.to_owned(),
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
                preprocessing,
                reference: None,
            },
            method,
            network: OnceCell::new(),
        }
    }

    /// The network with random weights, on `device`.
    fn network(
        &self,
        architecture: Architecture,
        device: Device,
    ) -> Result<&RandomNetwork, EncoderError> {
        if let Some(network) = self.network.get() {
            return Ok(network);
        }
        let network = RandomNetwork::new(architecture, self.spec.input_size, device)?;
        Ok(self.network.get_or_init(|| network))
    }
}

impl Classic {
    /// Patch tokens float32 `[B, T, D]` of images float32 `[B, 3, S, S]` in 0..=255.
    fn tokens(self, images: &Tensor) -> Result<Tensor, EncoderError> {
        let (batch, channels, height, width) = images.size4()?;
        let shape = [batch, channels, height, width].map(|side| side as usize);
        let pixels = Vec::<f32>::try_from(images.f_contiguous()?.f_flatten(0, -1)?)?;
        let shape_error = |error: ndarray::ShapeError| TchError::Shape(error.to_string());
        let images = Array4::from_shape_vec(shape, pixels).map_err(shape_error)?;
        let tokens = self.encode(&images)?;
        let (batch, count, width) = tokens.dim();
        let shape = [batch, count, width].map(|side| side as i64);
        let values: Vec<f32> = tokens.into_iter().collect();
        let patch = Tensor::f_from_slice(&values)?.f_view(shape)?;
        Ok(patch.f_to_kind(Kind::Float)?)
    }

    fn encode(self, images: &Array4<f32>) -> Result<Array3<f32>, ClassicError> {
        match self {
            Self::Hog(config) => hog(images.view(), &config),
            Self::Sift => sift(images.view()),
            // OpenCV's SIFT takes bytes. As in upstream, values are rounded half to even.
            Self::SiftOpenCv => {
                let bytes = images.mapv(|value| value.clamp(0.0, 255.0).round_ties_even() as u8);
                sift_opencv(bytes.view())
            }
            Self::Pixels => pixels(images.view()),
            Self::Dct => dct(images.view()),
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
        let EncoderSpec {
            preprocessing,
            input_size,
            ..
        } = &self.spec;
        let patch = match self.method {
            Method::Classic(classic) => {
                let input = preprocessing.apply(&images.f_to_device(Device::Cpu)?, *input_size)?;
                classic.tokens(&input)?.f_to_device(device)?
            }
            Method::Random(architecture) => {
                let network = self.network(architecture, device)?;
                let input = images.f_to_device(network.device())?;
                network
                    .forward(&preprocessing.apply(&input, *input_size)?)?
                    .f_to_device(device)?
            }
        };
        Ok(Tokens { patch, class: None })
    }
}
