//! Encoders in TorchScript files.

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use files::Checksum;
use serde::de::DeserializeOwned;
use tch::{CModule, Device, IValue, Kind, TchError, Tensor};

use crate::chunks::chunks;
use crate::encoder::check_images;
use crate::repeatable;
use crate::{Encoder, EncoderError, EncoderSpec, Precision, Reference, Resize, Tokens};

/// An encoder in a TorchScript file `NAME.pt` with a sidecar `NAME.toml`, which contains its
/// [`EncoderSpec`].
///
/// The module takes the preprocessed images, float32 `[B, 3, S, S]`, and returns patch tokens
/// `[B, T, D]` or a pair of patch tokens and class token `[B, D]`. In another [`Precision`] its
/// input and output have that dtype; [`Encoder::encode`] always returns float32.
#[derive(Debug)]
pub struct TorchScript {
    spec: EncoderSpec,
    module: CModule,
    device: Device,
    precision: Precision,
    /// Whether the module receives its images with the channels last in memory.
    is_channels_last: bool,
}

impl TorchScript {
    /// Loads `path` to `device`, casts its weights to `precision`, and encodes two test images, so that a file
    /// that does not match its sidecar is found before training starts. The first load of a file in a process
    /// also encodes the images a second time, and one of them alone.
    ///
    /// # Errors
    /// The file or its sidecar is missing or damaged, or they do not belong together; the module cannot run in
    /// `precision`; its tokens do not have the declared shape, are not finite, differ in a second pass, or
    /// depend on the other image of the batch; its code refers to a fixed device.
    pub fn load(path: &Path, device: Device, precision: Precision) -> Result<Self, EncoderError> {
        let spec = read_sidecar(path)?;
        if let Some(expected) = &spec.sha256 {
            check_sha256(path, expected)?;
        }
        repeatable::check_devices(path)?;
        let load_error = |error: tch::TchError| EncoderError::NotTorchScript {
            path: path.to_owned(),
            message: first_line(&error.to_string()),
        };
        let mut module = CModule::load_on_device(path, device).map_err(load_error)?;
        module.f_set_eval().map_err(load_error)?;
        if precision != Precision::from(spec.dtype) {
            cast(&mut module, device, precision, path)?;
        }
        let mut encoder = Self {
            spec,
            module,
            device,
            precision,
            is_channels_last: device == Device::Cpu,
        };
        match encoder.check() {
            // A traced `view` of a feature map may only work for one layout.
            Err(EncoderError::Output { .. }) if encoder.is_channels_last => {
                encoder.is_channels_last = false;
                encoder.check()?;
            }
            checked => checked?,
        }
        Ok(encoder)
    }

    /// Encodes two test images and checks the tokens: a gradient, so that no value is constant, and its mirror
    /// image at half the brightness, so that batch statistics differ from those of one image.
    fn check(&self) -> Result<(), EncoderError> {
        let side = self.spec.input_size;
        let ramp = Tensor::f_arange(side, (Kind::Float, self.device))?
            .f_mul_scalar(255.0 / side as f64)?
            .f_expand([3, side, side], false)?;
        let mirrored = ramp.f_flip([-1])?.f_transpose(-1, -2)?.f_mul_scalar(0.5)?;
        let images = Tensor::f_stack(&[ramp, mirrored], 0)?.f_to_kind(Kind::Uint8)?;
        let tokens = self.encode(&images)?;
        for (what, tensor) in [
            ("the patch tokens", Some(&tokens.patch)),
            ("the class token", tokens.class.as_ref()),
        ] {
            let Some(tensor) = tensor else { continue };
            if !bool::try_from(tensor.f_isfinite()?.f_all()?)? {
                return Err(EncoderError::NotFinite {
                    name: self.spec.name.clone(),
                    what,
                });
            }
        }
        let identity = self.spec.sha256.as_deref().unwrap_or_default();
        let key = (identity, self.device, self.precision);
        repeatable::check_repeatable(&self.spec.name, key, &images, &tokens, |images| {
            self.encode(images)
        })
    }

    fn output_error(&self, found: String) -> EncoderError {
        EncoderError::Output {
            name: self.spec.name.clone(),
            found,
        }
    }
}

