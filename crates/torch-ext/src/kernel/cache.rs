use std::marker::PhantomData;
use std::ops::Range;

use super::Element;

/// Memory that is written past the cache; see [`past_cache`].
#[derive(Debug)]
pub struct PastCache<'s, T> {
    memory: &'s mut [T],
    /// The processor writes 64 bytes at once (it has AVX-512F), and not 16 only.
    lines: bool,
    /// Not sent: the thread that writes is the one that waits.
    own_thread: PhantomData<*mut ()>,
}

/// Runs `work`, which may write `memory` past the cache; on other processors than x86-64 it goes through it.
///
/// Memory is then written without being read first, and what lies in the cache stays there: right for
/// more memory than the cache would keep until somebody reads it, and slower for less.
pub fn past_cache<T: Element, R>(
    memory: &mut [T],
    work: impl for<'s> FnOnce(PastCache<'s, T>) -> R,
) -> R {
    let _in_order = InOrder;
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
    /// Writes `values`, one after the other, to the elements of `range`, which is cut into arrays; `rest` is
    /// asked for each of the last elements, which are no whole array, and given their places in `range`.
    ///
    /// Past the cache go arrays whose address and size are multiples of what the processor writes at once, 16
    /// or 64 bytes.
    ///
    /// # Panics
    /// There are no such elements.
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
        // A loop for each width, as they are compiled to vectors of it.
        #[cfg(target_arch = "x86_64")]
        {
            let (address, size) = (to.as_ptr().addr(), size_of::<[T; N]>());
            let fits = |width| address.is_multiple_of(width) && size.is_multiple_of(width);
            if self.lines && fits(64) {
                for (to, values) in to.iter_mut().zip(values) {
                    // SAFETY: the processor has AVX-512F, and `to` is aligned to `fits`'s 64 bytes. Nobody
                    // reads it before `InOrder` has waited: `memory` is borrowed for longer.
                    unsafe { write_lines(&values, to) };
                }
                return;
            }
            if fits(16) {
                for (to, values) in to.iter_mut().zip(values) {
                    // SAFETY: `to` is aligned to `fits`'s 16 bytes; as above.
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

/// Waits, when it is dropped, for what was written past the cache: until then it might become visible to
/// other threads after what this one writes next, such as the word that it is done.
///
/// Nobody can read it before: [`PastCache`], which does not, has the only reference to the memory, cannot
/// leave the closure, and [`past_cache`] borrows the memory until this is dropped.
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
