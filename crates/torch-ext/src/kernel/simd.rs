/// A loop that is worth compiling for several processors.
///
/// `run`, and all that it calls in its inner loops, must be `#[inline(always)]`: only what is inlined is
/// compiled anew. A sum whose order is written down, over an array of lanes, gives the same bits on each
/// of them, since nothing is reassociated, and a multiplication is fused with an addition only where
/// `mul_add` says so. (That is one instruction with AVX-512 and AVX2, and slow without.)
pub trait Vectorised {
    /// What it returns.
    type Output;

    /// The loop.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` as compiled for the widest vectors that the processor has.
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
            // SAFETY: the processor has what the function was compiled for.
            return unsafe { avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}