impl Encoder for TorchScript {
    fn spec(&self) -> &EncoderSpec {
        &self.spec
    }

    fn encode(&self, images: &Tensor) -> Result<Tokens, EncoderError> {
        let (batch, height, width) = check_images(images)?;
        let side = self.spec.input_size;
        if self.spec.preprocessing.resize == Resize::None && (height, width) != (side, side) {
            return Err(EncoderError::Size {
                name: self.spec.name.clone(),
                wanted: side,
                height,
                width,
            });
        }
        let _no_grad = tch::no_grad_guard();
        let images = images.f_to_device(self.device)?;
        let chunks = chunks(&images).map(|chunk| {
            let chunk = chunk?;
            let tokens = self.encode_chunk(&chunk.images)?;
            let class = tokens.class.as_ref();
            Ok(Tokens {
                patch: chunk.without_padding(&tokens.patch)?,
                class: class.map(|c| chunk.without_padding(c)).transpose()?,
            })
        });
        let tokens = join(chunks.collect::<Result<_, EncoderError>>()?)?;
        self.spec.check(&tokens, batch)?;
        Ok(tokens)
    }
}

/// Concatenates the tokens of consecutive chunks to one batch.
fn join(mut chunks: Vec<Tokens>) -> Result<Tokens, EncoderError> {
    if chunks.len() == 1
        && let Some(only) = chunks.pop()
    {
        return Ok(only);
    }
    let patch: Vec<&Tensor> = chunks.iter().map(|chunk| &chunk.patch).collect();
    let class: Option<Vec<&Tensor>> = chunks.iter().map(|chunk| chunk.class.as_ref()).collect();
    Ok(Tokens {
        patch: Tensor::f_cat(&patch, 0)?,
        class: class.map(|class| Tensor::f_cat(&class, 0)).transpose()?,
    })
}

impl TorchScript {
    fn encode_chunk(&self, images: &Tensor) -> Result<Tokens, EncoderError> {
        let mut input = self
            .spec
            .preprocessing
            .apply(images, self.spec.input_size)?
            .f_to_kind(self.precision.kind())?;
        if self.is_channels_last {
            input = channels_last(&input)?;
        }
        disable_graph_optimisation();
        let output = self
            .module
            .forward_is(&[IValue::Tensor(input)])
            .map_err(|error| {
                runtime_failure(&self.spec.name, &error)
                    .unwrap_or_else(|| self.output_error(first_line(&error.to_string())))
            })?;
        let float = |tensor: Tensor| tensor.f_to_kind(Kind::Float);
        let tokens = match output {
            IValue::Tensor(patch) => Tokens {
                patch: float(patch)?,
                class: None,
            },
            IValue::Tuple(parts) => match <[IValue; 2]>::try_from(parts) {
                Ok([IValue::Tensor(patch), IValue::Tensor(class)]) => Tokens {
                    patch: float(patch)?,
                    class: Some(float(class)?),
                },
                _ => return Err(self.output_error("the output is another tuple".to_owned())),
            },
            _ => return Err(self.output_error("the output is not a tensor".to_owned())),
        };
        Ok(tokens)
    }
}

/// The same images `[B, C, H, W]` with the channels last in memory. On the CPU, convolutions, normalisations and
/// activations of such images take a quarter to a half less time.
fn channels_last(images: &Tensor) -> Result<Tensor, TchError> {
    images
        .f_permute([0, 2, 3, 1])?
        .f_contiguous()?
        .f_permute([0, 3, 1, 2])
}

/// Casts all weights. `tch` has no fallible form of this call and the device can run out of memory, so a panic
/// is converted to an error.
fn cast(
    module: &mut CModule,
    device: Device,
    precision: Precision,
    path: &Path,
) -> Result<(), EncoderError> {
    let cast = AssertUnwindSafe(|| module.to(device, precision.kind(), false));
    // On failure the caller drops the module, so that a partly cast module is never used.
    panic::catch_unwind(cast).map_err(|cause| {
        let text = cause
            .downcast_ref::<String>()
            .map_or("no reason given", String::as_str);
        EncoderError::Cast {
            path: path.to_owned(),
            precision,
            message: first_line(text),
        }
    })
}

