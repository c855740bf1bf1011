//! Data sets in Parquet files, as the Hugging Face Hub stores them.
//!
//! The image column is a struct `{bytes, path}` or plain binary, the label column has integers. The names of the classes
//! are those that `datasets` records in the file; without them, they are the labels as text.
//!
//! Opening a data set reads the footers of all files, several files at once, and the column of labels. The pages of a
//! row group are located the first time that one of its images is read: by the offset index of the file or, if it has
//! none, by the headers of the pages. To read an image, its page is read (about 1 MB in files of the Hub) and no other
//! part of the file. If the page is neither compressed nor uses a dictionary, which is how `datasets` 5.2 writes images,
//! the positions of its images are kept, and further reads take only the bytes of the image.
//!
//! Decoded pages of other files stay in a cache of at most 64 MiB. It serves reading in order; in random order, each
//! image costs the decoding of its page.
//!
//! A sample takes 4 bytes of memory and, after its page was read, 8 more; a page takes 56 and a row group about 500.

mod cache;
mod footer;
mod pages;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ::parquet::errors::ParquetError;
use rayon::prelude::*;

use self::cache::PageCache;
use self::footer::{Columns, FileIndex, io_error};
use self::pages::{Chunk, ImagePage, SharedFile};
use crate::dataset::{Dataset, ONLY_CLASS, OpenOptions};
use crate::entries::distinct_name;
use crate::error::DataError;
use crate::file_pool::FilePool;
use crate::fingerprint::Fingerprint;
use crate::formats;
use crate::sample::{CompleteSamples, Image, Sample};

/// A data set, or one split of one, in Parquet files.
#[derive(Debug)]
pub struct ParquetDataset {
    name: String,
    image_column: String,
    class_names: Vec<String>,
    files: FilePool,
    groups: Vec<Group>,
    /// Empty if the data set is opened without labels.
    labels: Vec<u32>,
    len: u64,
    cache: PageCache,
    fingerprint: String,
    complete: CompleteSamples,
}

/// A row group, with its file and its first row in the data set.
#[derive(Debug)]
struct Group {
    file: usize,
    first_row: u64,
    images: Chunk,
    /// The pages of the images, once they were located.
    pages: OnceLock<Box<[ImagePage]>>,
}

impl ParquetDataset {
    /// Reads the footers and the labels of the files, and performs the checks that need no decoding: there are samples, no
    /// image is null, a selection of images has supported formats, and all labels are in range. Samples have the order of
    /// `files` and of their rows.
    ///
    /// # Errors
    ///
    /// [`DataError::Empty`], [`DataError::Images`] and [`DataError::Labels`] if one of these checks fails,
    /// [`DataError::MissingColumn`] and [`DataError::ColumnType`] for the columns, [`DataError::Metadata`] for the
    /// features that `datasets` records, [`DataError::Malformed`] if a file is damaged, cut short or compressed in an
    /// unsupported way, [`DataError::Io`] if a file cannot be read.
    pub fn open(
        root: &Path,
        files: Vec<PathBuf>,
        name: String,
        options: &OpenOptions,
    ) -> Result<Self, DataError> {
        let count = files.len();
        let files = FilePool::new(files);
        if count == 0 {
            return Err(DataError::Empty {
                path: root.to_path_buf(),
            });
        }
        let columns = Columns::choose(files.path(0), files.get(0)?, options)?;
        let index = |file: usize| FileIndex::read(files.path(file), files.get(file)?, &columns);
        let indices: Vec<_> = (0..count).into_par_iter().map(index).collect();

        let mut fingerprint = Fingerprint::default();
        fingerprint.text("parquet");
        fingerprint.text(&columns.image);
        fingerprint.text(columns.label.as_deref().unwrap_or_default());
        let (mut groups, mut labels) = (Vec::new(), Vec::new());
        let (mut len, mut nulls, mut wrong, mut first_wrong) = (0, 0, 0, None);
        for (file, index) in indices.into_iter().enumerate() {
            let index = index?;
            let name = files.path(file).file_name().unwrap_or_default();
            fingerprint.text(&distinct_name(name));
            fingerprint.number(index.size);
            if let Some((row, label)) = index.first_wrong_label {
                first_wrong.get_or_insert((len + row, label));
            }
            wrong += index.wrong_labels;
            nulls += index.null_images;
            labels.extend(index.labels);
            for (rows, images) in index.groups {
                groups.push(Group {
                    file,
                    first_row: len,
                    images,
                    pages: OnceLock::new(),
                });
                len += rows;
            }
        }
        if len == 0 {
            return Err(DataError::Empty {
                path: root.to_path_buf(),
            });
        }
        columns.check_nulls(root, nulls, len)?;
        if let Some((index, label)) = first_wrong {
            return Err(columns.wrong_label(root, index, label, wrong, len));
        }
        groups.shrink_to_fit();
        labels.shrink_to_fit();
        let largest = labels.iter().max().copied();
        let numbers = || {
            (0..=largest.unwrap_or(0))
                .map(|label| label.to_string())
                .collect()
        };
        let class_names = match &columns.label {
            None => vec![ONLY_CLASS.to_owned()],
            Some(_) => columns.class_names.unwrap_or_else(numbers),
        };
        let dataset = Self {
            name,
            image_column: columns.image,
            class_names,
            files,
            groups,
            labels,
            len,
            cache: PageCache::default(),
            fingerprint: fingerprint.finish(),
            complete: CompleteSamples::new(len),
        };
        dataset.check_formats(root)?;
        Ok(dataset)
    }

