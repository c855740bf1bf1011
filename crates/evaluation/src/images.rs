//! Reads sets of images to measure: a folder, a data set, or an `.npz` of samples.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{Background, Dataset, OpenOptions, evenly_spaced};
use image::ImageReader;
use metrics::npz::SampleReader;
use ndarray::Array4;
use tch::{Device, TchError, Tensor};

use crate::error::EvaluationError;
use crate::subset::{BATCH, limit};

/// The overview that `runner sample` writes next to its images. It is not a sample.
const OVERVIEW: &str = "grid.png";

/// How the images of a folder are read.
#[derive(Debug, Clone, Default)]
pub struct ImageOptions {
    /// The split of a data set.
    pub split: Option<String>,
    /// Side in pixels to which images are cropped and resized as in ADM; `None` leaves them unchanged.
    pub resolution: Option<u32>,
    /// The background of transparent pixels.
    pub background: Background,
}

/// Images of one size, in a fixed order.
pub struct ImageSet {
    path: PathBuf,
    source: Source,
    count: usize,
    size: (u32, u32),
    identity: String,
}

enum Source {
    Npz,
    Dataset {
        dataset: Arc<dyn Dataset>,
        indices: Vec<u64>,
        background: Background,
    },
}

impl ImageSet {
    /// Opens the images at `path`: a file ending in `.npz` with `arr_0` u8 `[N, H, W, 3]`, a folder of image
    /// files, or a data set.
    ///
    /// # Errors
    /// The path does not exist or has no images, a file's header cannot be read, or the images do not have the required
    /// size: in a folder or data set, images must be square and of one size unless
    /// [`resolution`](ImageOptions::resolution) is set; in an `.npz`, they must already have that resolution.
    pub fn open(path: &Path, options: &ImageOptions) -> Result<Self, EvaluationError> {
        match is_npz(path) {
            true => Self::of_npz(path, options),
            false => Self::of_dataset(path, options),
        }
    }

    fn of_npz(path: &Path, options: &ImageOptions) -> Result<Self, EvaluationError> {
        let reader = SampleReader::open(path)?;
        let [count, height, width] = reader.shape();
        let size = (side(height), side(width));
        if let Some(wanted) = options.resolution
            && size != (wanted, wanted)
        {
            return Err(EvaluationError::Size {
                path: path.to_owned(),
                found: size,
                expected: (wanted, wanted),
                way_out: "images of an .npz are measured unchanged: omit --resolution, or sample at that \
                          size",
            });
        }
        Ok(Self {
            path: path.to_owned(),
            source: Source::Npz,
            count,
            size,
            identity: format!("{:08x}", reader.checksum()),
        })
    }

    fn of_dataset(path: &Path, options: &ImageOptions) -> Result<Self, EvaluationError> {
        let open = OpenOptions {
            split: options.split.clone(),
            unlabelled: true,
            ..OpenOptions::default()
        };
        let dataset = data::open(path, &open)?;
        let indices = samples_of(dataset.as_ref());
        let size = match options.resolution {
            Some(wanted) => (wanted, wanted),
            None => common_size(dataset.as_ref(), &indices)?,
        };
        if size.0 != size.1 {
            return Err(EvaluationError::Size {
                path: path.to_owned(),
                found: size,
                expected: (size.0.min(size.1), size.0.min(size.1)),
                way_out: "images of a folder must be square; crop them with --resolution",
            });
        }
        let set = Self::of_images(dataset, indices, size.0, options.background);
        match set.is_empty() {
            true => Err(EvaluationError::NoImages {
                path: path.to_owned(),
            }),
            false => Ok(Self {
                path: path.to_owned(),
                ..set
            }),
        }
    }

