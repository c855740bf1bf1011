//! Finds and loads encoders by name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tch::Device;

use crate::native::Native;
use crate::torchscript::{self, TorchScript};
use crate::{
    Encoder, EncoderError, EncoderSpec, KnownEncoder, Precision, catalogue, embedded, known,
};

/// Environment variable with additional folders of encoder files, separated as in `PATH`.
const FOLDERS_VARIABLE: &str = "IREPA_ENCODERS";

/// Folders of encoder files, relative to the folder of the project.
const PROJECT_FOLDERS: [&str; 2] = ["experiments/encoders", "pretrained"];

/// Names of the files of [`Inception`](crate::Inception), which are in the same folders but are not encoders.
pub(crate) const INCEPTION_NAMES: [&str; 2] = ["inception", "inception-pytorch-fid"];

/// Finds encoders by name: native encoders, TorchScript files in some folders, and the encoders of the
/// [`catalogue`] and of the set `embedded`, whose files may or may not be installed.
///
/// The file of an encoder is `NAME.pt`, or `NAME@512.pt` for images of 512 pixels.
///
/// ```
/// use encoders::{Registry, Status};
///
/// let registry = Registry::new(&[]);
/// assert!(matches!(registry.status("hog")?, Status::Native));
/// assert!(matches!(registry.status("dinov2-vit-b")?, Status::Missing { .. }));
/// let error = registry.status("dinov2-vit-x").unwrap_err().to_string();
/// assert!(error.contains("did you mean dinov2-vit-"));
/// # Ok::<(), encoders::EncoderError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Registry {
    folders: Vec<PathBuf>,
}

/// Whether an encoder can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The encoder is part of this crate.
    Native,
    /// The file is installed.
    Present {
        /// The TorchScript file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file is not installed.
    Missing {
        /// How to get the file.
        hint: String,
    },
}

/// Options for loading an encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// Device that the encoder runs on.
    pub device: Device,
    /// Side of the images in pixels. Below 512, encoders run at their base resolution.
    pub resolution: i64,
    /// Precision that the weights are cast to. Native encoders always compute in float32.
    pub precision: Precision,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            resolution: 256,
            precision: Precision::default(),
        }
    }
}

impl Registry {
    /// Creates a registry that searches `folders` and those in the environment variable `IREPA_ENCODERS`.
    pub fn new(folders: &[PathBuf]) -> Self {
        let extra = std::env::var_os(FOLDERS_VARIABLE).unwrap_or_default();
        Self {
            folders: folders
                .iter()
                .cloned()
                .chain(std::env::split_paths(&extra).filter(|path| !path.as_os_str().is_empty()))
                .collect(),
        }
    }

