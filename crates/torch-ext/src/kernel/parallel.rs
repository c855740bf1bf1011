use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

use crate::TorchError;
use crate::ffi;

/// What the threads share.
struct Shared<'a, T, F> {
    items: *mut T,
    body: &'a F,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Calls `body` once with each item, on libtorch's threads (`tch::set_num_threads`); on this one where
/// it is itself one of them. Which thread takes which item is fixed by their numbers.
///
/// # Errors
/// libtorch could not start its threads.
///
/// # Panics
/// When `body` does, once all threads are done; what follows on the thread of the panic is left out.
pub fn for_each<T: Send, F: Fn(&mut T) + Sync>(items: &mut [T], body: F) -> Result<(), TorchError> {
    let shared = Shared {
        items: items.as_mut_ptr(),
        body: &body,
        panic: Mutex::new(None),
    };
    let data = (&raw const shared).cast::<c_void>();
    // SAFETY: `part::<T, F>` takes the pointer for what it is, and `shared` outlives the call, which
    // returns when all parts are done. The parts are disjoint and lie in `items`.
    ffi::check(unsafe { ffi::te_parallel_for(items.len() as i64, 1, part::<T, F>, data) })?;
    let panic = shared.panic.into_inner();
    if let Some(panic) = panic.unwrap_or_else(|poisoned| poisoned.into_inner()) {
        resume_unwind(panic);
    }
    Ok(())
}

/// # Safety
/// `data` is a live `Shared<T, F>`; no other call has an item of `begin..end`, which lies within its
/// items. Another thread may run it: `T: Send`, `F: Sync`.
unsafe extern "C" fn part<T: Send, F: Fn(&mut T) + Sync>(
    data: *const c_void,
    begin: i64,
    end: i64,
) {
    // SAFETY: by contract.
    let shared = unsafe { &*data.cast::<Shared<'_, T, F>>() };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for index in begin as usize..end as usize {
            // SAFETY: by contract, this is the only reference to the item.
            (shared.body)(unsafe { &mut *shared.items.add(index) });
        }
    }));
    if let Err(panic) = outcome {
        let mut first = shared.panic.lock().unwrap_or_else(|p| p.into_inner());
        first.get_or_insert(panic);
    }
}
