//! Locates and decodes the pages of one column chunk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ::parquet::basic::Encoding;
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::page_index::index_reader::decode_offset_index;
use ::parquet::file::page_index::offset_index::PageLocation;
use ::parquet::file::reader::{ChunkReader, Length};
use ::parquet::file::serialized_reader::SerializedPageReader;
use bytes::Bytes;

use super::cache::Images;
use crate::positioned::PositionedReader;

/// A Parquet file that several threads read at once.
pub(super) struct SharedFile {
    file: Arc<File>,
    size: u64,
    /// Where the last reader was requested.
    last_start: AtomicU64,
    /// The bytes that were read last.
    last_bytes: Mutex<Bytes>,
}

impl SharedFile {
    pub(super) fn new(file: Arc<File>) -> io::Result<Self> {
        Ok(Self {
            size: file.metadata()?.len(),
            file,
            last_start: AtomicU64::new(0),
            last_bytes: Mutex::default(),
        })
    }
}

impl Length for SharedFile {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for SharedFile {
    type T = PositionedReader;

    fn get_read(&self, start: u64) -> Result<PositionedReader> {
        /// Holds the header of a page.
        const WINDOW: usize = 512;
        self.last_start.store(start, Ordering::Relaxed);
        Ok(PositionedReader::new(Arc::clone(&self.file), start, WINDOW))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if start.saturating_add(length as u64) > self.size {
            let problem = format!(
                "bytes {start} to {} are outside of the file",
                start.saturating_add(length as u64)
            );
            return Err(ParquetError::EOF(problem));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        let bytes = Bytes::from(bytes);
        *self
            .last_bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = bytes.clone();
        Ok(bytes)
    }
}

/// A data page of images.
#[derive(Debug)]
pub(super) struct ImagePage {
    location: PageLocation,
    /// The positions of the images in the file, once the page was read, if it is neither compressed nor uses a dictionary.
    pub spans: OnceLock<Box<[Span]>>,
}

impl ImagePage {
    /// The first row, counted from the start of the row group.
    pub(super) fn first_row(&self) -> i64 {
        self.location.first_row_index
    }
}

/// The position of an image in its page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    start: u32,
    /// [`NULL`] for a null image.
    len: u32,
}

const NULL: u32 = u32::MAX;

/// Calls the crate `parquet`, which panics on some damaged files.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    // Unwind safe: what `read` changes is dropped with it, or set as a whole.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let problem = "its structure is damaged".to_owned();
        Err(ParquetError::General(problem))
    })
}

/// One column of one row group.
#[derive(Debug)]
pub(super) struct Chunk {
    metadata: ColumnChunkMetaData,
    rows: usize,
}

impl Chunk {
    /// Checks that the chunk is inside of a file of `size` bytes.
    pub(super) fn new(metadata: &ColumnChunkMetaData, rows: i64, size: u64) -> Result<Self> {
        let starts = [
            Some(metadata.data_page_offset()),
            metadata.dictionary_page_offset(),
        ];
        let negative = starts.into_iter().flatten().any(|start| start < 0);
        let rows = usize::try_from(rows);
        let (Ok(rows), false, Ok(len)) =
            (rows, negative, u64::try_from(metadata.compressed_size()))
        else {
            return Err(ParquetError::General(
                "a size or position is negative".to_owned(),
            ));
        };
        let (start, _) = metadata.byte_range();
        if start.saturating_add(len) > size {
            let problem = format!(
                "a column ends at byte {}, but the file has {size}",
                start.saturating_add(len)
            );
            return Err(ParquetError::EOF(problem));
        }
        // Statistics of images can be as large as the images.
        let metadata = metadata.clone().into_builder().clear_statistics().build()?;
        Ok(Self { metadata, rows })
    }

