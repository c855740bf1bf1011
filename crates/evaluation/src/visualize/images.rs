//! Reads images from a data set or from files, cropped as for training.

use std::path::PathBuf;

use data::{Background, Batch, DataError, Dataset, Image, Sample};

use super::error::VisualizeError;

/// Images on a white background, u8 `[N, 3, R, R]`, each with a title.
#[derive(Debug)]
pub struct TitledImages {
    pub(super) batch: Batch,
    pub(super) titles: Vec<String>,
}

impl TitledImages {
    /// Reads the samples `ids` of a data set, cropped and resized to `resolution` x `resolution` pixels.
    ///
    /// # Errors
    /// A sample cannot be read, an id or the resolution is out of range.
    pub fn of_dataset(
        dataset: &dyn Dataset,
        ids: &[u64],
        resolution: u32,
    ) -> Result<Self, VisualizeError> {
        let batch = data::read_batch(dataset, ids, resolution, Background::White)?;
        let title = |(id, label): (&u64, &i64)| {
            let class = usize::try_from(*label)
                .ok()
                .and_then(|label| dataset.class_names().get(label));
            match class {
                Some(class) => format!("{} {id}, {class}", dataset.name()),
                None => format!("{} {id}", dataset.name()),
            }
        };
        let titles = batch.ids.iter().zip(&batch.labels).map(title).collect();
        Ok(Self { batch, titles })
    }

    /// Reads PNG, JPEG and WebP files, cropped and resized in the same way as the images of a data set.
    ///
    /// # Errors
    /// A file cannot be read or decoded, or the resolution is out of range.
    pub fn of_files(files: &[PathBuf], resolution: u32) -> Result<Self, VisualizeError> {
        let files = Files(files.to_vec());
        let ids: Vec<u64> = (0..files.len()).collect();
        let batch = data::read_batch(&files, &ids, resolution, Background::White)?;
        let name = |path: &PathBuf| {
            let name = path.file_name().unwrap_or(path.as_os_str());
            name.to_string_lossy().into_owned()
        };
        let titles = files.0.iter().map(name).collect();
        Ok(Self { batch, titles })
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.titles.len()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.titles.is_empty()
    }

    /// The side of the images in pixels.
    pub fn resolution(&self) -> u32 {
        self.batch.resolution
    }

    /// The opacities `[R, R]` of an image; `None` if no image has an alpha channel.
    pub(super) fn mask(&self, image: usize) -> Option<&[u8]> {
        let side = self.resolution() as usize;
        let masks = self.batch.masks.as_ref()?;
        masks.chunks_exact((side * side).max(1)).nth(image)
    }

    /// The colour planes `[3, R, R]` of an image.
    pub(super) fn planes(&self, image: usize) -> Option<&[u8]> {
        let side = self.resolution() as usize;
        let images = &self.batch.images;
        images.chunks_exact((3 * side * side).max(1)).nth(image)
    }
}

/// Individual files as a data set without labels, so that they are read and cropped by the same code.
struct Files(Vec<PathBuf>);

impl Dataset for Files {
    fn name(&self) -> &str {
        "--images"
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn class_names(&self) -> &[String] {
        &[]
    }

    fn read(&self, index: u64) -> Result<Sample, DataError> {
        let path = usize::try_from(index).ok().and_then(|i| self.0.get(i));
        let path = path.ok_or_else(|| DataError::Index {
            dataset: self.name().to_owned(),
            index,
            len: self.len(),
        })?;
        Ok(Sample {
            index,
            image: Image::open(path)?,
            label: 0,
        })
    }

    /// Empty: files are read once and nothing is cached.
    fn fingerprint(&self) -> &str {
        ""
    }
}
