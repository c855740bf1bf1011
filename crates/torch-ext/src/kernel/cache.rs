//! Non-temporal stores and prefetching.

use std::marker::PhantomData;
use std::ops::Range;

use super::Element;

/// Memory that is written without going through the cache; see [`past_cache`].
#[derive(Debug)]
pub struct PastCache<'s, T> {
    memory: &'s mut [T],
    /// Whether the processor can write 64 bytes at once (AVX-512F) instead of 16.
    lines: bool,
    /// Makes the type `!Send`: the thread that writes must execute the fence.
    own_thread: PhantomData<*mut ()>,
}

/// Runs `work`, which may write `memory` with non-temporal stores, without going through the cache. On
/// processors other than x86-64, ordinary stores are used.
///
/// Non-temporal stores do not read the memory first and do not evict data from the cache. They are faster
/// for more memory than the cache would keep until it is read, and slower for less.
pub fn past_cache<T: Element, R>(
    memory: &mut [T],
    work: impl for<'s> FnOnce(PastCache<'s, T>) -> R,
) -> R {
    let _fence = FenceOnDrop;
    #[cfg(target_arch = "x86_64")]
    let lines = is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    let lines = false;
    work(PastCache {
        memory,
        lines,
        own_thread: PhantomData,
    })
}

impl<T: Element> PastCache<'_, T> {
    /// Writes `values` in order to the elements of `range`, one array of `N` elements after another. The
    /// last elements, fewer than `N`, are computed by `rest` from their index in `range`.
    ///
    /// Arrays go past the cache if their address and size are multiples of the width that the processor writes
    /// at once, 16 or 64 bytes.
    ///
    /// # Panics
    /// `range` is outside the memory.
    #[inline(always)]
    pub fn write<const N: usize>(
        &mut self,
        range: Range<usize>,
        values: impl Iterator<Item = [T; N]>,
        rest: impl Fn(usize) -> T,
    ) {
        let (to, last) = self.memory[range].as_chunks_mut::<N>();
        let done = to.len() * N;
        for (index, to) in last.iter_mut().enumerate() {
            *to = rest(done + index);
        }
        // One loop per width, so that the compiler uses vectors of that width.
        #[cfg(target_arch = "x86_64")]
        {
            let (address, size) = (to.as_ptr().addr(), size_of::<[T; N]>());
            let fits = |width| address.is_multiple_of(width) && size.is_multiple_of(width);
            if self.lines && fits(64) {
                for (to, values) in to.iter_mut().zip(values) {
                    // SAFETY: the processor has AVX-512F, and `fits` checked the alignment of `to` to 64 bytes.
                    // Nothing reads it before the fence of `FenceOnDrop`: `memory` is borrowed for longer.
                    unsafe { write_lines(&values, to) };
                }
                return;
            }
            if fits(16) {
                for (to, values) in to.iter_mut().zip(values) {
                    // SAFETY: `fits` checked the alignment of `to` to 16 bytes; as above.
                    unsafe { write_parts(&values, to) };
                }
                return;
            }
        }
        for (to, values) in to.iter_mut().zip(values) {
            *to = values;
        }
    }
}

/// Prefetches the memory around element `index` into the second-level cache. This is only a hint: `index` may
/// be beyond the end.
#[inline(always)]
pub fn prefetch<T: Element>(from: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let address = from.as_ptr().wrapping_add(index).cast();
        // SAFETY: every x86-64 processor has SSE, and prefetching any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, index);
}

/// Executes a store fence when it is dropped. Without it, non-temporal stores might become visible to other
/// threads after this thread's later stores, such as a flag that the work is done.
///
/// No code can read the memory before the fence: [`PastCache`] has the only reference to it, does not read
/// it, and cannot leave the closure, and [`past_cache`] borrows the memory until this is dropped.
struct FenceOnDrop;

impl Drop for FenceOnDrop {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has SSE.
        unsafe {
            std::arch::x86_64::_mm_sfence()
        };
    }
}

/// # Safety
/// The processor has AVX-512F. `to` is aligned to 64 bytes, and its size is a multiple of 64 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn write_lines<T: Element, const N: usize>(values: &[T; N], to: &mut [T; N]) {
    use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_stream_si512};
    let from: *const __m512i = values.as_ptr().cast();
    let to: *mut __m512i = to.as_mut_ptr().cast();
    for line in 0..size_of::<[T; N]>() / 64 {
        // SAFETY: by contract, the accesses are within the arrays. The elements are plain numbers.
        unsafe {
            let values = _mm512_loadu_si512(from.wrapping_add(line));
            _mm512_stream_si512(to.wrapping_add(line), values);
        }
    }
}

/// # Safety
/// `to` is aligned to 16 bytes, and its size is a multiple of 16 bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn write_parts<T: Element, const N: usize>(values: &[T; N], to: &mut [T; N]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    let from: *const __m128i = values.as_ptr().cast();
    let to: *mut __m128i = to.as_mut_ptr().cast();
    for part in 0..size_of::<[T; N]>() / 16 {
        // SAFETY: every x86-64 processor has SSE2. By contract, the accesses are within the arrays. The
        // elements are plain numbers.
        unsafe {
            let values = _mm_loadu_si128(from.wrapping_add(part));
            _mm_stream_si128(to.wrapping_add(part), values);
        }
    }
}