    /// Reads all values; `None` is null.
    pub(super) fn values<T: DataType>(&self, file: SharedFile) -> Result<Vec<Option<T::T>>> {
        guarded(|| {
            let pages = SerializedPageReader::new(Arc::new(file), &self.metadata, self.rows, None)?;
            self.decode::<T>(Box::new(pages), self.rows)
        })
    }

    fn decode<T: DataType>(
        &self,
        pages: Box<dyn PageReader>,
        rows: usize,
    ) -> Result<Vec<Option<T::T>>> {
        let column = self.metadata.column_descr_ptr();
        let present = column.max_def_level();
        let mut reader = ColumnReaderImpl::<T>::new(column, pages);
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let (read, ..) = reader.read_records(rows, Some(&mut levels), None, &mut values)?;
        if read != rows {
            return Err(ParquetError::EOF(format!(
                "{read} rows of {rows} are present"
            )));
        }
        if present == 0 {
            return Ok(values.into_iter().map(Some).collect());
        }
        let mut values = values.into_iter();
        let rows = levels.into_iter().map(|level| match level == present {
            true => values.next(),
            false => None,
        });
        Ok(rows.collect())
    }

    /// Locates the data pages: by the offset index of the file, or by reading the header of each page.
    pub(super) fn locate_pages(&self, file: SharedFile) -> Result<Box<[ImagePage]>> {
        let pages = match self.pages_by_index(&file) {
            Some(pages) => pages,
            None => guarded(|| self.pages_by_headers(file))?,
        };
        if !self.is_plausible(&pages) {
            return Err(ParquetError::General("its pages overlap".to_owned()));
        }
        let pages = pages.into_iter().map(|location| ImagePage {
            location,
            spans: OnceLock::new(),
        });
        Ok(pages.collect())
    }

    fn pages_by_index(&self, file: &SharedFile) -> Option<Vec<PageLocation>> {
        let range = self.metadata.offset_index_range()?;
        let len = range.end.checked_sub(range.start)?;
        let bytes = file
            .get_bytes(range.start, usize::try_from(len).ok()?)
            .ok()?;
        let pages = decode_offset_index(&bytes).ok()?.page_locations().clone();
        self.is_plausible(&pages).then_some(pages)
    }

    /// Whether the pages are in order and inside of the chunk, and begin with the first row.
    fn is_plausible(&self, pages: &[PageLocation]) -> bool {
        let (start, len) = self.metadata.byte_range();
        let (mut position, mut first_row) = (start, 0);
        for (number, page) in pages.iter().enumerate() {
            let (Ok(offset), Ok(size), Ok(row)) = (
                u64::try_from(page.offset),
                u64::try_from(page.compressed_page_size),
                usize::try_from(page.first_row_index),
            ) else {
                return false;
            };
            let row_follows = if number == 0 {
                row == 0
            } else {
                row > first_row
            };
            if offset < position || !row_follows || row >= self.rows {
                return false;
            }
            (position, first_row) = (offset.saturating_add(size), row);
        }
        !pages.is_empty() && position <= start + len
    }

    fn pages_by_headers(&self, file: SharedFile) -> Result<Vec<PageLocation>> {
        let file = Arc::new(file);
        let (start, len) = self.metadata.byte_range();
        let mut reader =
            SerializedPageReader::new(Arc::clone(&file), &self.metadata, self.rows, None)?;
        let mut pages = Vec::<PageLocation>::new();
        let mut first_row = 0;
        let end_at = |end: u64, pages: &mut [PageLocation]| -> Result<()> {
            if let Some(page) = pages.last_mut() {
                page.compressed_page_size = i32::try_from(end as i64 - page.offset)?;
            }
            Ok(())
        };
        while let Some(page) = reader.peek_next_page()? {
            // The page reader reads a header where the page starts.
            let offset = file.last_start.load(Ordering::Relaxed);
            end_at(offset, &mut pages)?;
            if !page.is_dict {
                pages.push(PageLocation {
                    offset: i64::try_from(offset)?,
                    compressed_page_size: 0,
                    first_row_index: first_row,
                });
                first_row += i64::try_from(page.num_rows.or(page.num_levels).unwrap_or(0))?;
            }
            reader.skip_next_page()?;
        }
        end_at(start + len, &mut pages)?;
        Ok(pages)
    }

