//! Indexes a tar file by its headers.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tar::{Archive, Entry};

use crate::error::DataError;
use crate::formats::HEAD;
use crate::positioned::PositionedReader;

/// Size of a tar header, and the alignment of files.
pub(super) const BLOCK: u64 = 512;

/// Extensions of images. If a sample has several images, the first of these is used.
const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
const LABEL: &str = "cls";
const JSON: &str = "json";

/// Limits the number of classes that one wrong label can create.
const MAX_CLASSES: u32 = 1_000_000;

const DAMAGED: &str = "the file is damaged: copy or download it again";
const WRITE_AGAIN: &str = "write it again with `webdataset.TarWriter` and an image (.jpg, .jpeg, .png or .webp) and a \
                           label (.cls) for each key; if the data set has no labels, set `unlabelled` to true";

/// The samples of one tar file.
pub(super) struct Shard {
    /// Size of the file.
    pub size: u64,
    pub images: Vec<ImageSpan>,
    /// Empty if labels were not requested.
    pub labels: Vec<u32>,
}

/// The position of an image in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageSpan {
    pub start: u64,
    pub len: u32,
}

/// The files of one sample.
struct Group {
    key: Vec<u8>,
    /// The preferred image: its rank in [`IMAGES`], and its position.
    image: Option<(usize, ImageSpan)>,
    label: Option<String>,
    /// Position and length of the JSON file.
    json: Option<(u64, u64)>,
}

impl Shard {
    /// Reads the headers of the file and, if `labelled`, its labels.
    pub(super) fn index(path: &Path, file: Arc<File>, labelled: bool) -> Result<Self, DataError> {
        let size = file
            .metadata()
            .map_err(DataError::io(path, "read the size"))?
            .len();
        let mut indexer = Indexer {
            path,
            file,
            labelled,
            shard: Self {
                size,
                images: Vec::new(),
                labels: Vec::new(),
            },
        };
        indexer.run()?;
        Ok(indexer.shard)
    }
}

struct Indexer<'a> {
    path: &'a Path,
    file: Arc<File>,
    labelled: bool,
    shard: Shard,
}