/// Refuses a file whose checksum differs from the one in its sidecar.
pub(crate) fn check_sha256(path: &Path, expected: &str) -> Result<(), EncoderError> {
    let found = Checksum::of_file(path).map_err(|source| EncoderError::Io {
        path: path.to_owned(),
        source,
    })?;
    let found = found.sha256;
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    if let Some(what) = files::describe_foreign_file(path) {
        return Err(EncoderError::NotTorchScript {
            path: path.to_owned(),
            message: format!("it is {what}"),
        });
    }
    Err(EncoderError::Checksum {
        path: path.to_owned(),
        found,
        expected: expected.to_owned(),
    })
}

/// Disables the graph optimisation of libtorch for the current thread. libtorch's profiling executor rewrites a
/// module after its first runs, which changes the bits of its output, so that a resumed run would see other
/// tokens than an uninterrupted one. The setting is per thread, so call this before every run of a module.
pub(crate) fn disable_graph_optimisation() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.replace(true)
        && let Err(error) = tch::jit::f_set_graph_executor_optimize(false)
    {
        tracing::warn!("TorchScript outputs may differ in their last bits between runs: {error}");
    }
}

/// Turns an invalid sidecar into `None`; loading the encoder reports what is wrong with it. A sidecar that cannot
/// be read stays an error.
pub(crate) fn ignore_invalid<T>(
    sidecar: Result<T, EncoderError>,
) -> Result<Option<T>, EncoderError> {
    match sidecar {
        Ok(spec) => Ok(Some(spec)),
        Err(error @ EncoderError::Io { .. }) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Reads the sidecar of the TorchScript file `path` as any type.
pub(crate) fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, EncoderError> {
    let sidecar = path.with_extension("toml");
    let text = match files::read_text(&sidecar) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {
            return Err(EncoderError::NoSidecar {
                file: path.to_owned(),
                sidecar,
            });
        }
        Err(source) => {
            return Err(EncoderError::Io {
                path: sidecar,
                source,
            });
        }
    };
    toml::from_str(&text).map_err(|error| invalid(&sidecar, error.to_string()))
}

/// Reads and validates the sidecar of the encoder in the TorchScript file `path`.
pub(crate) fn read_sidecar(path: &Path) -> Result<EncoderSpec, EncoderError> {
    let sidecar = path.with_extension("toml");
    let spec: EncoderSpec = read_toml(path)?;
    if spec.sha256.is_none() {
        return Err(invalid(
            &sidecar,
            "`sha256` of the .pt file is missing".to_owned(),
        ));
    }
    if spec.grid.tokens() == 0 || spec.width == 0 || !(1..=8192).contains(&spec.input_size) {
        return Err(invalid(
            &sidecar,
            "`grid` and `width` must be at least 1, `input_size` 1 to 8192".to_owned(),
        ));
    }
    if let Some(side) = spec.resolution
        && let Some(&declared) = spec.input_sizes.get(&side.to_string())
        && declared != spec.input_size
    {
        let message = format!(
            "`input_size` is {}, but `input_sizes` has {declared} for `resolution` {side}",
            spec.input_size
        );
        return Err(invalid(&sidecar, message));
    }
    if let Some(flaw) = spec.reference.as_ref().and_then(Reference::flaw) {
        return Err(invalid(&sidecar, flaw.to_owned()));
    }
    Ok(spec)
}

fn invalid(path: &Path, message: String) -> EncoderError {
    EncoderError::Sidecar {
        path: PathBuf::from(path),
        message: message.trim_end().to_owned(),
    }
}

/// Converts an error of a network that failed while it ran. `None` for any other error, such as one of the call's
/// arguments.
pub(crate) fn runtime_failure(name: &str, error: &TchError) -> Option<EncoderError> {
    let text = error.to_string();
    if !text.contains("TorchScript interpreter") {
        return None;
    }
    // The reason is below the traceback.
    let mut lines = text.lines().rev().map(str::trim);
    let reason = lines.find_map(|line| Some(line.split_once("RuntimeError: ")?.1));
    Some(EncoderError::Failed {
        name: name.to_owned(),
        reason: reason.map_or_else(|| first_line(&text), str::to_owned),
    })
}

/// First non-empty line of a message of libtorch, which appends a C++ backtrace.
pub(crate) fn first_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("no reason given")
        .to_owned()
}