    /// Reads one image of a page whose images were located.
    pub(super) fn image(
        file: &File,
        page: &ImagePage,
        spans: &[Span],
        row: usize,
    ) -> io::Result<Option<Vec<u8>>> {
        let Some(span) = spans.get(row).filter(|span| span.len != NULL) else {
            return Ok(None);
        };
        let mut bytes = vec![0; span.len as usize];
        file.read_exact_at(
            &mut bytes,
            page.location.offset as u64 + u64::from(span.start),
        )?;
        Ok(Some(bytes))
    }

    /// Decodes the page `number` of `pages`, and locates its images if they are stored as they are.
    pub(super) fn page(
        &self,
        file: SharedFile,
        pages: &[ImagePage],
        number: usize,
    ) -> Result<Images> {
        guarded(|| self.decode_page(file, pages, number))
    }

    fn decode_page(&self, file: SharedFile, pages: &[ImagePage], number: usize) -> Result<Images> {
        let page = &pages[number];
        let next_row = pages
            .get(number + 1)
            .map_or(self.rows as i64, ImagePage::first_row);
        let rows = usize::try_from(next_row - page.first_row())?;
        let file = Arc::new(file);
        let (start, _) = self.metadata.byte_range();
        let mut reader = SerializedPageReader::new(
            Arc::clone(&file),
            &self.metadata,
            self.rows,
            Some(vec![page.location.clone()]),
        )?;
        if page.location.offset as u64 != start {
            // The reader takes all bytes before the page for a dictionary.
            reader.skip_next_page()?;
        }
        let missing = || ParquetError::EOF("a page is missing".to_owned());
        let data = reader.get_next_page()?.ok_or_else(missing)?;
        let raw = std::mem::take(
            &mut *file
                .last_bytes
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let dictionary = match data.encoding() {
            Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY => {
                let mut reader = SerializedPageReader::new(file, &self.metadata, self.rows, None)?;
                Some(reader.get_next_page()?.ok_or_else(missing)?)
            }
            _ => None,
        };
        let decoded = SinglePage([dictionary, Some(data)]);
        let images = self.decode::<ByteArrayType>(Box::new(decoded), rows)?;
        let spans: Option<Box<[Span]>> = images
            .iter()
            .map(|image| span_in(&raw, image.as_ref()))
            .collect();
        if let Some(spans) = spans {
            page.spans.get_or_init(|| spans);
        }
        Ok(Images(images))
    }
}

/// The position of an image in the page `raw`, if the image was not copied to another place in memory.
fn span_in(raw: &[u8], image: Option<&ByteArray>) -> Option<Span> {
    let Some(image) = image else {
        return Some(Span {
            start: 0,
            len: NULL,
        });
    };
    let range = image.data().as_ptr_range();
    let raw = raw.as_ptr_range();
    if range.start < raw.start || range.end > raw.end {
        return None;
    }
    Some(Span {
        start: u32::try_from(range.start.addr() - raw.start.addr()).ok()?,
        len: u32::try_from(image.len()).ok()?,
    })
}

/// A dictionary, if there is one, and a data page that uses it.
struct SinglePage([Option<Page>; 2]);

impl Iterator for SinglePage {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for SinglePage {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let [dictionary, page] = &mut self.0;
        Ok(dictionary.take().or_else(|| page.take()))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        let page = self.0.iter().flatten().next();
        Ok(page.map(|page| PageMetadata {
            num_rows: None,
            num_levels: Some(page.num_values() as usize),
            is_dict: page.is_dictionary_page(),
        }))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.get_next_page().map(drop)
    }
}