    /// Refuses images of an unsupported format, according to the first bytes of a selection of images.
    fn check_formats(&self, root: &Path) -> Result<(), DataError> {
        const FIX: &str = "store the images as PNG, JPEG or WebP: in Python, call `image.convert(\"RGB\")` before the \
                           data set is written";
        let survey = formats::survey(self.len, |index| match self.image(index) {
            Ok(image) => {
                let mut head = image.unwrap_or_default();
                head.truncate(formats::HEAD);
                Ok(head)
            }
            // Damage concerns some samples only and is reported when they are read.
            Err(error) if error.is_corrupt_sample() => Ok(Vec::new()),
            Err(error) => Err(error),
        })?;
        match survey.unsupported {
            Some((index, format)) if format.is_tiff() || survey.all_unsupported => {
                Err(DataError::Images {
                    path: root.to_path_buf(),
                    column: self.image_column.clone(),
                    problem: format!(
                        "the image of sample {index} is {format}; supported: PNG, JPEG and WebP"
                    ),
                    fix: FIX,
                })
            }
            _ => Ok(()),
        }
    }

    /// The encoded image of a sample, unless it is null.
    fn image(&self, index: u64) -> Result<Option<Vec<u8>>, DataError> {
        self.check_index(index)?;
        let number = self
            .groups
            .partition_point(|group| group.first_row <= index)
            - 1;
        let group = &self.groups[number];
        let row = (index - group.first_row) as i64;
        let file = self.files.get(group.file)?;
        let failed = |error| self.read_error(index, group, error);
        let shared = || SharedFile::new(Arc::clone(&file)).map_err(|error| failed(error.into()));
        let pages = match group.pages.get() {
            Some(pages) => pages,
            None => {
                let located = group.images.locate_pages(shared()?).map_err(failed)?;
                group.pages.get_or_init(|| located)
            }
        };
        let page_number = pages.partition_point(|page| page.first_row() <= row) - 1;
        let page = &pages[page_number];
        let row = (row - page.first_row()) as usize;
        if let Some(spans) = page.spans.get() {
            let image = Chunk::image(&file, page, spans, row);
            return image.map_err(|error| failed(error.into()));
        }
        let key = (number, page_number);
        let images = match self.cache.get(key) {
            Some(images) => images,
            None => {
                let images = group.images.page(shared()?, pages, page_number);
                let images = Arc::new(images.map_err(failed)?);
                if page.spans.get().is_none() {
                    self.cache.insert(key, &images);
                }
                images
            }
        };
        Ok(images.get(row).map(<[u8]>::to_vec))
    }

    fn check_index(&self, index: u64) -> Result<(), DataError> {
        if index < self.len {
            return Ok(());
        }
        Err(DataError::Index {
            dataset: self.name.clone(),
            index,
            len: self.len,
        })
    }

    fn read_error(&self, index: u64, group: &Group, error: ParquetError) -> DataError {
        let path = self.files.path(group.file);
        match io_error(error) {
            Ok(source) => DataError::io(path, "read a sample")(source),
            Err(error) => self.corrupt(index, format!("{}: {error}", path.display())),
        }
    }

    fn corrupt(&self, index: u64, reason: String) -> DataError {
        DataError::Sample {
            dataset: self.name.clone(),
            index,
            reason,
        }
    }
}

impl Dataset for ParquetDataset {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: u64) -> Result<Sample, DataError> {
        let label = self.label(index)?;
        let bytes = self.image(index)?.ok_or_else(|| {
            let column = &self.image_column;
            self.corrupt(index, format!("column `{column}`: the image is null"))
        })?;
        let image = Image::decode_sample(&bytes, index, &self.complete)
            .map_err(|error| self.corrupt(index, error.to_string()))?;
        Ok(Sample {
            index,
            image,
            label,
        })
    }

    fn label(&self, index: u64) -> Result<i64, DataError> {
        self.check_index(index)?;
        let label = self.labels.get(index as usize);
        Ok(label.copied().map_or(0, i64::from))
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
