use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tch::Device;

use crate::native::Native;
use crate::paper27::PAPER27;
use crate::torchscript::{self, TorchScript};
use crate::{Encoder, EncoderError};

/// More folders with encoder files, separated as in `PATH`.
const FOLDERS: &str = "IREPA_ENCODERS";

/// Encoders by name: native ones, TorchScript files in some folders, and the study's, which may
/// or may not be among those files.
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
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            resolution: 256,
        }
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

    /// All names: native, the files that are there, the study's.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Native::NAMES.map(str::to_owned).to_vec();
        names.extend(self.files());
        names.extend(PAPER27.iter().map(|encoder| encoder.name.to_owned()));
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
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect()
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        // A name is a file's name, never a path.
        if name.contains(['/', '\\']) {
            return None;
        }
        self.folders
            .iter()
            .map(|folder| folder.join(format!("{name}.pt")))
            .find(|path| path.is_file())
    }

    /// Whether an encoder can be loaded.
    ///
    /// # Errors
    /// Nothing has that name.
    pub fn status(&self, name: &str) -> Result<Status, EncoderError> {
        if let Some(native) = Native::named(name, 256) {
            native?;
            return Ok(Status::Native);
        }
        if let Some(path) = self.find(name) {
            let size = path.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            return Ok(Status::Present { path, size });
        }
        if PAPER27.iter().any(|encoder| encoder.name == name) {
            return Ok(Status::Missing { hint: hint(name) });
        }
        Err(EncoderError::Unknown {
            name: name.to_owned(),
            nearest: self.nearest(name),
        })
    }

    /// Checks that something has that name, here or not.
    ///
    /// # Errors
    /// Nothing has that name; the error has the nearest ones.
    pub fn check_name(&self, name: &str) -> Result<(), EncoderError> {
        self.status(name).map(|_| ())
    }

    /// What makes the encoder what it is: the checksum of its file, or the version of this crate.
    /// `None` if it is not here or its sidecar cannot be read.
    pub fn identity(&self, name: &str) -> Option<String> {
        match self.status(name).ok()? {
            Status::Native => Some(env!("CARGO_PKG_VERSION").to_owned()),
            Status::Present { path, .. } => torchscript::read_sidecar(&path).ok()?.sha256,
            Status::Missing { .. } => None,
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
        match self.status(name)? {
            Status::Present { path, .. } => Ok(Box::new(load_file(&path, name, options)?)),
            Status::Missing { hint } => Err(EncoderError::Missing {
                name: name.to_owned(),
                hint,
                searched: self.folders.clone(),
            }),
            Status::Native => Err(EncoderError::Unknown {
                name: name.to_owned(),
                nearest: Vec::new(),
            }),
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
    let encoder = TorchScript::load(path, options.device)?;
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

fn hint(name: &str) -> String {
    format!(
        "trace it to pretrained/{name}.pt with a sidecar pretrained/{name}.toml, as the \
         documentation of the encoders crate shows (cargo doc -p encoders --open)"
    )
}

/// The encoders that a set's name stands for: `paper27`.
pub fn named_set(name: &str) -> Option<Vec<&'static str>> {
    (name == "paper27").then(|| PAPER27.iter().map(|encoder| encoder.name).collect())
}

/// The names in a comma-separated list, as upstream's `--enc-type` takes it.
pub fn split_names(list: &str) -> Vec<String> {
    list.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}
