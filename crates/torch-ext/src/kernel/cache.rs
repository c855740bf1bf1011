use std::marker::PhantomData;

use super::Element;

/// The right to write past the cache; see [`past_cache`].
#[derive(Debug, Clone, Copy)]
pub struct PastCache<'s> {
    /// What the processor can is 64 bytes at once (AVX-512F); otherwise 16.
    lines: bool,
    /// Neither sent nor shared: what it writes is in order for its own thread alone.
    own_thread: PhantomData<(&'s (), *mut ())>,
}

/// Runs `work`, which may write past the cache; on other processors than x86-64 nothing does.
///
/// Memory is then written without being read first, and what lies in the cache stays there: right for
/// more memory than the cache would keep until somebody reads it, and slower for less.
pub fn past_cache<R>(work: impl for<'s> FnOnce(PastCache<'s>) -> R) -> R {
    let _in_order = InOrder;
    #[cfg(target_arch = "x86_64")]
    let lines = is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    let lines = false;
    work(PastCache {
        lines,
        own_thread: PhantomData,
    })
}

impl PastCache<'_> {
    /// Writes `values` to `to`, one after the other: past the cache if both address and size of an array
    /// are multiples of what the processor writes at once, 16 or 64 bytes.
    #[inline(always)]
    pub fn write<T: Element, const N: usize>(
        self,
        to: &mut [[T; N]],
        values: impl Iterator<Item = [T; N]>,
    ) {
        // A loop for each width, as they are compiled to vectors of it.
        #[cfg(target_arch = "x86_64")]
        {
            let (address, size) = (to.as_ptr().addr(), size_of::<[T; N]>());
            let fits = |width| address.is_multiple_of(width) && size.is_multiple_of(width);
            if self.lines && fits(64) {
                for (to, values) in to.iter_mut().zip(values) {
                    // SAFETY: the processor has AVX-512F, and `to` is aligned to `fits`'s 64 bytes.
                    unsafe { write_lines(&values, to) };
                }
                return;
            }
            if fits(16) {
                for (to, values) in to.iter_mut().zip(values) {
                    // SAFETY: `to` is aligned to `fits`'s 16 bytes.
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

/// Asks for the memory around element `index`, to have it in the second cache when it is read. A hint: it
/// may lie beyond the end.
#[inline(always)]
pub fn prefetch<T: Element>(from: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let address = from.as_ptr().wrapping_add(index).cast();
        // SAFETY: every x86-64 processor has SSE, and no address is wrong for it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, index);
}

/// Waits, when it is dropped, for what was written past the cache. Until then it might become visible to
/// other threads after what this one writes next, such as the word that it is done. [`PastCache`] cannot
/// be taken out of the closure that this outlives.
struct InOrder;

impl Drop for InOrder {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has SSE.
        unsafe {
            std::arch::x86_64::_mm_sfence()
        };
    }
}

/// # Safety
/// The processor has AVX-512F. `to` is aligned to 64 bytes, and its size is a multiple.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn write_lines<T: Element, const N: usize>(values: &[T; N], to: &mut [T; N]) {
    use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_stream_si512};
    let from: *const __m512i = values.as_ptr().cast();
    let to: *mut __m512i = to.as_mut_ptr().cast();
    for line in 0..size_of::<[T; N]>() / 64 {
        // SAFETY: within the arrays; by contract. The elements are plain numbers.
        unsafe {
            let values = _mm512_loadu_si512(from.wrapping_add(line));
            _mm512_stream_si512(to.wrapping_add(line), values);
        }
    }
}

/// # Safety
/// `to` is aligned to 16 bytes, and its size is a multiple.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn write_parts<T: Element, const N: usize>(values: &[T; N], to: &mut [T; N]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    let from: *const __m128i = values.as_ptr().cast();
    let to: *mut __m128i = to.as_mut_ptr().cast();
    for part in 0..size_of::<[T; N]>() / 16 {
        // SAFETY: every x86-64 processor has SSE2. Within the arrays; by contract. The elements are plain
        // numbers.
        unsafe {
            let values = _mm_loadu_si128(from.wrapping_add(part));
            _mm_stream_si128(to.wrapping_add(part), values);
        }
    }
}
