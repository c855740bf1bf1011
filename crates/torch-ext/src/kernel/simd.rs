//! Loops that are compiled for several instruction sets.

/// A loop that is compiled for several instruction sets.
///
/// `run`, and everything that it calls in its inner loops, must be `#[inline(always)]`: only inlined code is
/// compiled for each instruction set. A sum with an explicit order over an array of lanes has the same bits
/// with each of them: the compiler does not reassociate it, and fuses a multiplication with an addition only
/// where the code calls `mul_add`. (`mul_add` is one instruction with AVX-512 and AVX2, and slow without.)
pub trait Vectorised {
    /// Result of the loop.
    type Output;

    /// Runs the loop.
    fn run(self) -> Self::Output;
}

/// Runs `kernel`, compiled for the widest vectors that the processor supports.
pub fn vectorised<K: Vectorised>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma")]
        fn avx512<K: Vectorised>(kernel: K) -> K::Output {
            kernel.run()
        }

        #[target_feature(enable = "avx2,fma")]
        fn avx2<K: Vectorised>(kernel: K) -> K::Output {
            kernel.run()
        }

        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
        {
            // SAFETY: the processor has the features that the function was compiled for.
            return unsafe { avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}