impl Indexer<'_> {
    fn run(&mut self) -> Result<(), DataError> {
        /// Holds the headers and the contents of a few small files.
        const WINDOW: usize = 4096;
        self.check_kind()?;
        let mut archive = Archive::new(PositionedReader::new(Arc::clone(&self.file), 0, WINDOW));
        let path = self.path;
        let failed = |error| failed(path, error);
        let mut group: Option<Group> = None;
        let mut end = 0;
        for entry in archive.entries_with_seek().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            end = self.end_of(&entry)?;
            let name = entry.path_bytes().into_owned();
            let Some((key, extension)) = key_and_extension(&name) else {
                continue;
            };
            let kind = entry.header().entry_type();
            if kind.is_dir() || kind.is_pax_global_extensions() {
                continue;
            }
            if !kind.is_file() {
                return Err(self.refused(
                    &name,
                    "is a link or a sparse file",
                    "write the tar file with `--hard-dereference --dereference` and without `--sparse`",
                ));
            }
            if group.as_ref().is_none_or(|group| group.key != key) {
                let next = Group {
                    key: key.to_vec(),
                    image: None,
                    label: None,
                    json: None,
                };
                if let Some(complete) = group.replace(next) {
                    self.add(complete)?;
                }
            }
            if let Some(group) = &mut group {
                self.add_file(group, &name, &extension, &mut entry)?;
            }
        }
        // Without the blocks of zeros at the end, the file may have been cut between two samples.
        if self.shard.size < end + BLOCK {
            return Err(malformed(
                self.path,
                format!(
                    "it has no end mark after its last file, which ends at byte {end}: it is cut short"
                ),
                DAMAGED,
            ));
        }
        if let Some(complete) = group {
            self.add(complete)?;
        }
        Ok(())
    }

    /// Refuses files of another kind, whose first block would be reported as a damaged header.
    fn check_kind(&self) -> Result<(), DataError> {
        let mut head = [0; HEAD];
        let read = self.file.read_at(&mut head, 0);
        let read = read.map_err(DataError::io(self.path, "read the tar file"))?;
        let gzip = head.starts_with(b"\x1f\x8b");
        match ::files::describe_foreign(&head[..read]) {
            Some(what) => Err(malformed(
                self.path,
                format!("this is {what}"),
                "replace it with the tar file",
            )),
            None if gzip => Err(malformed(
                self.path,
                "it is compressed with gzip, so that single samples cannot be read".to_owned(),
                "decompress it",
            )),
            None => Ok(()),
        }
    }

    /// The end of an entry, including its padding.
    fn end_of(&self, entry: &Entry<impl Read>) -> Result<u64, DataError> {
        let start = entry.raw_file_position();
        let end = start.saturating_add(entry.size());
        if end > self.shard.size {
            let name = entry.path_bytes();
            let problem = format!(
                "`{}` ends at byte {end}, but the file has {} bytes: it is cut short",
                String::from_utf8_lossy(&name),
                self.shard.size
            );
            return Err(malformed(self.path, problem, DAMAGED));
        }
        Ok(end.next_multiple_of(BLOCK))
    }

    fn add_file(
        &self,
        group: &mut Group,
        name: &[u8],
        extension: &str,
        entry: &mut Entry<impl Read>,
    ) -> Result<(), DataError> {
        /// Decimal digits and surrounding space. Longer text is not a label.
        const MAX_LABEL: u64 = 64;
        let (start, len) = (entry.raw_file_position(), entry.size());
        if let Some(rank) = IMAGES.iter().position(|image| *image == extension) {
            let Ok(len) = u32::try_from(len) else {
                return Err(self.refused(name, "is larger than 4 GiB", WRITE_AGAIN));
            };
            match group.image {
                Some((first, _)) if first == rank => {
                    return Err(self.refused(name, "occurs twice", WRITE_AGAIN));
                }
                Some((first, _)) if first < rank => {}
                _ => group.image = Some((rank, ImageSpan { start, len })),
            }
        } else if self.labelled && extension == LABEL {
            let mut text = Vec::new();
            let read = entry.take(MAX_LABEL).read_to_end(&mut text);
            read.map_err(|error| failed(self.path, error))?;
            group.label = Some(String::from_utf8_lossy(&text).trim().to_owned());
        } else if extension == JSON {
            group.json = Some((start, len));
        }
        Ok(())
    }

    /// Adds a complete sample.
    fn add(&mut self, group: Group) -> Result<(), DataError> {
        let Some((_, image)) = group.image else {
            return Err(self.refused(&group.key, "has no image", WRITE_AGAIN));
        };
        if self.labelled {
            let label = match &group.label {
                Some(text) => text.parse::<u32>().map_err(|_| format!("`{text}`")),
                None => self.json_label(&group)?,
            };
            match label {
                Ok(label) if label < MAX_CLASSES => self.shard.labels.push(label),
                Ok(label) => return Err(self.wrong_label(&group.key, &label.to_string())),
                Err(text) => return Err(self.wrong_label(&group.key, &text)),
            }
        }
        self.shard.images.push(image);
        Ok(())
    }

    /// The `label` of the JSON file of a sample, or the text of a label that is not a number of a class.
    fn json_label(&self, group: &Group) -> Result<Result<u32, String>, DataError> {
        /// Longer files are not the metadata of one image.
        const MAX_JSON: u64 = 16 << 20;
        let missing = |problem| Err(self.refused(&group.key, problem, WRITE_AGAIN));
        let Some((start, len)) = group.json.filter(|(_, len)| *len <= MAX_JSON) else {
            return missing("has no label: it has neither `.cls` nor `.json`");
        };
        let mut bytes = vec![0; len as usize];
        let read = self.file.read_exact_at(&mut bytes, start);
        read.map_err(DataError::io(self.path, "read a label"))?;
        let Ok(json) = serde_json::from_slice::<Value>(&bytes) else {
            return missing("has no `.cls`, and its `.json` is not valid JSON");
        };
        let Some(label) = json.get("label") else {
            return missing("has no label: it has no `.cls`, and its `.json` has no `label`");
        };
        let number = label.as_u64().and_then(|label| u32::try_from(label).ok());
        Ok(number.ok_or_else(|| label.to_string()))
    }

    fn wrong_label(&self, key: &[u8], label: &str) -> DataError {
        let problem = format!(
            "sample `{}` has the label {label}; allowed: 0 to {}",
            String::from_utf8_lossy(key),
            MAX_CLASSES - 1
        );
        malformed(
            self.path,
            problem,
            "write it again with the class number as label, or set `unlabelled` to true to ignore the labels",
        )
    }

    fn refused(&self, name: &[u8], problem: &str, fix: &'static str) -> DataError {
        let name = String::from_utf8_lossy(name);
        malformed(self.path, format!("`{name}` {problem}"), fix)
    }
}

/// Splits a path at the first dot of its file name. The extension is in lower case. Hidden files have no key, nor have
/// those that `webdataset` skips as metadata, such as `__info__.json`.
fn key_and_extension(path: &[u8]) -> Option<(&[u8], String)> {
    let name_start = path
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1);
    let dot = name_start + path[name_start..].iter().position(|&byte| byte == b'.')?;
    let extension = String::from_utf8_lossy(&path[dot + 1..]).to_ascii_lowercase();
    let base = &path[name_start..dot];
    let is_metadata = base.starts_with(b"__") && base.ends_with(b"__");
    (!base.is_empty() && !is_metadata).then_some((&path[..dot], extension))
}

/// The error of reading an entry: of the operating system, or of the format.
fn failed(path: &Path, error: io::Error) -> DataError {
    match error.raw_os_error() {
        Some(_) => DataError::io(path, "read the tar file")(error),
        None => malformed(
            path,
            format!("this is not a complete tar file: {error}"),
            DAMAGED,
        ),
    }
}

fn malformed(path: &Path, problem: String, fix: &'static str) -> DataError {
    DataError::Malformed {
        path: path.to_path_buf(),
        problem,
        fix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_ends_at_the_first_dot_of_the_file_name() {
        let of = |path: &'static str| {
            let split = key_and_extension(path.as_bytes());
            split.map(|(key, extension)| (str::from_utf8(key).unwrap(), extension))
        };
        assert_eq!(of("a.jpg"), Some(("a", "jpg".to_owned())));
        assert_eq!(of("x.y/a.Seg.PNG"), Some(("x.y/a", "seg.png".to_owned())));
        assert_eq!(of("./n01/a.cls"), Some(("./n01/a", "cls".to_owned())));
        assert_eq!(of("x/README"), None);
        assert_eq!(of("x/._a.jpg"), None);
        assert_eq!(of("__info__.json"), None);
    }
}
