use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::TorchError;
use crate::ffi;

/// What the threads share.
struct Shared<'a, T, N, F> {
    items: *mut T,
    count: usize,
    /// The first item that nobody has taken.
    next: AtomicUsize,
    new: &'a N,
    body: &'a F,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Calls `body` once with each item, on libtorch's threads (`tch::set_num_threads`); on this one where
/// it is itself one of them. Who is done with an item takes the next, so that a thread that is held up
/// does not hold up the others.
///
/// # Errors
/// libtorch could not start its threads.
///
/// # Panics
/// When `body` does, once all threads are done; the others go on with the items.
pub fn for_each<T: Send, F: Fn(&mut T) + Sync>(items: &mut [T], body: F) -> Result<(), TorchError> {
    for_each_with(items, || (), |item, ()| body(item))
}

/// As [`for_each`], with a value that each thread makes for itself and has for all its items: memory to
/// work in. Nothing that an item leaves in it may change what comes of the next.
///
/// # Errors
/// As [`for_each`].
///
/// # Panics
/// As [`for_each`], also when `new` does.
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
    // SAFETY: `part::<T, S, N, F>` takes the pointer for what it is, and `shared` outlives the call, which
    // returns when all parts are done. `items` is borrowed for as long.
    ffi::check(unsafe { ffi::te_parallel_for(parts, 1, part::<T, S, N, F>, data) })?;
    let panic = shared.panic.into_inner();
    if let Some(panic) = panic.unwrap_or_else(|poisoned| poisoned.into_inner()) {
        resume_unwind(panic);
    }
    Ok(())
}

/// Takes items until there are none. Any number of these may run at once; its part of the range means
/// nothing but how many are wanted.
///
/// # Safety
/// `data` is a live `Shared<T, S, N, F>`, and nobody but these has its items. Another thread may run it:
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
            // SAFETY: there is such an item, and the counter gave its number to nobody else.
            (shared.body)(unsafe { &mut *shared.items.add(index) }, &mut own);
            index = shared.next.fetch_add(1, Ordering::Relaxed);
        }
    }));
    if let Err(panic) = outcome {
        let mut first = shared.panic.lock().unwrap_or_else(|p| p.into_inner());
        first.get_or_insert(panic);
    }
}