    /// The encoders of the project: a registry that searches `experiments/encoders` and `pretrained` in the working
    /// directory and in the ancestors of `file`, of the working directory and of the program, which `cargo` builds inside
    /// the project; and the folders in `IREPA_ENCODERS`.
    pub fn of_project(file: Option<&Path>) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).ok();
        let starts = [
            file.and_then(absolute),
            absolute(Path::new(".")),
            std::env::current_exe().ok(),
        ];
        let ancestors = starts.iter().flatten().flat_map(|path| path.ancestors());
        let mut folders: Vec<PathBuf> = PROJECT_FOLDERS.map(PathBuf::from).to_vec();
        let mut seen: Vec<PathBuf> = folders
            .iter()
            .filter_map(|path| path.canonicalize().ok())
            .collect();
        for folder in ancestors.flat_map(|path| PROJECT_FOLDERS.map(|folder| path.join(folder))) {
            let Ok(real) = folder.canonicalize() else {
                continue;
            };
            if !seen.contains(&real) {
                seen.push(real);
                folders.push(folder);
            }
        }
        Self::new(&folders)
    }

    /// All names: the set `embedded`, installed files, and encoders of the catalogue.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = embedded::names().map(str::to_owned).collect();
        names.extend(self.installed());
        names.extend(catalogue().iter().map(|encoder| encoder.name.clone()));
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// Sorted names of the encoders whose TorchScript files are installed.
    fn installed(&self) -> BTreeSet<String> {
        let entries = self
            .folders
            .iter()
            .filter_map(|folder| folder.read_dir().ok());
        entries
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "pt"))
            .filter_map(|path| {
                let stem = path.file_stem()?.to_str()?;
                Some(stem.split('@').next().unwrap_or(stem).to_owned())
            })
            // The network of FID is in the same folder.
            .filter(|name| !INCEPTION_NAMES.contains(&name.as_str()))
            .collect()
    }

    /// The folders that are searched.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    pub(crate) fn find(&self, stem: &str) -> Option<PathBuf> {
        // A name must be a file name, never a path.
        if stem.contains(['/', '\\']) {
            return None;
        }
        self.folders
            .iter()
            .map(|folder| folder.join(format!("{stem}.pt")))
            .find(|path| path.is_file())
    }

    /// Finds the file for images of `resolution` pixels. A file whose sidecar declares no resolution
    /// accepts any.
    fn find_for(&self, name: &str, resolution: i64) -> Option<PathBuf> {
        let base = self.find(name);
        match resolution / 256 {
            ..=1 => base,
            factor => self.find(&format!("{name}@{}", 256 * factor)).or_else(|| {
                base.filter(|path| match torchscript::read_sidecar(path) {
                    Ok(spec) => spec.resolution.is_none(),
                    // Loading the file reports what is wrong.
                    Err(_) => true,
                })
            }),
        }
    }

    /// Returns whether an encoder can be loaded for images of up to 256 pixels.
    ///
    /// # Errors
    /// No encoder has that name.
    pub fn status(&self, name: &str) -> Result<Status, EncoderError> {
        self.status_for(name, 256)
    }

    /// Returns whether an encoder can be loaded for images of `resolution` pixels.
    ///
    /// # Errors
    /// No encoder has that name, or the encoder does not support such images.
    pub fn status_for(&self, name: &str, resolution: i64) -> Result<Status, EncoderError> {
        if let Some(native) = Native::named(name, resolution) {
            native?;
            return Ok(Status::Native);
        }
        if let Some(path) = self.find_for(name, resolution) {
            let size = path.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            return Ok(Status::Present { path, size });
        }
        if let Some(encoder) = known(name) {
            check_resolution(encoder, resolution)?;
            let hint = export_hint(encoder, resolution);
            return Ok(Status::Missing { hint });
        }
        if let Some(encoder) = embedded::packaged(name) {
            return Ok(Status::Missing {
                hint: encoder.hint(),
            });
        }
        if self.find(name).is_some() {
            let hint =
                format!("only its file for images of 256 pixels is installed; trace {name}@512.pt");
            return Ok(Status::Missing { hint });
        }
        if embedded::is_in_repository(name) {
            let hint = "the repository has it in experiments/encoders".to_owned();
            return Ok(Status::Missing { hint });
        }
        Err(self.unknown(name))
    }

    /// Checks that an encoder of that name is known, installed or not.
    ///
    /// # Errors
    /// No encoder has that name; the error lists the most similar names.
    pub fn check_name(&self, name: &str) -> Result<(), EncoderError> {
        self.status(name).map(|_| ())
    }

    /// Resolves requested names, each once, for images of `resolution` pixels: of a named set such as `paper27`, only the
    /// installed encoders. Also returns the encoders of the sets that are not installed.
    ///
    /// # Errors
    /// A name is neither a set nor an encoder.
    pub fn select(
        &self,
        requested: &[String],
        resolution: u32,
    ) -> Result<(Vec<String>, Vec<String>), EncoderError> {
        let (mut names, mut missing): (Vec<String>, Vec<String>) = Default::default();
        for name in requested {
            let Some(set) = named_set(name) else {
                self.check_name(name)?;
                names.push(name.clone());
                continue;
            };
            for name in set {
                match self.status_for(name, i64::from(resolution)) {
                    Ok(Status::Missing { .. }) | Err(_) => missing.push(name.to_owned()),
                    Ok(_) => names.push(name.to_owned()),
                }
            }
        }
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        Ok((names, missing))
    }

    /// Returns the identity of an encoder: the checksum of its file for images of `resolution`
    /// pixels, or for a native encoder the version of this crate. `None` if the encoder is not
    /// installed or its sidecar is invalid.
    ///
    /// # Errors
    /// [`EncoderError::Io`] if the sidecar exists but cannot be read.
    pub fn identity(&self, name: &str, resolution: i64) -> Result<Option<String>, EncoderError> {
        Ok(match self.status_for(name, resolution) {
            Ok(Status::Native) => Some(env!("CARGO_PKG_VERSION").to_owned()),
            Ok(Status::Present { path, .. }) => {
                torchscript::ignore_invalid(torchscript::read_sidecar(&path))?
                    .and_then(|spec| spec.sha256)
            }
            Ok(Status::Missing { .. }) | Err(_) => None,
        })
    }

    /// Returns the declared properties of an installed encoder for images of `resolution` pixels,
    /// without loading it.
    ///
    /// # Errors
    /// No encoder has that name, the encoder is not installed or does not support such images, or its
    /// sidecar cannot be read.
    pub fn spec(&self, name: &str, resolution: i64) -> Result<EncoderSpec, EncoderError> {
        if let Some(native) = Native::named(name, resolution) {
            return Ok(native?.spec().clone());
        }
        match self.status_for(name, resolution)? {
            Status::Present { path, .. } => torchscript::read_sidecar(&path),
            Status::Missing { hint } => Err(self.missing(name, hint)),
            Status::Native => Err(self.unknown(name)),
        }
    }

    fn missing(&self, name: &str, hint: String) -> EncoderError {
        EncoderError::Missing {
            name: name.to_owned(),
            hint,
            searched: self.folders.clone(),
        }
    }

    fn unknown(&self, name: &str) -> EncoderError {
        EncoderError::Unknown {
            name: name.to_owned(),
            nearest: self.nearest(name),
        }
    }

    /// Loads an encoder; see [`TorchScript::load`] for the checks of a file.
    ///
    /// # Errors
    /// The name is unknown, the file is not installed, or it does not match its sidecar.
    pub fn load(
        &self,
        name: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Encoder>, EncoderError> {
        if let Some(native) = Native::named(name, options.resolution) {
            return Ok(Box::new(native?));
        }
        match self.status_for(name, options.resolution)? {
            Status::Present { path, .. } => Ok(Box::new(load_file(&path, name, options)?)),
            Status::Missing { hint } => Err(self.missing(name, hint)),
            Status::Native => Err(self.unknown(name)),
        }
    }

    fn nearest(&self, name: &str) -> Vec<String> {
        let mut scored: Vec<(f64, String)> = self
            .names()
            .into_iter()
            .map(|known| {
                (
                    strsim::jaro_winkler(&name.to_lowercase(), &known.to_lowercase()),
                    known,
                )
            })
            .filter(|(score, _)| *score > 0.8)
            .collect();
        scored.sort_by(|left, right| right.0.total_cmp(&left.0));
        scored.into_iter().take(3).map(|(_, known)| known).collect()
    }
}

