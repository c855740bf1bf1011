//! A map whose values are made when they are first needed, once each.

use std::fmt;
use std::sync::OnceLock;

/// A map of a few keys whose values are made when they are first needed, once each, and never removed.
///
/// Finding a value takes no lock and allocates nothing. Threads that need the same value wait until one of them has made
/// it; a thread that needs another value does not wait.
///
/// ```
/// use torch_ext::OnceMap;
///
/// static LENGTHS: OnceMap<&str, usize> = OnceMap::new();
/// assert_eq!(*LENGTHS.get_or_make("norm", || "norm".len()), 4);
/// assert_eq!(*LENGTHS.get_or_make("norm", || unreachable!("it is in the map")), 4);
/// ```
pub struct OnceMap<K, V> {
    first: Link<K, V>,
}

/// The entries are a list that grows at its end only.
type Link<K, V> = OnceLock<Box<Entry<K, V>>>;

struct Entry<K, V> {
    /// Always `Some`: the type is that of a key that may have been moved to an entry.
    key: Option<K>,
    value: OnceLock<V>,
    next: Link<K, V>,
}

impl<K, V> OnceMap<K, V> {
    /// An empty map.
    pub const fn new() -> Self {
        Self {
            first: OnceLock::new(),
        }
    }
}

impl<K: PartialEq, V> OnceMap<K, V> {
    /// The value of `key`, made by `make` if there is none yet. If `make` panics, the next call makes the value. `make`
    /// must not need the value of `key` itself.
    pub fn get_or_make(&self, key: K, make: impl FnOnce() -> V) -> &V {
        let mut key = Some(key);
        let mut link = &self.first;
        loop {
            let entry = link.get_or_init(|| {
                Box::new(Entry {
                    key: key.take(),
                    value: OnceLock::new(),
                    next: OnceLock::new(),
                })
            });
            // The key has moved to the entry if this call has added it. Otherwise another thread may have.
            if key.is_none() || entry.key == key {
                return entry.value.get_or_init(make);
            }
            link = &entry.next;
        }
    }
}

impl<K, V> Default for OnceMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> fmt::Debug for OnceMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceMap").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn a_value_is_made_once_for_all_threads() {
        let (map, made) = (OnceMap::new(), AtomicUsize::new(0));
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for thread in 0..8 {
                let (map, made, start) = (&map, &made, &start);
                scope.spawn(move || {
                    start.wait();
                    for step in 0..20 {
                        let key = (thread + step) % 20;
                        let value = map.get_or_make(key, || {
                            made.fetch_add(1, Ordering::Relaxed);
                            10 * key
                        });
                        assert_eq!(*value, 10 * key);
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), 20);
    }

    #[test]
    fn different_values_are_made_at_the_same_time() {
        let map = OnceMap::new();
        // Each value is complete only when both are being made.
        let both = Barrier::new(2);
        thread::scope(|scope| {
            for key in 0..2 {
                let (map, both) = (&map, &both);
                scope.spawn(move || map.get_or_make(key, || both.wait().is_leader()));
            }
        });
    }

    #[test]
    fn a_panic_makes_no_value() {
        let map = OnceMap::new();
        let panics = || *map.get_or_make("key", || panic!("on purpose"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert_eq!(*map.get_or_make("key", || 3), 3);
    }
}
