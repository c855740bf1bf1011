//! Collective operations.

use std::cell::Cell;
use std::ffi::CString;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::{Device, Tensor};

use super::store::{c_string, milliseconds};
use super::{Store, World, nccl};
use crate::TorchError;
use crate::ffi::{self, RawGroup};

/// How values of several processes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// The sum.
    Sum,
    /// The smallest value.
    Min,
    /// The largest value.
    Max,
}

impl Reduce {
    /// The number in `c10d::ReduceOp`.
    fn number(self) -> i32 {
        match self {
            Self::Sum => 0,
            Self::Min => 3,
            Self::Max => 4,
        }
    }
}

/// Processes that call the same collective operations in the same order.
///
/// Each operation waits until all processes have called it, and fails after the group's timeout, or as soon as the
/// connection to another process ends; operations on CUDA tensors differ ([`nccl`](Self::nccl)). After a failure, the group
/// must not be used again. It may be moved to another thread, but not be shared: the order of operations must be the same
/// in all processes.
#[derive(Debug)]
pub struct ProcessGroup {
    raw: NonNull<RawGroup>,
    world: World,
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: c10d's groups have no thread of their own that a caller must be on; `&ProcessGroup` stays on one thread.
unsafe impl Send for ProcessGroup {}

impl ProcessGroup {
    /// Connects the processes of `world` with Gloo, for tensors on the CPU. `name` distinguishes groups with the same
    /// store.
    ///
    /// Gloo listens on the network interface that `GLOO_SOCKET_IFNAME` names, else on the loopback interface if the
    /// store is there, else on that of the machine's name.
    ///
    /// # Errors
    /// The other processes do not connect within `timeout`; the network interface does not exist.
    pub fn gloo(
        store: &Store,
        world: &World,
        name: &str,
        timeout: Duration,
    ) -> Result<Self, TorchError> {
        let name = c_string(name)?;
        let interface = std::env::var("GLOO_SOCKET_IFNAME")
            .ok()
            .filter(|name| !name.is_empty())
            .map(|name| c_string(&name))
            .transpose()?;
        let host = is_loopback(&world.address)
            .then(|| c_string(&world.address))
            .transpose()?;
        let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |t| t.as_ptr());
        let mut out = ptr::null_mut();
        // SAFETY: the store is alive and the group takes its own reference; the strings live for the call; `out` is
        // valid for writes.
        let status = unsafe {
            ffi::te_group_gloo(
                store.raw(),
                name.as_ptr(),
                number(world.rank)?,
                number(world.size)?,
                milliseconds(timeout),
                pointer(&interface),
                pointer(&host),
                &mut out,
            )
        };
        Ok(Self {
            raw: world.take(|| "connecting to the other ranks".to_owned(), status, out)?,
            world: world.clone(),
            not_sync: PhantomData,
        })
    }

    /// Checks that this machine has what [`nccl`](Self::nccl) needs for `device`, without the other processes.
    ///
    /// # Errors
    /// [`TorchError::Nccl`] if CUDA, NCCL, the device or the plugin is missing.
    pub fn check_nccl(device: Device) -> Result<(), TorchError> {
        nccl::device_index(device)?;
        nccl::plugin()?;
        Ok(())
    }

