//! A kernel that can be launched.

use std::ffi::c_void;
use std::ptr;

use tch::{Device, Kind, Tensor};

use super::driver;
use super::emulator;
use super::error::CudaError;
use super::parameters::{Parameter, parameters};
use super::program::{BLOCK, Program};
use crate::kernel::row_stride;
use crate::{TorchError, ffi};

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// The address of a contiguous tensor's first element.
    Tensor(&'a Tensor),
    /// The address of the first row of a tensor with contiguous rows ([`row_stride`]). The kernel also needs the
    /// distance between the rows.
    Rows(&'a Tensor),
    /// A null pointer.
    Null,
    /// An `int`.
    Int(i64),
    /// A `float`.
    Float(f64),
    /// A `double`.
    Double(f64),
}

/// A kernel of a program on one device: its function and the types of its parameters. A launch looks nothing up.
#[derive(Debug)]
pub struct Kernel {
    name: &'static str,
    device: Device,
    function: Function,
    parameters: Vec<Parameter>,
}

/// The function of a kernel.
#[derive(Debug)]
pub(super) enum Function {
    Device(driver::Function),
    Emulated(emulator::Function),
}

impl Kernel {
    /// The kernel `name` of `program`, whose `function` is on `device`.
    pub(super) fn new(
        program: &Program,
        name: &'static str,
        device: Device,
        function: Function,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            name,
            device,
            function,
            parameters: parameters(program, name)?,
        })
    }

    /// Queues the kernel on the current stream of its device, with `blocks` blocks of [`BLOCK`] threads and with
    /// `arguments` in the order of its parameters.
    ///
    /// Number, types and dtypes of the arguments are checked. How far the kernel reads and writes is not: a mistake in
    /// that corrupts memory of the device, or causes an error in a later call; emulated kernels run on memory of this
    /// process.
    ///
    /// # Errors
    /// The number of arguments is not that of the parameters, or an argument has another type or dtype than its
    /// parameter; a tensor is undefined, on another device or not contiguous; a number is out of range; the launch
    /// fails.
    ///
    /// # Safety
    /// - An argument is null only where the kernel accepts it, and a pointer to a type that is not a dtype, such as a
    ///   struct, gets a tensor that holds values of this type.
    /// - With these arguments and this number of blocks, the kernel stays within the tensors. Tensors that it
    ///   writes share no memory with each other or with tensors that it reads, except where the kernel allows it.
    /// - No tensor that it writes is in use on another stream or, if the kernel is emulated, on another thread.
    pub unsafe fn launch(&self, blocks: i64, arguments: &[Argument<'_>]) -> Result<(), TorchError> {
        let blocks = u32::try_from(blocks)
            .ok()
            .filter(|blocks| (1..1 << 31).contains(blocks))
            .ok_or_else(|| self.refused(format!("{blocks} blocks")))?;
        let mut values = self.values(arguments)?;
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(Value::address).collect();
        match &self.function {
            Function::Device(function) => {
                let stream = current_stream(self.device)?;
                // SAFETY: the pointers refer to `values`, which outlive the call, and have the types of the kernel's
                // parameters. The stream is libtorch's, on this device, as are the tensors; what the kernel does with
                // them is the caller's promise. The allocator reuses memory in stream order, so a tensor may be dropped
                // before the kernel has run.
                unsafe { function.launch(blocks, BLOCK as u32, stream, &mut pointers)? };
            }
            Function::Emulated(function) => {
                // SAFETY: as above, but the values are host addresses of tensors that are borrowed until the
                // kernel has ended.
                unsafe { function.launch(self.name, blocks, BLOCK as u32, &mut pointers)? };
            }
        }
        Ok(())
    }

    fn values(&self, arguments: &[Argument<'_>]) -> Result<Vec<Value>, TorchError> {
        if arguments.len() != self.parameters.len() {
            let (found, expected) = (arguments.len(), self.parameters.len());
            return Err(self.refused(format!("{found} arguments instead of {expected}")));
        }
        let pairs = arguments.iter().zip(&self.parameters);
        pairs
            .enumerate()
            .map(|(index, (argument, &parameter))| {
                self.value(argument, parameter)
                    .map_err(|reason| self.refused(format!("argument {index} {reason}")))
            })
            .collect()
    }

    fn value(&self, argument: &Argument<'_>, parameter: Parameter) -> Result<Value, String> {
        Ok(match (*argument, parameter) {
            (Argument::Tensor(tensor), Parameter::Pointer(kind)) => {
                self.check_tensor(tensor, kind)?;
                if !tensor.is_contiguous() {
                    return Err(format!("of size {:?} is not contiguous", tensor.size()));
                }
                Value::Pointer(tensor.data_ptr())
            }
            (Argument::Rows(tensor), Parameter::Pointer(kind)) => {
                self.check_tensor(tensor, kind)?;
                if row_stride(tensor).is_none() {
                    return Err(format!(
                        "of size {:?} has no contiguous rows",
                        tensor.size()
                    ));
                }
                Value::Pointer(tensor.data_ptr())
            }
            (Argument::Null, Parameter::Pointer(_)) => Value::Pointer(ptr::null_mut()),
            (Argument::Int(value), Parameter::Int) => Value::Int(
                i32::try_from(value)
                    .map_err(|_| format!("is {value}, which does not fit an `int`"))?,
            ),
            (Argument::Float(value), Parameter::Float) => Value::Float(value as f32),
            (Argument::Double(value), Parameter::Double) => Value::Double(value),
            (argument, parameter) => {
                return Err(format!("is {argument:?}, the parameter {parameter:?}"));
            }
        })
    }

    fn check_tensor(&self, tensor: &Tensor, kind: Option<Kind>) -> Result<(), String> {
        if !tensor.defined()
            || tensor.device() != self.device
            || tensor.is_sparse()
            || tensor.is_mkldnn()
        {
            return Err(format!("is not dense or not on {:?}", self.device));
        }
        let found = tensor.f_kind().map_err(|error| error.to_string())?;
        match kind {
            Some(kind) if kind != found => Err(format!("is {found:?}, the parameter {kind:?}")),
            _ => Ok(()),
        }
    }

    fn refused(&self, reason: String) -> TorchError {
        let kernel = self.name.to_owned();
        CudaError::Argument { kernel, reason }.into()
    }
}

/// The stream on which this thread's operators run on a CUDA device (a `cudaStream_t`).
fn current_stream(device: Device) -> Result<*mut c_void, TorchError> {
    let mut stream = ptr::null_mut();
    // SAFETY: `stream` is valid for writes.
    ffi::check(unsafe { ffi::te_current_stream(ffi::device(device)?, &mut stream) })?;
    Ok(stream)
}

/// An argument in its memory representation.
enum Value {
    Pointer(*mut c_void),
    Int(i32),
    Float(f32),
    Double(f64),
}

impl Value {
    fn address(&mut self) -> *mut c_void {
        match self {
            Self::Pointer(value) => ptr::from_mut(value).cast(),
            Self::Int(value) => ptr::from_mut(value).cast(),
            Self::Float(value) => ptr::from_mut(value).cast(),
            Self::Double(value) => ptr::from_mut(value).cast(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cuda_there_is_no_current_stream() {
        assert!(matches!(
            current_stream(Device::Cuda(0)),
            Err(TorchError::Libtorch(_))
        ));
        assert!(current_stream(Device::Mps).is_err());
    }

    mod needs_cuda {
        use super::*;

        #[test]
        #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
        fn the_current_stream_is_the_default_one() {
            crate::device::load_cuda().unwrap();
            // The handle of the default stream is null.
            assert!(current_stream(Device::Cuda(0)).unwrap().is_null());
        }
    }
}
