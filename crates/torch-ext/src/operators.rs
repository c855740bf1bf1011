//! Counts of the operators of libtorch that code calls. Tests state with them what an operation costs, such as that
//! it copies no tensor.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::ptr;

use crate::TorchError;
use crate::ffi::{self, RawOperators};

/// Number of calls of each operator, such as `aten::copy_`.
pub type Counts = BTreeMap<String, u64>;

/// Runs `body`, and counts the operators that this thread calls meanwhile, including those that operators call
/// themselves. A backward pass on the CPU runs on the thread that starts it, and is counted.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::operators;
///
/// # fn main() -> Result<(), torch_ext::TorchError> {
/// let x = Tensor::ones([2, 3], (Kind::Float, Device::Cpu)).transpose(0, 1);
/// let (_copy, counts) = operators::count(|| x.contiguous())?;
/// assert_eq!(counts.get("aten::copy_"), Some(&1));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// This thread already counts; memory is exhausted.
pub fn count<T>(body: impl FnOnce() -> T) -> Result<(T, Counts), TorchError> {
    let mut raw = ptr::null_mut();
    // SAFETY: `raw` is valid for writes.
    ffi::check(unsafe { ffi::te_operators_begin(&mut raw) })?;
    let mut counting = Counting {
        raw,
        counts: Counts::new(),
        _not_send: PhantomData,
    };
    let value = body();
    counting.end()?;
    Ok((value, std::mem::take(&mut counting.counts)))
}

/// Ends the counting when it is dropped, also if `body` panics.
struct Counting {
    /// Null after the end.
    raw: *mut RawOperators,
    counts: Counts,
    // The counts are thread-local: they must be freed on the thread that created them.
    _not_send: PhantomData<*const ()>,
}

impl Counting {
    fn end(&mut self) -> Result<(), TorchError> {
        let raw = std::mem::replace(&mut self.raw, ptr::null_mut());
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: created by `te_operators_begin` on this thread, and freed once. `visit` gets the counts of this value,
        // which nothing else uses during the call.
        ffi::check(unsafe { ffi::te_operators_end(raw, (&raw mut self.counts).cast(), visit) })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // A failure cannot be reported here.
        let _ended = self.end();
    }
}

/// # Safety
/// `counts` are [`Counts`] that nothing else uses, and `name` is NUL-terminated.
unsafe extern "C" fn visit(counts: *mut c_void, name: *const c_char, count: u64) {
    // SAFETY: by contract.
    let (counts, name) = unsafe { (&mut *counts.cast::<Counts>(), CStr::from_ptr(name)) };
    counts.insert(name.to_string_lossy().into_owned(), count);
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn operators_of_both_passes_are_counted() {
        let x = Tensor::ones([2, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let ((), counts) = count(|| {
            let parts = x.chunk(2, 1);
            (&parts[0] * &parts[1]).sum(Kind::Float).backward();
        })
        .unwrap();
        assert_eq!(counts["aten::split"], 1);
        assert_eq!(counts["aten::cat"], 1, "the backward pass of the split");
    }

    #[test]
    fn counting_ends_with_its_body() {
        let x = Tensor::ones([2], (Kind::Float, Device::Cpu));
        assert!(catch_unwind(AssertUnwindSafe(|| count(|| panic!("on purpose")))).is_err());
        let ((), counts) =
            count(|| assert!(count(|| ()).is_err(), "counting within counting")).unwrap();
        assert!(counts.is_empty());
        let _uncounted = x.neg();
        let (_, counts) = count(|| x.neg()).unwrap();
        assert_eq!(counts["aten::neg"], 1);
    }
}
