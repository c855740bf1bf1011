//! Declarations of the C++ shim (`cpp/*.cpp`), and helpers that every binding uses.
//!
//! Safety rules for all bindings of this crate:
//!
//! - A `*const C_tensor` comes from a live `&Tensor`, so it points to a valid `at::Tensor` for
//!   the duration of the call. The shim copies the handle (a reference count) and keeps no pointer.
//! - A list is passed as pointer and length of a `Vec` that outlives the call.
//! - An output pointer is written only on success. It then owns a new `at::Tensor`, which [`take`]
//!   passes to `Tensor::from_ptr`, its only owner.
//! - No C++ exception crosses the boundary: the shim converts it to status 1 and a thread-local message.
//! - No Rust panic crosses the boundary: a function that C++ calls catches it, and reports it in the
//!   same way ([`fail`]).

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;

/// An `at::Generator`; only used behind a pointer.
#[repr(C)]
pub(crate) struct RawGenerator {
    _opaque: [u8; 0],
}

/// A `c10::Event`; only used behind a pointer.
#[repr(C)]
pub(crate) struct RawEvent {
    _opaque: [u8; 0],
}

/// A `te_graph`; only used behind a pointer.
#[repr(C)]
pub(crate) struct RawGraph {
    _opaque: [u8; 0],
}

/// A `te_operators`; only used behind a pointer.
#[repr(C)]
pub(crate) struct RawOperators {
    _opaque: [u8; 0],
}

/// A `te_store`; only used behind a pointer.
#[repr(C)]
pub(crate) struct RawStore {
    _opaque: [u8; 0],
}

/// A `te_group`; only used behind a pointer.
#[repr(C)]
pub(crate) struct RawGroup {
    _opaque: [u8; 0],
}

/// A `te_reducer`; only used behind a pointer.
#[repr(C)]
pub(crate) struct RawReducer {
    _opaque: [u8; 0],
}

/// One call of a backward function (`te_backward_call`, which documents the ownership).
#[repr(C)]
pub(crate) struct BackwardCall {
    pub(crate) gradients: *const *const C_tensor,
    pub(crate) outputs: usize,
    pub(crate) saved: *const *const C_tensor,
    pub(crate) overwritable: *const u8,
    pub(crate) saved_count: usize,
    pub(crate) needed: *const u8,
    pub(crate) results: *mut *mut C_tensor,
    pub(crate) inputs: usize,
}

/// An autograd function, as passed to the shim (`te_function`).
#[repr(C)]
pub(crate) struct RawFunction {
    pub(crate) data: *mut c_void,
    pub(crate) backward: unsafe extern "C" fn(*const c_void, *const BackwardCall) -> c_int,
    pub(crate) drop: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    pub(crate) fn te_last_error() -> *const c_char;
    pub(crate) fn te_set_error(message: *const c_char);
    pub(crate) fn te_torch_version() -> *const c_char;

