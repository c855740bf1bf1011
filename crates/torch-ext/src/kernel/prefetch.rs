//! Prefetching.

use super::Element;

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
