//! Parallel loops on libtorch's threads.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::TorchError;
use crate::ffi;

/// State that the threads share.
struct Shared<'a, T, N, F> {
    items: *mut T,
    count: usize,
    /// Index of the next item to process.
    next: AtomicUsize,
    new: &'a N,
    body: &'a F,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Calls `body` once for each item, on libtorch's threads (`tch::set_num_threads`). If the calling thread
/// is itself one of libtorch's worker threads, it processes all items. Each thread takes the next item when
/// it has finished one, so that a delayed thread does not delay the others.
///
/// # Errors
/// libtorch cannot start its threads.
///
/// # Panics
/// If `body` panics, after all threads are done; the other threads process the remaining items.
pub fn for_each<T: Send, F: Fn(&mut T) + Sync>(items: &mut [T], body: F) -> Result<(), TorchError> {
    for_each_with(items, || (), |item, ()| body(item))
}

/// As [`for_each`], with scratch memory: each thread creates a value with `new` and uses it for all its
/// items. The content that one item leaves in it must not affect the result of the next.
///
/// # Errors
/// As [`for_each`].
///
/// # Panics
/// As [`for_each`], and if `new` panics.
pub fn for_each_with<T: Send, S, N: Fn() -> S + Sync, F: Fn(&mut T, &mut S) + Sync>(
    items: &mut [T],
    new: N,
    body: F,
) -> Result<(), TorchError> {
    let shared = Shared {
        items: items.as_mut_ptr(),
        count: items.len(),
        next: AtomicUsize::new(0),
        new: &new,
        body: &body,
        panic: Mutex::new(None),
    };
    let data = (&raw const shared).cast::<c_void>();
    let threads = i64::from(tch::get_num_threads()).max(1);
    let parts = threads.min(i64::try_from(items.len()).unwrap_or(threads));
    // SAFETY: `part::<T, S, N, F>` casts the pointer back to its type. `shared` and the borrow of `items`
    // outlive the call, which returns when all parts are done.
    ffi::check(unsafe { ffi::te_parallel_for(parts, 1, part::<T, S, N, F>, data) })?;
    let panic = shared.panic.into_inner();
    if let Some(panic) = panic.unwrap_or_else(|poisoned| poisoned.into_inner()) {
        resume_unwind(panic);
    }
    Ok(())
}

/// Processes items until none remain. Any number of calls may run at once. The range is ignored: it only
/// determines the number of calls.
///
/// # Safety
/// `data` is a live `Shared<T, N, F>`, and only these calls access its items. They may run on other threads:
/// `T: Send`, `N: Sync`, `F: Sync`.
unsafe extern "C" fn part<T: Send, S, N: Fn() -> S + Sync, F: Fn(&mut T, &mut S) + Sync>(
    data: *const c_void,
    _begin: i64,
    _end: i64,
) {
    // SAFETY: by contract.
    let shared = unsafe { &*data.cast::<Shared<'_, T, N, F>>() };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= shared.count {
            return;
        }
        let mut own = (shared.new)();
        while index < shared.count {
            // SAFETY: the index is in range, and the counter returned it only once.
            (shared.body)(unsafe { &mut *shared.items.add(index) }, &mut own);
            index = shared.next.fetch_add(1, Ordering::Relaxed);
        }
    }));
    if let Err(panic) = outcome {
        let mut first = shared.panic.lock().unwrap_or_else(|p| p.into_inner());
        first.get_or_insert(panic);
    }
}