    pub(crate) fn te_generator_new(device: c_int, seed: u64, out: *mut *mut RawGenerator) -> c_int;
    pub(crate) fn te_generator_free(generator: *mut RawGenerator);
    pub(crate) fn te_generator_seed(generator: *mut RawGenerator, seed: u64) -> c_int;
    pub(crate) fn te_generator_state(
        generator: *mut RawGenerator,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn te_generator_set_state(
        generator: *mut RawGenerator,
        state: *const C_tensor,
    ) -> c_int;
    pub(crate) fn te_rand(
        generator: *mut RawGenerator,
        size: *const i64,
        rank: usize,
        dtype: c_int,
        device: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn te_randn(
        generator: *mut RawGenerator,
        size: *const i64,
        rank: usize,
        dtype: c_int,
        device: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn te_uniform_(
        generator: *mut RawGenerator,
        tensor: *const C_tensor,
        low: f64,
        high: f64,
    ) -> c_int;
    pub(crate) fn te_normal_(
        generator: *mut RawGenerator,
        tensor: *const C_tensor,
        mean: f64,
        std: f64,
    ) -> c_int;

    pub(crate) fn te_autocast_enter(
        device: c_int,
        dtype: c_int,
        previous_enabled: *mut c_int,
        previous_dtype: *mut c_int,
    ) -> c_int;
    pub(crate) fn te_autocast_leave(
        device: c_int,
        previous_enabled: c_int,
        previous_dtype: c_int,
    ) -> c_int;

    pub(crate) fn te_is_recording() -> c_int;
    pub(crate) fn te_bump_version(tensor: *const C_tensor) -> c_int;
    pub(crate) fn te_autograd_record(
        name: *const c_char,
        function: RawFunction,
        twice: c_int,
        inputs: *const *const C_tensor,
        input_count: usize,
        outputs: *const *const C_tensor,
        output_count: usize,
        saved: *const *const C_tensor,
        saved_count: usize,
        non_differentiable: *const *const C_tensor,
        non_differentiable_count: usize,
        results: *mut *mut C_tensor,
    ) -> c_int;

    pub(crate) fn te_parallel_for(
        count: i64,
        grain: i64,
        body: unsafe extern "C" fn(*const c_void, i64, i64),
        data: *const c_void,
    ) -> c_int;

    pub(crate) fn te_fused_adamw_(
        params: *const *const C_tensor,
        grads: *const *const C_tensor,
        exp_avgs: *const *const C_tensor,
        exp_avg_sqs: *const *const C_tensor,
        steps: *const *const C_tensor,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> c_int;
    pub(crate) fn te_ema_(
        averages: *const *const C_tensor,
        values: *const *const C_tensor,
        count: usize,
        decay: f64,
    ) -> c_int;
    pub(crate) fn te_grad_norm(
        grads: *const *const C_tensor,
        count: usize,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn te_clip_grads_(
        grads: *const *const C_tensor,
        count: usize,
        norm: *const C_tensor,
        max_norm: f64,
    ) -> c_int;
    pub(crate) fn te_clear_grads(params: *const *const C_tensor, count: usize) -> c_int;
    pub(crate) fn te_copy_(
        targets: *const *const C_tensor,
        sources: *const *const C_tensor,
        count: usize,
    ) -> c_int;

    pub(crate) fn te_current_stream(device: c_int, out: *mut *mut c_void) -> c_int;
    pub(crate) fn te_stream_current(device: c_int, id: *mut i64) -> c_int;
    pub(crate) fn te_stream_from_pool(device: c_int, high_priority: c_int, id: *mut i64) -> c_int;
    pub(crate) fn te_stream_exchange(device: c_int, id: i64, previous: *mut i64) -> c_int;
    pub(crate) fn te_device_exchange(device: c_int, previous: *mut c_int) -> c_int;
    pub(crate) fn te_event_record(device: c_int, id: i64, out: *mut *mut RawEvent) -> c_int;
    pub(crate) fn te_event_wait(event: *const RawEvent, device: c_int, id: i64) -> c_int;
    pub(crate) fn te_event_synchronize(event: *const RawEvent) -> c_int;
    pub(crate) fn te_event_free(event: *mut RawEvent);
    pub(crate) fn te_record_stream(tensor: *const C_tensor, device: c_int, id: i64) -> c_int;
    pub(crate) fn te_graph_new(out: *mut *mut RawGraph) -> c_int;
    pub(crate) fn te_graph_free(graph: *mut RawGraph);
    pub(crate) fn te_graph_begin(graph: *mut RawGraph) -> c_int;
    pub(crate) fn te_graph_end(graph: *mut RawGraph) -> c_int;
    pub(crate) fn te_graph_replay(graph: *mut RawGraph) -> c_int;
    pub(crate) fn te_set_grads(
        params: *const *const C_tensor,
        grads: *const *const C_tensor,
        count: usize,
    ) -> c_int;
    pub(crate) fn te_operators_begin(out: *mut *mut RawOperators) -> c_int;
    pub(crate) fn te_operators_end(
        operators: *mut RawOperators,
        data: *mut c_void,
        visit: unsafe extern "C" fn(*mut c_void, *const c_char, u64),
    ) -> c_int;
    pub(crate) fn te_library_dir(out: *mut c_char, capacity: usize) -> c_int;
    pub(crate) fn te_load_cuda() -> c_int;
    pub(crate) fn te_peak_memory(device: c_int, bytes: *mut u64) -> c_int;
    pub(crate) fn te_reserved_memory(device: c_int, bytes: *mut u64) -> c_int;
    pub(crate) fn te_reset_peak_memory(device: c_int) -> c_int;
    pub(crate) fn te_free_memory(device: c_int, bytes: *mut u64) -> c_int;
    pub(crate) fn te_synchronize(device: c_int) -> c_int;
    pub(crate) fn te_empty_cache(device: c_int) -> c_int;
    pub(crate) fn te_keep_freed_memory() -> c_int;
    pub(crate) fn te_give_back_freed_memory();
    pub(crate) fn te_set_tf32(products: c_int, convolutions: c_int) -> c_int;
    pub(crate) fn te_tf32(products: *mut c_int, convolutions: *mut c_int) -> c_int;
    pub(crate) fn te_deterministic(enabled: *mut c_int) -> c_int;
    pub(crate) fn te_set_deterministic(enabled: c_int) -> c_int;

    pub(crate) fn te_init_logging();
    pub(crate) fn te_store_connect(
        host: *const c_char,
        port: u16,
        serves: c_int,
        timeout_ms: u64,
        prefix: *const c_char,
        out: *mut *mut RawStore,
    ) -> c_int;
    pub(crate) fn te_store_free(store: *mut RawStore);
    pub(crate) fn te_store_set(
        store: *mut RawStore,
        key: *const c_char,
        value: *const u8,
        length: usize,
    ) -> c_int;
    pub(crate) fn te_store_get(
        store: *mut RawStore,
        key: *const c_char,
        receiver: *mut c_void,
        receive: unsafe extern "C" fn(*mut c_void, *const u8, usize),
    ) -> c_int;
    pub(crate) fn te_store_check(
        store: *mut RawStore,
        key: *const c_char,
        out: *mut c_int,
    ) -> c_int;
    pub(crate) fn te_store_add(
        store: *mut RawStore,
        key: *const c_char,
        value: i64,
        out: *mut i64,
    ) -> c_int;
    pub(crate) fn te_group_gloo(
        store: *mut RawStore,
        name: *const c_char,
        rank: c_int,
        size: c_int,
        timeout_ms: u64,
        interface: *const c_char,
        host: *const c_char,
        out: *mut *mut RawGroup,
    ) -> c_int;
    pub(crate) fn te_group_free(group: *mut RawGroup) -> c_int;
    pub(crate) fn te_all_reduce_(group: *mut RawGroup, tensor: *const C_tensor, op: c_int)
    -> c_int;
    pub(crate) fn te_broadcast_(
        group: *mut RawGroup,
        tensor: *const C_tensor,
        root: c_int,
    ) -> c_int;
    pub(crate) fn te_all_gather(
        group: *mut RawGroup,
        tensor: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn te_barrier(group: *mut RawGroup) -> c_int;
    pub(crate) fn te_reducer_new(
        group: *mut RawGroup,
        params: *const *const C_tensor,
        count: usize,
        loss: *const C_tensor,
        bucket_bytes: i64,
        dtype: c_int,
        out: *mut *mut RawReducer,
    ) -> c_int;
    pub(crate) fn te_reducer_free(reducer: *mut RawReducer) -> c_int;
    pub(crate) fn te_reducer_backward(reducer: *mut RawReducer, loss: *const C_tensor) -> c_int;
}

/// Converts a status of the shim to a result.
pub(crate) fn check(status: c_int) -> Result<(), TorchError> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: `te_last_error` returns a NUL-terminated string that lives until the next failing
    // call on this thread; it is copied before any other call.
    let message = unsafe { CStr::from_ptr(te_last_error()) };
    Err(TorchError::Libtorch(message.to_string_lossy().into_owned()))
}

/// Stores `message` for C++ and returns the status of a failure.
pub(crate) fn fail(message: &str) -> c_int {
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: a NUL-terminated string that lives for the call, which copies it.
    unsafe { te_set_error(message.as_ptr()) };
    1
}

/// Takes ownership of the tensor that a shim function wrote, if the function succeeded.
pub(crate) fn take(status: c_int, out: *mut C_tensor) -> Result<Tensor, TorchError> {
    check(status)?;
    // SAFETY: on success the shim wrote a `new at::Tensor` that has no other owner.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Borrowed handles of a list of tensors.
pub(crate) fn handles(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

/// PyTorch's number for a floating-point dtype (`c10::ScalarType`).
pub(crate) fn dtype(kind: Kind) -> Result<c_int, TorchError> {
    match kind {
        Kind::Half => Ok(5),
        Kind::Float => Ok(6),
        Kind::Double => Ok(7),
        Kind::BFloat16 => Ok(15),
        other => Err(TorchError::Dtype(other)),
    }
}

/// The shim's number for a device: -1 is the CPU, `n >= 0` is CUDA device `n`.
pub(crate) fn device(device: Device) -> Result<c_int, TorchError> {
    match device {
        Device::Cpu => Ok(-1),
        Device::Cuda(index) => c_int::try_from(index).map_err(|_| TorchError::Device(device)),
        other => Err(TorchError::Device(other)),
    }
}