    /// Connects the processes of `world` with NCCL for tensors on `device`, a CUDA device that no other process of the
    /// group uses, and with Gloo for tensors on the CPU (see [`gloo`](Self::gloo)). `name` distinguishes groups with the
    /// same store.
    ///
    /// NCCL's part of libtorch is loaded at run time by a plugin, `libtorch_ext_nccl.so` beside libtorch, which
    /// `cargo xtask nccl` builds. `IREPA_NCCL_PLUGIN` names another file.
    ///
    /// Operations on CUDA tensors are queued like other work on the device. They return before they are done, and work
    /// that is queued later on the current stream waits for them. Dropping the group ends NCCL when what is queued on the
    /// current stream is done; call [`barrier`](Self::barrier) before, so that the other processes are done too.
    ///
    /// If an operation on the device does not end within `timeout`, or NCCL loses the connection to another rank, then c10d
    /// ends this process (`SIGABRT`) with a message on standard error that names this rank and the operation: the
    /// device waits without end, so no later call could return. With the variable `TORCH_NCCL_BLOCKING_WAIT=1`, each operation
    /// waits on the CPU instead, and returns the error, but the device is then idle after each operation.
    ///
    /// # Errors
    /// [`TorchError::Nccl`] if CUDA, NCCL, the device or the plugin is missing; the other processes do not connect within
    /// `timeout`.
    pub fn nccl(
        store: &Store,
        world: &World,
        name: &str,
        device: Device,
        timeout: Duration,
    ) -> Result<Self, TorchError> {
        // What is missing on this machine is found before the others are waited for.
        let index = nccl::device_index(device)?;
        let attach = nccl::plugin()?;
        let group = Self::gloo(store, world, name, timeout)?;
        let name = c_string(&format!("{name}/nccl"))?;
        // SAFETY: group and store are alive, and no other thread uses the group; the strings live for the call. The
        // function checks that its types are those of this version of libtorch. It may set variables of c10d in the
        // environment, as NCCL itself does when it starts.
        let status = unsafe {
            attach(
                group.raw(),
                store.raw(),
                name.as_ptr(),
                number(world.rank)?,
                number(world.size)?,
                milliseconds(timeout),
                index,
                ffi::te_torch_version(),
                ffi::te_set_error,
            )
        };
        group.check("connecting to the other ranks with NCCL", status)?;
        Ok(group)
    }

    pub(super) fn raw(&self) -> *mut RawGroup {
        self.raw.as_ptr()
    }

    /// Returns which process this is.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Replaces `tensor` by the sum, minimum or maximum of the processes' tensors, which must have the same shape and
    /// dtype. No gradient is recorded.
    ///
    /// # Errors
    /// A process ended or did not call it within the timeout; the tensor is not contiguous or not on the group's device.
    pub fn all_reduce_(&self, tensor: &Tensor, how: Reduce) -> Result<(), TorchError> {
        // SAFETY: group and tensor live for the call, which waits for the end of the operation. On a CUDA device, the
        // current stream waits, and c10d holds the tensor until then.
        let status = unsafe { ffi::te_all_reduce_(self.raw(), tensor.as_ptr(), how.number()) };
        self.check("an all-reduce", status)
    }

    /// Replaces `tensor` by that of rank `root`, which must have the same shape and dtype.
    ///
    /// # Errors
    /// As for [`all_reduce_`](Self::all_reduce_); there is no such rank.
    pub fn broadcast_(&self, tensor: &Tensor, root: usize) -> Result<(), TorchError> {
        // SAFETY: as in `all_reduce_`.
        let status = unsafe { ffi::te_broadcast_(self.raw(), tensor.as_ptr(), number(root)?) };
        self.check("a broadcast", status)
    }

    /// Returns the tensors of all processes, in the order of their ranks. They must have the same shape and dtype.
    ///
    /// # Errors
    /// As for [`all_reduce_`](Self::all_reduce_).
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, TorchError> {
        let mut out = vec![ptr::null_mut(); self.world.size];
        // SAFETY: as in `all_reduce_`; `out` has room for a pointer of each rank.
        let status = unsafe { ffi::te_all_gather(self.raw(), tensor.as_ptr(), out.as_mut_ptr()) };
        self.check("an all-gather", status)?;
        let tensors = out.into_iter();
        // SAFETY: on success, every pointer is a `new at::Tensor` without another owner.
        Ok(tensors
            .map(|tensor| unsafe { Tensor::from_ptr(tensor) })
            .collect())
    }

    /// Waits for all processes, and for the work that is queued on the current streams of their devices.
    ///
    /// # Errors
    /// A process ended or did not call it within the timeout, or its device was not done.
    pub fn barrier(&self) -> Result<(), TorchError> {
        // SAFETY: the group lives for the call.
        let status = unsafe { ffi::te_barrier(self.raw()) };
        self.check("a barrier", status)
    }

    fn check(&self, operation: &str, status: i32) -> Result<(), TorchError> {
        self.world.check(|| operation.to_owned(), status)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: `te_group_gloo` made it, and nothing uses it after this. A reducer holds its own reference.
        let status = unsafe { ffi::te_group_free(self.raw()) };
        if let Err(error) = ffi::check(status) {
            tracing::debug!("the group did not end cleanly: {error}");
        }
    }
}

fn is_loopback(address: &str) -> bool {
    address == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn number(rank: usize) -> Result<i32, TorchError> {
    i32::try_from(rank).map_err(|_| TorchError::Libtorch(format!("{rank} is not a rank")))
}
