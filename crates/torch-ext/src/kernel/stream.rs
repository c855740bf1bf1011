//! Non-temporal stores.

use std::marker::PhantomData;

use super::Element;

/// Memory that is written with non-temporal stores; see [`stream`].
#[derive(Debug)]
pub struct Stream<'s, T> {
    memory: &'s mut [T],
    /// Makes the type `!Send`: the thread that writes must execute the fence.
    own_thread: PhantomData<*mut ()>,
}

/// Whether the processor can write a whole cache line at once (AVX-512F). Then non-temporal stores are faster
/// than ordinary ones for memory that is larger than the cache, because they do not read it first. Narrower
/// ones gain nothing.
#[must_use]
pub fn streams() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Runs `work`, which can write `memory` with non-temporal stores: they do not read the memory first, and leave
/// the cache to other data.
///
/// Where [`streams`] is false, the stores are ordinary ones.
pub fn stream<T: Element, R>(memory: &mut [T], work: impl for<'s> FnOnce(Stream<'s, T>) -> R) -> R {
    let _fence = FenceOnDrop;
    work(Stream {
        memory,
        own_thread: PhantomData,
    })
}

impl<T: Element> Stream<'_, T> {
    /// Copies `values` to the memory from element `start` on.
    ///
    /// # Panics
    /// The values do not fit into the memory.
    #[inline]
    pub fn write(&mut self, start: usize, values: &[T]) {
        let to = &mut self.memory[start..][..values.len()];
        #[cfg(target_arch = "x86_64")]
        if streams() {
            // SAFETY: the processor has AVX-512F. Nothing reads the memory before the fence of `FenceOnDrop`: `self`
            // has the only reference to it, does not read it, cannot leave the closure or its thread, and
            // `stream` borrows the memory until the fence was executed.
            return unsafe { copy_lines(values, to) };
        }
        to.copy_from_slice(values);
    }
}

/// Executes a store fence when it is dropped. Without it, non-temporal stores might become visible to other
/// threads after this thread's later stores, such as a flag that the work is done.
struct FenceOnDrop;

impl Drop for FenceOnDrop {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has SSE.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

/// Copies `from` to `to`, of the same length: whole cache lines of `to` with non-temporal stores.
///
/// # Safety
/// The processor has AVX-512F. Before another thread reads `to`, this one must execute a store fence.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn copy_lines<T: Element>(from: &[T], to: &mut [T]) {
    use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_stream_si512};
    // SAFETY: elements are plain numbers, and any bits are a valid value of both types.
    let (first, lines, last) = unsafe { to.align_to_mut::<__m512i>() };
    let (from_first, from) = from.split_at(first.len());
    let (from_lines, from_last) = from.split_at(from.len() - last.len());
    first.copy_from_slice(from_first);
    last.copy_from_slice(from_last);
    let from_lines = from_lines.as_ptr().cast::<__m512i>();
    for (index, line) in lines.iter_mut().enumerate() {
        // SAFETY: `from_lines` has as many elements as `lines`, and `line` is aligned to a cache line.
        unsafe { _mm512_stream_si512(line, _mm512_loadu_si512(from_lines.add(index))) };
    }
}
