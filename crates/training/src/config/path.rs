//! A path in a configuration.

use std::cell::Cell;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path in a configuration; empty for none. In a file it is relative to that file's folder, on the command line
/// to the working directory. The code that merges files resolves the paths, which it finds with
/// [`Config::paths`](crate::Config::paths).
///
/// In files a path is a string. Bytes that are not valid UTF-8 are written as U+EF80 to U+EFFF, so that different
/// names remain different strings.
///
/// ```
/// use training::{Config, ConfigPath};
///
/// let mut config = Config::default();
/// config.data.latent_cache = "latents".into();
/// let keys: Vec<String> = config.paths().into_iter().map(|(key, _)| key.join(".")).collect();
/// assert_eq!(keys, ["data.latent_cache", "data.path"]);
/// assert!(ConfigPath::default().is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ConfigPath(PathBuf);

impl ConfigPath {
    /// Whether the path is empty.
    pub fn is_empty(&self) -> bool {
        self.0.as_os_str().is_empty()
    }

    /// Returns the path as it is written in a file.
    pub fn to_text(&self) -> String {
        text_of(&self.0)
    }

    /// Returns the path that was serialised as `text` while [`PathMarking`] was alive; `None` for another string.
    pub(super) fn from_marked(text: &str) -> Option<Self> {
        text.strip_prefix(MARK).map(|text| Self(path_of(text)))
    }
}

impl Deref for ConfigPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for ConfigPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl From<PathBuf> for ConfigPath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl From<&Path> for ConfigPath {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl From<&str> for ConfigPath {
    fn from(path: &str) -> Self {
        Self(path.into())
    }
}

/// Prefix of a serialised path while [`PathMarking`] is alive. No path contains it.
const MARK: char = '\0';

thread_local! {
    static MARK_PATHS: Cell<bool> = const { Cell::new(false) };
}

/// While it is alive, paths are serialised on this thread with the prefix [`MARK`]. So they are found by their type,
/// anywhere in a configuration.
pub(super) struct PathMarking;

impl PathMarking {
    pub(super) fn begin() -> Self {
        MARK_PATHS.set(true);
        Self
    }
}

impl Drop for PathMarking {
    fn drop(&mut self) {
        MARK_PATHS.set(false);
    }
}

impl Serialize for ConfigPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = self.to_text();
        if MARK_PATHS.get() {
            text.insert(0, MARK);
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for ConfigPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.contains('\0') {
            return Err(serde::de::Error::custom(
                "a path cannot contain a NUL character",
            ));
        }
        Ok(Self(path_of(&text)))
    }
}

/// Added to a byte that is not valid UTF-8, to form its character.
const ESCAPE: u32 = 0xEF00;

#[cfg(unix)]
fn text_of(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;

    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        let escaped = chunk.invalid().iter().map(|byte| ESCAPE + u32::from(*byte));
        text.extend(escaped.filter_map(char::from_u32));
    }
    text
}

#[cfg(unix)]
fn path_of(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;

    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match u32::from(character).checked_sub(ESCAPE) {
            Some(byte @ 0x80..=0xFF) => bytes.push(byte as u8),
            _ => bytes.extend(character.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(not(unix))]
fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn path_of(text: &str) -> PathBuf {
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf8_remain_distinct_in_a_file() {
        use std::os::unix::ffi::OsStringExt;

        let names: [&[u8]; 5] = [
            b"a\xff",
            b"a\xfe",
            "a\u{fffd}".as_bytes(),
            b"\xc3",
            "\u{e9}".as_bytes(),
        ];
        let mut texts = std::collections::BTreeSet::new();
        for name in names {
            let mut config = Config::default();
            let path = PathBuf::from(std::ffi::OsString::from_vec(name.to_vec()));
            config.data.path = path.into();
            let text = toml::to_string(&config).unwrap();
            assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
            assert!(texts.insert(text), "{name:?}");
        }
    }
}