fn load_file(path: &Path, name: &str, options: &LoadOptions) -> Result<TorchScript, EncoderError> {
    let encoder = TorchScript::load(path, options.device, options.precision)?;
    if encoder.spec().name != name {
        return Err(EncoderError::Sidecar {
            path: path.with_extension("toml"),
            message: format!(
                "`name` is `{}` but the file is called `{name}`; they must agree",
                encoder.spec().name
            ),
        });
    }
    Ok(encoder)
}

/// Refuses resolutions that upstream refuses too, so that nobody exports a file for them.
fn check_resolution(encoder: &KnownEncoder, resolution: i64) -> Result<(), EncoderError> {
    let export_resolution = 256 * (resolution / 256).max(1);
    if encoder.resolutions.contains(&export_resolution) {
        return Ok(());
    }
    Err(EncoderError::Resolution {
        name: encoder.name.clone(),
        resolution,
        allowed: encoder.resolutions.clone(),
    })
}

/// Describes the command that creates the file.
fn export_hint(encoder: &KnownEncoder, resolution: i64) -> String {
    let export_resolution = 256 * (resolution / 256).max(1);
    let size = match export_resolution {
        256 => String::new(),
        _ => format!(" --resolution {export_resolution}"),
    };
    let gated = match encoder.gated {
        true => "; access must be requested",
        false => "",
    };
    format!(
        "`cargo xtask export {}{size}` creates it (weights: {}; licence: {}{gated})",
        encoder.name, encoder.weights, encoder.licence
    )
}

/// The encoders of a named set: `embedded`, those that need no model hub; `paper27`, those of the study;
/// or `catalogue`, all that the exporter supports. `None` for another name.
pub fn named_set(name: &str) -> Option<Vec<&'static str>> {
    let only_study = match name {
        "embedded" => return Some(embedded::names().collect()),
        "paper27" => true,
        "catalogue" => false,
        _ => return None,
    };
    let chosen = catalogue()
        .iter()
        .filter(|encoder| encoder.study || !only_study)
        .map(|encoder| encoder.name.as_str());
    Some(chosen.collect())
}

/// Splits a comma-separated list of names, as in upstream's `--enc-type`.
pub fn split_names(list: &str) -> Vec<String> {
    list.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}
