//! The pages that were decoded most recently.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ::parquet::data_type::ByteArray;

/// The values of a page of encoded images; `None` is a null image.
#[derive(Debug)]
pub(super) struct Images(pub Vec<Option<ByteArray>>);

impl Images {
    /// The image of a row, unless it is null.
    pub(super) fn get(&self, row: usize) -> Option<&[u8]> {
        Some(self.0.get(row)?.as_ref()?.data())
    }

    /// Approximate size in memory.
    fn bytes(&self) -> usize {
        let size = |image: &Option<ByteArray>| image.as_ref().map_or(0, ByteArray::len);
        size_of_val(&*self.0) + self.0.iter().map(size).sum::<usize>()
    }
}

/// Identifies a page: its row group in the data set, and its number in the row group.
pub(super) type PageKey = (usize, usize);

/// Keeps at most [`MAX_PAGES`](Self::MAX_PAGES) pages of [`MAX_BYTES`](Self::MAX_BYTES) together.
///
/// Reading in order, as evaluation does, decodes each page once. Reading in random order rarely meets a page again, for
/// which no cache of a reasonable size would help.
#[derive(Debug, Default)]
pub(super) struct PageCache(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    /// Each page with the clock value of its last use.
    pages: HashMap<PageKey, (Arc<Images>, u64)>,
    bytes: usize,
    clock: u64,
}

impl PageCache {
    const MAX_BYTES: usize = 64 << 20;
    const MAX_PAGES: usize = 256;

    /// Returns a page, if it is present.
    pub(super) fn get(&self, key: PageKey) -> Option<Arc<Images>> {
        self.lock().touch(key)
    }

    /// Adds a page, and removes those that were not used for the longest time. A page that exceeds the limit alone is not
    /// kept.
    pub(super) fn insert(&self, key: PageKey, images: &Arc<Images>) {
        self.lock().insert(key, images);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn touch(&mut self, key: PageKey) -> Option<Arc<Images>> {
        self.clock += 1;
        let (images, last_used) = self.pages.get_mut(&key)?;
        *last_used = self.clock;
        Some(Arc::clone(images))
    }

    fn insert(&mut self, key: PageKey, images: &Arc<Images>) {
        let bytes = images.bytes();
        if bytes > PageCache::MAX_BYTES || self.pages.contains_key(&key) {
            return;
        }
        while self.pages.len() >= PageCache::MAX_PAGES || self.bytes + bytes > PageCache::MAX_BYTES
        {
            let oldest = self
                .pages
                .iter()
                .min_by_key(|(_, (_, last_used))| *last_used);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                break;
            };
            if let Some((removed, _)) = self.pages.remove(&oldest) {
                self.bytes -= removed.bytes();
            }
        }
        self.bytes += bytes;
        self.pages.insert(key, (Arc::clone(images), self.clock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(bytes: usize) -> Arc<Images> {
        Arc::new(Images(vec![Some(ByteArray::from(vec![0; bytes]))]))
    }

    #[test]
    fn size_and_number_of_pages_are_bounded() {
        let cache = PageCache::default();
        for index in 0..40 {
            cache.insert((0, index), &page(5 << 20));
            // The page in use stays.
            assert!(cache.get((0, 0)).is_some());
        }
        assert_eq!(cache.lock().pages.len(), 12);
        assert!(cache.get((0, 39)).is_some() && cache.get((0, 1)).is_none());
        cache.insert((1, 0), &page(65 << 20));
        assert!(cache.get((1, 0)).is_none());
        for index in 0..1000 {
            cache.insert((2, index), &page(1));
        }
        let pages = cache.lock();
        assert_eq!(pages.pages.len(), PageCache::MAX_PAGES);
        let bytes: usize = pages.pages.values().map(|(page, _)| page.bytes()).sum();
        assert!(pages.bytes == bytes && bytes <= PageCache::MAX_BYTES);
    }
}
