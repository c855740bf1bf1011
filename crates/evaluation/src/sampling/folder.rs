//! Reads and writes a folder of samples: `000000.png` and so on, and `samples.json`, which records their settings.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use files::{LeftoverScope, Lock};
use ndarray::{Array3, ArrayView3};
use rayon::prelude::*;
use serde_json::Value;

use super::{Recipe, SamplingError};
use report::image_grid::{self, Compression};

const RECIPE: &str = "samples.json";
const LOCK: &str = ".lock";

/// A folder that this process draws into. It is locked until it is dropped.
#[derive(Debug)]
pub struct SampleFolder {
    path: PathBuf,
    _lock: Lock,
}

impl SampleFolder {
    /// Opens or creates the folder `path` for images of `recipe`. With `fresh`, existing images and their recipe are
    /// removed first.
    ///
    /// # Errors
    /// The folder contains images of another recipe or other files, another process has locked it, or it cannot be
    /// written.
    pub fn open(path: &Path, recipe: &Recipe, fresh: bool) -> Result<Self, SamplingError> {
        let occupied = |reason: String| SamplingError::Occupied {
            path: path.to_owned(),
            reason,
        };
        let wanted = serde_json::to_value(recipe)
            .map_err(io::Error::other)
            .map_err(SamplingError::io("describe", path))?;
        let file = path.join(RECIPE);
        if !file.exists() && !fresh {
            let names = names(path)?;
            if let Some(name) = names.iter().find(|name| !name.starts_with('.')) {
                return Err(occupied(format!(
                    "it is not a folder of samples: it contains {name} but no {RECIPE}"
                )));
            }
        }
        fs::create_dir_all(path).map_err(SamplingError::io("create", path))?;
        let lock = Lock::take(&path.join(LOCK))?;
        files::remove_leftovers(path, LeftoverScope::EndedOrUnknown)
            .map_err(SamplingError::io("clean up", path))?;
        for name in names(path)? {
            if fresh && (index_of(&name).is_some() || name == RECIPE) {
                let path = path.join(name);
                fs::remove_file(&path).map_err(SamplingError::io("remove", &path))?;
            }
        }
        if file.exists() {
            let text = fs::read(&file).map_err(SamplingError::io("read", &file))?;
            let found: Value = serde_json::from_slice(&text)
                .map_err(|error| occupied(format!("{RECIPE} cannot be read: {error}")))?;
            if let Some((key, found, wanted)) = difference("", &found, &wanted) {
                return Err(occupied(format!(
                    "its images have other settings: {key} is {found} there and {wanted} here"
                )));
            }
        } else {
            files::write(&file, |writer| {
                serde_json::to_writer_pretty(&mut *writer, &wanted)?;
                writer.write_all(b"\n")
            })
            .map_err(SamplingError::io("write", &file))?;
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of an image.
    pub fn file(&self, index: u64) -> PathBuf {
        self.path.join(format!("{index:06}.png"))
    }

    /// Returns the indices of the first `count` images that are missing, in ascending order. A file that cannot be decoded
    /// counts as missing.
    ///
    /// # Errors
    /// A file exists but cannot be read.
    pub fn missing(&self, count: u64) -> Result<Vec<u64>, SamplingError> {
        let is_missing = |index: &u64| {
            let path = self.file(*index);
            let file = match fs::read(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(error) => return Err(SamplingError::io("read", &path)(error)),
            };
            Ok(image::load_from_memory(&file).is_err())
        };
        let missing: Vec<(u64, bool)> = (0..count)
            .into_par_iter()
            .map(|index| Ok((index, is_missing(&index)?)))
            .collect::<Result<_, SamplingError>>()?;
        let missing = missing.into_iter().filter(|(_, missing)| *missing);
        Ok(missing.map(|(index, _)| index).collect())
    }

    /// Returns the number of images beyond the first `count`.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn beyond(&self, count: u64) -> Result<u64, SamplingError> {
        let indices = names(&self.path)?;
        let beyond = indices.iter().filter_map(|name| index_of(name));
        Ok(beyond.filter(|index| *index >= count).count() as u64)
    }

    /// Writes an image `[3, H, W]`. The file appears complete or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, index: u64, image: ArrayView3<'_, u8>) -> Result<(), SamplingError> {
        let pixels = image.permuted_axes([1, 2, 0]);
        let (height, width, _) = pixels.dim();
        let pixels: Vec<u8> = pixels.iter().copied().collect();
        // The sides are those of a denoiser's images, which fit into 32 bits.
        let size = (width as u32, height as u32);
        image_grid::write_png(&self.file(index), &pixels, size, Compression::Fast)?;
        Ok(())
    }

    /// Reads an image `[H, W, 3]`.
    ///
    /// # Errors
    /// The file is missing or damaged.
    pub fn read(&self, index: u64) -> Result<Array3<u8>, SamplingError> {
        let path = self.file(index);
        let broken = |reason: String| SamplingError::Broken {
            path: path.clone(),
            reason,
        };
        let picture = image::open(&path).map_err(|error| broken(error.to_string()))?;
        let picture = picture.into_rgb8();
        let shape = (picture.height() as usize, picture.width() as usize, 3);
        Array3::from_shape_vec(shape, picture.into_raw()).map_err(|error| broken(error.to_string()))
    }

    /// Removes the folder and its contents.
    ///
    /// # Errors
    /// The folder cannot be removed.
    pub fn remove(self) -> Result<(), SamplingError> {
        fs::remove_dir_all(&self.path).map_err(SamplingError::io("remove", &self.path))
    }
}

/// The index in the name of an image file; `None` for other files.
fn index_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".png")?;
    let plain = digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// The sorted names of a folder's entries; empty if the folder does not exist.
fn names(path: &Path) -> Result<Vec<String>, SamplingError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SamplingError::io("list", path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(SamplingError::io("list", path))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// The first key whose values differ, with both values.
fn difference(key: &str, found: &Value, wanted: &Value) -> Option<(String, String, String)> {
    let (Value::Object(left), Value::Object(right)) = (found, wanted) else {
        return (found != wanted).then(|| (key.to_owned(), found.to_string(), wanted.to_string()));
    };
    let keys = right
        .keys()
        .chain(left.keys().filter(|key| !right.contains_key(*key)));
    keys.into_iter().find_map(|name| {
        let inner = match key {
            "" => name.clone(),
            _ => format!("{key}.{name}"),
        };
        let of = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
        difference(&inner, &of(left), &of(right))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_key_that_differs_is_named() {
        let found = json!({"weights": "a", "sampler": {"num_steps": 3, "method": "heun"}});
        let wanted = json!({"weights": "a", "sampler": {"num_steps": 4, "method": "heun"}});
        let (key, found, wanted) = difference("", &found, &wanted).unwrap();
        assert_eq!((&*key, &*found, &*wanted), ("sampler.num_steps", "3", "4"));
        assert_eq!(difference("", &json!({"a": 1}), &json!({"a": 1})), None);
        let (key, ..) = difference("", &json!({"a": 1}), &json!({})).unwrap();
        assert_eq!(key, "a");
    }

    #[test]
    fn only_images_have_an_index() {
        assert_eq!(index_of("000012.png"), Some(12));
        assert_eq!(index_of("1234567.png"), Some(1_234_567));
        for other in ["12.png", "grid.png", "000012.jpg", "0000+1.png"] {
            assert_eq!(index_of(other), None, "{other}");
        }
    }
}
