use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Memory that slices of this process's kernels refer to.
static LENT: Mutex<All> = Mutex::new(All {
    read: BTreeMap::new(),
    changed: BTreeMap::new(),
});

#[derive(Debug)]
struct All {
    /// How often each range is read.
    read: BTreeMap<Range, usize>,
    /// These do not overlap.
    changed: BTreeMap<usize, usize>,
}

/// From the first to behind the last byte.
type Range = (usize, usize);

impl All {
    fn is_changed(&self, (start, end): Range) -> bool {
        // Only the last that begins before `end` can reach so far.
        let last = self.changed.range(..end).next_back();
        last.is_some_and(|(_, &other)| other > start)
    }

    fn is_read(&self, (start, end): Range) -> bool {
        let before = self.read.range(..(end, 0));
        before.into_iter().any(|(&(_, other), _)| other > start)
    }
}

/// What one kernel has been lent; it is given back when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Lent {
    own: Mutex<Own>,
}

#[derive(Debug, Default)]
struct Own {
    read: Vec<Range>,
    changed: Vec<Range>,
}

impl Lent {
    /// Lends memory to be read, unless it is being changed.
    pub(super) fn read<T>(&self, start: *const T, len: usize) -> bool {
        let Some(range) = range(start, len) else {
            return true;
        };
        let mut all = lock(&LENT);
        if all.is_changed(range) {
            return false;
        }
        *all.read.entry(range).or_default() += 1;
        lock(&self.own).read.push(range);
        true
    }

    /// Lends memory to be changed, unless somebody has it.
    pub(super) fn change<T>(&self, start: *const T, len: usize) -> bool {
        let Some(range) = range(start, len) else {
            return true;
        };
        let mut all = lock(&LENT);
        if all.is_changed(range) || all.is_read(range) {
            return false;
        }
        all.changed.insert(range.0, range.1);
        lock(&self.own).changed.push(range);
        true
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let own = self.own.get_mut().unwrap_or_else(PoisonError::into_inner);
        if own.read.is_empty() && own.changed.is_empty() {
            return;
        }
        let mut all = lock(&LENT);
        for (start, _) in own.changed.drain(..) {
            all.changed.remove(&start);
        }
        for range in own.read.drain(..) {
            if let Some(count) = all.read.get_mut(&range) {
                *count -= 1;
                if *count == 0 {
                    all.read.remove(&range);
                }
            }
        }
    }
}

/// Nothing that could be lent where it is empty.
fn range<T>(start: *const T, len: usize) -> Option<Range> {
    let bytes = size_of::<T>() * len;
    (bytes > 0).then(|| (start.addr(), start.addr() + bytes))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
