// Shared code of kernels over tokens. A token has WIDTH numbers. WARPS warps of a block hold one token in
// their registers, so a block processes TOKENS tokens at once. Each thread holds PIECES vectors of VEC
// numbers: every STRIDE-th vector of the token, so that neighbouring threads read neighbouring addresses.
//
// Each program defines WIDTH, VEC (a divisor of WIDTH) and WARPS (1, 2, 4 or 8).
#pragma once

constexpr int WARP = 32;
constexpr int BLOCK = 256;
constexpr int STRIDE = WARP * WARPS;
constexpr int TOKENS = BLOCK / STRIDE;
constexpr int VECTORS = WIDTH / VEC;
constexpr int PIECES = (VECTORS + STRIDE - 1) / STRIDE;
constexpr unsigned ALL = 0xffffffffu;

#ifndef KERNEL
// At least two blocks per multiprocessor: while one waits at a barrier, the other loads.
#define KERNEL(name, parameters) extern "C" __global__ void __launch_bounds__(BLOCK, 2) name parameters
#endif

// The upper half of a float32.
struct bf16 {
  unsigned short bits;
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline bf16 narrow<bf16>(float x) {
  bf16 y;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  const unsigned bits = __float_as_uint(x);
  y.bits = x != x ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#endif
  return y;
}

// Types that one instruction reads or writes.
template <int BYTES> struct Raw;
template <> struct Raw<2> { typedef unsigned short type; };
template <> struct Raw<4> { typedef unsigned type; };
template <> struct Raw<8> { typedef uint2 type; };
template <> struct Raw<16> { typedef uint4 type; };
template <typename T> union Vector {
  typename Raw<VEC * sizeof(T)>::type raw;
  T values[VEC];
};

// Loads vector `index` of a row that is read again later.
template <typename T> __device__ inline void load(const T *row, int index, float (&x)[VEC]) {
  Vector<T> vector;
  vector.raw = reinterpret_cast<const typename Raw<VEC * sizeof(T)>::type *>(row)[index];
  for (int i = 0; i < VEC; ++i)
    x[i] = widen(vector.values[i]);
}

// Loads vector `index` of a row that is not read again; it is evicted from the cache first.
template <typename T> __device__ inline void load_once(const T *row, int index, float (&x)[VEC]) {
  Vector<T> vector;
  vector.raw = __ldcs(reinterpret_cast<const typename Raw<VEC * sizeof(T)>::type *>(row) + index);
  for (int i = 0; i < VEC; ++i)
    x[i] = widen(vector.values[i]);
}

// Stores vector `index` of a row.
template <typename T> __device__ inline void store(T *row, int index, const float (&x)[VEC]) {
  Vector<T> vector;
  for (int i = 0; i < VEC; ++i)
    vector.values[i] = narrow<T>(x[i]);
  __stcs(reinterpret_cast<typename Raw<VEC * sizeof(T)>::type *>(row) + index, vector.raw);
}

// Index of this thread's token within the block, and of the thread's first vector within the token.
__device__ inline int own_token() { return threadIdx.x / STRIDE; }
__device__ inline int own_vector() { return threadIdx.x % STRIDE; }

// Sums over the threads of a token; each thread receives the same bits. All threads of the block must call it.
template <int N> __device__ inline void sum_over_token(float (&x)[N]) {
  for (int n = 0; n < N; ++n)
    for (int lane = WARP / 2; lane > 0; lane /= 2)
      x[n] += __shfl_xor_sync(ALL, x[n], lane);
  if constexpr (WARPS > 1) {
    __shared__ float parts[N][BLOCK / WARP];
    const int warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP == 0)
      for (int n = 0; n < N; ++n)
        parts[n][warp] = x[n];
    __syncthreads();
    for (int n = 0; n < N; ++n) {
      x[n] = 0;
      for (int w = 0; w < WARPS; ++w)
        x[n] += parts[n][warp / WARPS * WARPS + w];
    }
    __syncthreads();
  }
}

#ifdef __CUDACC_RTC__
// Reads a value that another block may be writing.
__device__ inline unsigned load_volatile(const unsigned *from) {
  return *static_cast<const volatile unsigned *>(from);
}
#endif
