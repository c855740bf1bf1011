//! Connects [`Function`] to the shim's graph node (`cpp/autograd.cpp`).
//!
//! Safety rules in addition to those in `ffi.rs`:
//!
//! - The function is passed as a pointer from `Box::into_raw`. The shim owns it from the call on and
//!   passes it to [`drop_function`] exactly once, on any thread: `F: Send`.
//! - [`backward`] borrows it, on any thread and possibly on two at once: `F: Sync`. It is not called
//!   after [`drop_function`]: the node releases the function under the same lock under which it calls it.
//! - A handle in [`BackwardCall::results`] is a tensor whose ownership Rust has given up; the shim
//!   deletes it.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_int, c_void};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{ptr, slice};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Backward, Forward, Function, Outputs, Result};
use crate::TorchError;
use crate::ffi::{self, BackwardCall, RawFunction, handles};

/// The Rust value that the node owns.
struct Boxed<F> {
    name: &'static str,
    function: F,
}

pub(super) fn apply<F: Function>(
    mut function: F,
    inputs: &[&Tensor],
) -> std::result::Result<Outputs, TorchError> {
    let name = function.name();
    let failed = |reason| TorchError::Function {
        name,
        pass: "forward",
        reason,
    };
    let before = versions(inputs)?;
    // SAFETY: the function takes no argument and reads a thread-local flag.
    let recording = unsafe { ffi::te_is_recording() } != 0;
    let needs_input_grad: Vec<bool> = inputs
        .iter()
        .map(|input| recording && input.requires_grad())
        .collect();
    let mut context = Forward {
        needs_input_grad: &needs_input_grad,
        saved: Vec::new(),
        non_differentiable: Vec::new(),
    };
    let outputs =
        tch::no_grad(|| guarded(|| function.forward(&mut context, inputs))).map_err(failed)?;
    let after = versions(inputs)?;
    if let Some(index) = (0..inputs.len()).find(|&index| before[index] != after[index]) {
        return Err(failed(format!("it changed input {index} in place").into()));
    }

    let (saved, non_differentiable) = (context.saved, context.non_differentiable);
    let twice = c_int::from(function.twice_differentiable());
    let c_name = CString::new(name).unwrap_or_default();
    let inputs: Vec<*const C_tensor> = inputs.iter().map(|input| input.as_ptr()).collect();
    let mut results = vec![ptr::null_mut(); outputs.len()];
    let raw = RawFunction {
        data: Box::into_raw(Box::new(Boxed { name, function })).cast(),
        backward: backward::<F>,
        drop: drop_function::<F>,
    };
    // SAFETY: the lists have the passed lengths and live for the call; `results` has room for one
    // handle per output; `raw` is as the module describes.
    ffi::check(unsafe {
        ffi::te_autograd_record(
            c_name.as_ptr(),
            raw,
            twice,
            inputs.as_ptr(),
            inputs.len(),
            handles(&outputs).as_ptr(),
            outputs.len(),
            handles(&saved).as_ptr(),
            saved.len(),
            handles(&non_differentiable).as_ptr(),
            non_differentiable.len(),
            results.as_mut_ptr(),
        )
    })?;
    Ok(results
        .into_iter()
        // SAFETY: on success each entry is a new handle that has no other owner.
        .map(|handle| unsafe { Tensor::from_ptr(handle) })
        .collect())
}

/// libtorch's counter of in-place changes, for each tensor.
fn versions(tensors: &[&Tensor]) -> std::result::Result<Vec<i64>, TorchError> {
    let versions = tensors.iter().map(|tensor| tensor.f_internal_version());
    Ok(versions.collect::<std::result::Result<_, _>>()?)
}

/// Runs user code and converts a panic to an error.
fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // Only the function may be in an inconsistent state after a panic, and its graph fails with it.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panic_text(&*panic).into()))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = (panic.downcast_ref::<&str>().copied())
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    match text {
        Some(text) => format!("panicked: {text}"),
        None => "panicked".to_owned(),
    }
}

/// # Safety
/// `data` is a live `Boxed<F>`; `call` is as the shim describes it.
unsafe extern "C" fn backward<F: Function>(
    data: *const c_void,
    call: *const BackwardCall,
) -> c_int {
    // SAFETY: by contract; see the module.
    let (boxed, call) = unsafe { (&*data.cast::<Boxed<F>>(), &*call) };
    let outcome = guarded(|| {
        // SAFETY: `call` comes from the shim.
        unsafe { run(&boxed.function, call) }.map_err(|error| error.to_string().into())
    });
    match outcome {
        Ok(()) => 0,
        Err(error) => ffi::fail(&format!(
            "autograd function `{}`, backward pass: {error}",
            boxed.name
        )),
    }
}

/// # Safety
/// As [`backward`].
unsafe fn run<F: Function>(function: &F, call: &BackwardCall) -> Result<()> {
    // SAFETY: each list has the length that is passed with it and lives for the call. A handle is null or
    // belongs to a live tensor, from which `clone_from_ptr` creates a new handle.
    let (gradients, saved, overwritable, needed) = unsafe {
        (
            list(call.gradients, call.outputs)
                .iter()
                .map(|&handle| clone(handle))
                .collect(),
            list(call.saved, call.saved_count)
                .iter()
                .map(|&handle| clone(handle))
                .collect(),
            flags(call.overwritable, call.saved_count),
            flags(call.needed, call.inputs),
        )
    };
    let context = Backward {
        needs_input_grad: &needed,
        overwritable: &overwritable,
        saved: RefCell::new(saved),
    };
    let results = function.backward(&context, &gradients)?;
    if results.len() != call.inputs {
        return Err(format!(
            "it returned {} gradients for {} inputs",
            results.len(),
            call.inputs
        )
        .into());
    }
    for (index, gradient) in results.into_iter().enumerate() {
        // In C++, an undefined tensor stands for `None`.
        let Some(gradient) = gradient.filter(Tensor::defined) else {
            continue;
        };
        // SAFETY: `results` has room for one handle per input, as checked above.
        unsafe { *call.results.add(index) = ManuallyDrop::new(gradient).as_mut_ptr() };
    }
    Ok(())
}

/// # Safety
/// There are `len` entries at `start`, which may be null if `len` is 0. They outlive `'a`.
unsafe fn list<'a, T>(start: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: by contract.
    unsafe { slice::from_raw_parts(start, len) }
}

/// # Safety
/// As [`list`].
unsafe fn flags(start: *const u8, len: usize) -> Vec<bool> {
    // SAFETY: by contract.
    unsafe { list(start, len) }
        .iter()
        .map(|&flag| flag != 0)
        .collect()
}

/// # Safety
/// `handle` is null, or belongs to a live tensor.
unsafe fn clone(handle: *const C_tensor) -> Option<Tensor> {
    // SAFETY: by contract; the callee only reads through the pointer.
    (!handle.is_null()).then(|| unsafe { Tensor::clone_from_ptr(handle.cast_mut()) })
}

/// # Safety
/// `data` is a `Boxed<F>` that is no longer in use.
unsafe extern "C" fn drop_function<F: Function>(data: *mut c_void) {
    // SAFETY: by contract; `data` comes from `Box::into_raw`.
    let boxed = unsafe { Box::from_raw(data.cast::<Boxed<F>>()) };
    // The panic of a destructor cannot be reported.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(boxed)));
}
