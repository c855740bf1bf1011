use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tch::Device;

use crate::native::Native;
use crate::torchscript::{self, TorchScript};
use crate::{
    Encoder, EncoderError, EncoderSpec, Inception, KnownEncoder, Precision, catalogue, known,
};

/// More folders with encoder files, separated as in `PATH`.
const FOLDERS: &str = "IREPA_ENCODERS";

/// Encoders by name: native ones, TorchScript files in some folders, and the [`catalogue`], whose
/// encoders may or may not be among those files.
///
/// The file of an encoder is `NAME.pt`; made for images of 512 pixels it is `NAME@512.pt`.
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
    /// Part of this crate.
    Native,
    /// A file on this machine.
    Present {
        /// The TorchScript file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Not on this machine.
    Missing {
        /// How to get it.
        hint: String,
    },
}

/// How to load an encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: Device,
    /// Side of the images in pixels. Below 512, encoders work at their base resolution.
    pub resolution: i64,
    /// What its weights are cast to. Native encoders always compute in float32.
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

/// What a sidecar says; `None` for one that says nothing of use, which loading the encoder names.
pub(crate) fn readable<T>(sidecar: Result<T, EncoderError>) -> Result<Option<T>, EncoderError> {
    match sidecar {
        Ok(spec) => Ok(Some(spec)),
        Err(error @ EncoderError::Io { .. }) => Err(error),
        Err(_) => Ok(None),
    }
}

impl Registry {
    /// Looks for files in `folders`, and where the environment's `IREPA_ENCODERS` says.
    pub fn new(folders: &[PathBuf]) -> Self {
        let extra = std::env::var_os(FOLDERS).unwrap_or_default();
        Self {
            folders: folders
                .iter()
                .cloned()
                .chain(std::env::split_paths(&extra).filter(|path| !path.as_os_str().is_empty()))
                .collect(),
        }
    }

    /// All names: native, the files that are there, the catalogue's.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Native::NAMES.map(str::to_owned).to_vec();
        names.extend(self.files());
        names.extend(catalogue().iter().map(|encoder| encoder.name.clone()));
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// Names of the TorchScript files, sorted.
    fn files(&self) -> BTreeSet<String> {
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
            // The network of FID lies in the same folder.
            .filter(|name| !Inception::NAMES.contains(&name.as_str()))
            .collect()
    }

    /// The folders that are looked in.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    pub(crate) fn find(&self, stem: &str) -> Option<PathBuf> {
        // A name is a file's name, never a path.
        if stem.contains(['/', '\\']) {
            return None;
        }
        self.folders
            .iter()
            .map(|folder| folder.join(format!("{stem}.pt")))
            .find(|path| path.is_file())
    }

    /// The file for images of `resolution` pixels. A file whose sidecar names no resolution takes
    /// any.
    fn find_for(&self, name: &str, resolution: i64) -> Option<PathBuf> {
        let base = self.find(name);
        match resolution / 256 {
            ..=1 => base,
            factor => self.find(&format!("{name}@{}", 256 * factor)).or_else(|| {
                base.filter(|path| match torchscript::read_sidecar(path) {
                    Ok(spec) => spec.resolution.is_none(),
                    // Loading it will say what is wrong.
                    Err(_) => true,
                })
            }),
        }
    }

    /// Whether an encoder can be loaded, for images of 256 pixels or fewer.
    ///
    /// # Errors
    /// Nothing has that name.
    pub fn status(&self, name: &str) -> Result<Status, EncoderError> {
        self.status_for(name, 256)
    }

    /// Whether an encoder can be loaded for images of `resolution` pixels.
    ///
    /// # Errors
    /// Nothing has that name, or the encoder does not take such images.
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
            let hint = hint(encoder, resolution);
            return Ok(Status::Missing { hint });
        }
        if self.find(name).is_some() {
            let hint = format!("only its file for images of 256 pixels is; trace {name}@512.pt");
            return Ok(Status::Missing { hint });
        }
        Err(self.unknown(name))
    }

    /// Checks that something has that name, here or not.
    ///
    /// # Errors
    /// Nothing has that name; the error has the nearest ones.
    pub fn check_name(&self, name: &str) -> Result<(), EncoderError> {
        self.status(name).map(|_| ())
    }

    /// What makes the encoder what it is: the checksum of its file for images of `resolution`
    /// pixels, or the version of this crate. `None` if it is not here or its sidecar does not
    /// describe one.
    ///
    /// # Errors
    /// [`EncoderError::Io`]: the sidecar is here and cannot be read.
    pub fn identity(&self, name: &str, resolution: i64) -> Result<Option<String>, EncoderError> {
        Ok(match self.status_for(name, resolution) {
            Ok(Status::Native) => Some(env!("CARGO_PKG_VERSION").to_owned()),
            Ok(Status::Present { path, .. }) => {
                readable(torchscript::read_sidecar(&path))?.and_then(|spec| spec.sha256)
            }
            Ok(Status::Missing { .. }) | Err(_) => None,
        })
    }

    /// What an encoder that is here declares for images of `resolution` pixels, without loading it.
    ///
    /// # Errors
    /// Nothing has that name, the encoder is not here, does not take such images, or its sidecar
    /// cannot be read.
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

    /// Loads an encoder and checks its output once.
    ///
    /// # Errors
    /// The name is unknown, the file is missing, or it is not what its sidecar says.
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
                "`name` is `{}`, the file is called `{name}`; they must agree",
                encoder.spec().name
            ),
        });
    }
    Ok(encoder)
}

/// Refuses what upstream refuses too, before anybody makes a file for it.
fn check_resolution(encoder: &KnownEncoder, resolution: i64) -> Result<(), EncoderError> {
    let made_for = 256 * (resolution / 256).max(1);
    if encoder.resolutions.contains(&made_for) {
        return Ok(());
    }
    Err(EncoderError::Resolution {
        name: encoder.name.clone(),
        resolution,
        allowed: encoder.resolutions.clone(),
    })
}

/// The command that makes the file.
fn hint(encoder: &KnownEncoder, resolution: i64) -> String {
    let made_for = 256 * (resolution / 256).max(1);
    let size = match made_for {
        256 => String::new(),
        _ => format!(" --resolution {made_for}"),
    };
    let gated = match encoder.gated {
        true => "; access must be asked for",
        false => "",
    };
    format!(
        "`cargo xtask export {}{size}` makes it (weights: {}; licence: {}{gated})",
        encoder.name, encoder.weights, encoder.licence
    )
}

/// The encoders that a set's name stands for: `paper27`, the study's, or `catalogue`, all that
/// the exporter knows.
pub fn named_set(name: &str) -> Option<Vec<&'static str>> {
    let only_study = match name {
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

/// The names in a comma-separated list, as upstream's `--enc-type` takes it.
pub fn split_names(list: &str) -> Vec<String> {
    list.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}