    /// The images at `indices` of a data set, cropped and resized to squares of `side` pixels.
    fn of_images(
        dataset: Arc<dyn Dataset>,
        indices: Vec<u64>,
        side: u32,
        background: Background,
    ) -> Self {
        let background_name = format!("{background:?}")
            .to_lowercase()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "");
        Self {
            path: PathBuf::from(dataset.name()),
            count: indices.len(),
            size: (side, side),
            identity: format!("{}-{background_name}", dataset.fingerprint()),
            source: Source::Dataset {
                dataset,
                indices,
                background,
            },
        }
    }

    /// `count` evenly spaced images of a data set, as [`of_images`](Self::of_images); all images if `count` is 0.
    pub(crate) fn spaced(
        dataset: Arc<dyn Dataset>,
        count: usize,
        side: u32,
        background: Background,
    ) -> Self {
        let (count, total) = (limit(&dataset, count), dataset.len());
        let set = Self::of_images(dataset, evenly_spaced(count, total), side, background);
        match count == total {
            true => set,
            false => Self {
                identity: format!("{}-{count}", set.identity),
                ..set
            },
        }
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether the set has no images, which [`open`](Self::open) rejects.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Height and width of the images in pixels.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// The path of the images, or the name of their data set.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Identifies the images in a file name by fingerprint, background and size.
    pub fn identity(&self) -> String {
        format!("{}-{}x{}", self.identity, self.size.0, self.size.1)
    }

    /// Returns the images in order, in batches u8 `[B, 3, H, W]`.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn batches(&self) -> Result<Batches<'_>, EvaluationError> {
        let reader = match self.source {
            Source::Npz => Some(SampleReader::open(&self.path)?),
            Source::Dataset { .. } => None,
        };
        Ok(Batches {
            set: self,
            reader,
            position: 0,
        })
    }
}

/// The batches of an [`ImageSet`].
pub struct Batches<'a> {
    set: &'a ImageSet,
    reader: Option<SampleReader>,
    position: usize,
}

impl Batches<'_> {
    fn read(&mut self) -> Result<Tensor, EvaluationError> {
        let count = BATCH.min(self.set.count - self.position);
        let chunk = self.position..self.position + count;
        self.position += count;
        match (&self.set.source, &mut self.reader) {
            (
                Source::Dataset {
                    dataset,
                    indices,
                    background,
                },
                _,
            ) => {
                let side = self.set.size.0;
                let batch = data::read_batch(dataset.as_ref(), &indices[chunk], side, *background)?;
                let shape = [count as i64, 3, i64::from(side), i64::from(side)];
                Ok(Tensor::f_from_slice(&batch.images)?.f_view(shape)?)
            }
            (Source::Npz, Some(reader)) => Ok(channels_first(&reader.next_batch(count)?)?),
            (Source::Npz, None) => Err(EvaluationError::NoImages {
                path: self.set.path.clone(),
            }),
        }
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Tensor, EvaluationError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.position < self.set.count).then(|| self.read())
    }
}

/// Returns whether a path names an `.npz` file.
pub fn is_npz(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("npz"))
}

/// Converts images `[B, H, W, 3]` to a tensor `[B, 3, H, W]`.
fn channels_first(images: &Array4<u8>) -> Result<Tensor, TchError> {
    let (count, height, width, channels) = images.dim();
    let shape = [count, height, width, channels].map(|side| side as i64);
    let bytes = images.as_standard_layout();
    Tensor::f_from_slice(bytes.as_slice().unwrap_or_default())?
        .f_view(shape)?
        .f_permute([0, 3, 1, 2])?
        .f_contiguous()?
        .f_to_device(Device::Cpu)
}

fn side(side: usize) -> u32 {
    u32::try_from(side).unwrap_or(u32::MAX)
}

/// The indices of all images except the overview of `runner sample`.
fn samples_of(dataset: &dyn Dataset) -> Vec<u64> {
    let is_sample = |&index: &u64| {
        let name = dataset.path(index).and_then(Path::file_name);
        name.is_none_or(|name| name != OVERVIEW)
    };
    let mut indices: Vec<u64> = (0..dataset.len()).collect();
    if indices.len() > 1 {
        indices.retain(is_sample);
    }
    indices
}

/// The height and width of all files, read from their headers. If images are not files of their own, the size of the
/// first image.
fn common_size(dataset: &dyn Dataset, indices: &[u64]) -> Result<(u32, u32), EvaluationError> {
    let mut common = None;
    for path in indices.iter().filter_map(|&index| dataset.path(index)) {
        let (width, height) = dimensions(path).map_err(|error| EvaluationError::Image {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let size = (height, width);
        let expected = *common.get_or_insert(size);
        if size != expected {
            return Err(EvaluationError::Size {
                path: path.to_owned(),
                found: size,
                expected,
                way_out: "all images must have one size: remove files that are not samples, or crop the \
                          images with --resolution",
            });
        }
    }
    match (common, indices.first()) {
        (Some(size), _) => Ok(size),
        (None, Some(&first)) => {
            let image = dataset.read(first)?.image;
            Ok((image.height(), image.width()))
        }
        (None, None) => Ok((0, 0)),
    }
}

/// Width and height of an image file. The format is determined from the file's bytes, not from its name.
fn dimensions(path: &Path) -> Result<(u32, u32), image::ImageError> {
    ImageReader::open(path)?
        .with_guessed_format()?
        .into_dimensions()
}
