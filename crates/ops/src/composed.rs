//! The switch that replaces kernels by compositions.

use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with every operation of this crate composed of libtorch's operators. Results differ from those of the
/// kernels by rounding.
///
/// The switch applies to the calling thread. A backward pass uses the form of its forward pass, wherever it runs.
///
/// ```
/// use tch::{Device, Kind, Tensor};
///
/// # fn main() -> Result<(), torch_ext::TorchError> {
/// let x = Tensor::randn([3, 8], (Kind::Float, Device::Cpu));
/// let composed = ops::composed(|| ops::gelu(&x))?;
/// assert_eq!(composed, x.gelu("tanh"));
/// assert!(composed.allclose(&ops::gelu(&x)?, 1e-5, 1e-6, false));
/// # Ok(())
/// # }
/// ```
pub fn composed<T>(body: impl FnOnce() -> T) -> T {
    composed_if(true, body)
}

/// Runs `body` as in [`composed`] if `condition` is true. Otherwise `body` runs in the mode of the caller.
pub fn composed_if<T>(condition: bool, body: impl FnOnce() -> T) -> T {
    let _guard = condition.then(Guard::enter);
    body()
}

/// Whether this thread is inside of [`composed`].
pub(crate) fn is_composed() -> bool {
    COMPOSED.get()
}

/// Restores the previous mode when it is dropped, also if `body` panics.
struct Guard {
    previous: bool,
    // The mode is thread-local: the guard must be dropped on the thread that created it.
    _not_send: PhantomData<*const ()>,
}

impl Guard {
    fn enter() -> Self {
        Self {
            previous: COMPOSED.replace(true),
            _not_send: PhantomData,
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        COMPOSED.set(self.previous);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn the_switch_ends_with_its_body() {
        assert!(!is_composed());
        composed(|| {
            composed_if(false, || assert!(is_composed()));
            composed(|| assert!(is_composed()));
            assert!(is_composed());
        });
        assert!(!is_composed());
        assert!(catch_unwind(|| composed(|| panic!("on purpose"))).is_err());
        assert!(!is_composed());
    }

    #[test]
    fn other_threads_keep_their_mode() {
        composed(|| {
            let other = std::thread::spawn(is_composed).join();
            assert!(matches!(other, Ok(false)));
        });
    }
}
