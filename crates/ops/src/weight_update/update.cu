// Norm of all gradients, clipping, AdamW and moving averages for a list of weights. The formulas are those of
// `kernel.rs`. A block works on CHUNK elements of one weight. Sums are computed within chunks first, then over the
// chunks in a fixed order, so that the result is always the same. The norm stays on the device.
//
// Macros besides those of the prelude: CHUNK. A token of the prelude is here the part that a block reads at once.
#include "prelude.cuh"

// A weight's row of the table: addresses, 0 for a tensor that does not exist, and the number of elements. The
// gradient is bf16 if there is a copy.
struct Row {
  long long gradient, weight, exp_avg, exp_avg_sq, first_average, second_average, copy, count;
};

template <typename T> __device__ inline T *pointer_at(long long address, size_t offset) {
  return address ? reinterpret_cast<T *>(address) + offset : nullptr;
}

// The block's part of a weight. For each block, `chunks` holds the row of the weight and the chunk's index within it.
struct Part {
  const Row &row;
  size_t offset;
  int count;
  __device__ Part(const Row *rows, const int *chunks)
      : row(rows[chunks[2 * blockIdx.x]]), offset(size_t(chunks[2 * blockIdx.x + 1]) * CHUNK) {
    const long long rest = row.count - static_cast<long long>(offset);
    count = rest < CHUNK ? int(rest) : CHUNK;
  }
};

template <typename G> __device__ inline float sum_of_squares(const Part &part) {
  const G *gradient = pointer_at<const G>(part.row.gradient, part.offset);
  const int vectors = part.count / VEC;
  float sum = 0;
  for (int vector = threadIdx.x; vector < vectors; vector += BLOCK) {
    float g[VEC];
    load(gradient, vector, g);
#pragma unroll
    for (int i = 0; i < VEC; ++i)
      sum += g[i] * g[i];
  }
  for (int i = vectors * VEC + threadIdx.x; i < part.count; i += BLOCK)
    sum += widen(gradient[i]) * widen(gradient[i]);
  return sum;
}

// Writes the squared gradient norm of each chunk to `sums`.
KERNEL(squared_norms, (const Row *rows, const int *chunks, float *sums)) {
  const Part part(rows, chunks);
  float sum[1] = {part.row.copy ? sum_of_squares<bf16>(part) : sum_of_squares<float>(part)};
  sum_over_token(sum);
  if (threadIdx.x == 0)
    sums[blockIdx.x] = sum[0];
}

// Writes the norm of all gradients to `norm[0]` and the clipping factor to `norm[1]`. Runs in one block. If the norm
// is NaN, so is the factor.
KERNEL(total_norm, (const float *sums, float *norm, int count, float max_norm)) {
  __shared__ double parts[BLOCK];
  double part_sum = 0;
  for (int i = threadIdx.x; i < count; i += BLOCK)
    part_sum += sums[i];
  parts[threadIdx.x] = part_sum;
  for (int half = BLOCK / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  if (threadIdx.x == 0) {
    norm[0] = float(sqrt(parts[0]));
    const float factor = max_norm / (norm[0] + 1e-6f);
    norm[1] = factor > 1 ? 1 : factor;
  }
}

// The factors of a step; see `Factors` in `mod.rs`.
struct Factors {
  float clip, first, keep_second, second, second_correction, eps, decay, rate;
};

__device__ inline void adamw(float g, float &w, float &m, float &v, const Factors &factors) {
  g *= factors.clip;
  // The interpolation starts from the nearer end.
  m = factors.first < 0.5f ? m + factors.first * (g - m) : g + (factors.first - 1) * (g - m);
  v = factors.keep_second * v + factors.second * g * g;
  w = factors.decay * w + factors.rate * m / (sqrtf(v) / factors.second_correction + factors.eps);
}

template <typename G>
__device__ inline void update_part(const Part &part, const Factors &factors, const float (&keep)[2],
                                   const float (&add)[2]) {
  const Row &row = part.row;
  const G *gradient = pointer_at<const G>(row.gradient, part.offset);
  float *weight = pointer_at<float>(row.weight, part.offset);
  float *exp_avg = pointer_at<float>(row.exp_avg, part.offset);
  float *exp_avg_sq = pointer_at<float>(row.exp_avg_sq, part.offset);
  float *averages[2] = {pointer_at<float>(row.first_average, part.offset),
                        pointer_at<float>(row.second_average, part.offset)};
  bf16 *copy = pointer_at<bf16>(row.copy, part.offset);
  const int vectors = part.count / VEC;
  for (int vector = threadIdx.x; vector < vectors; vector += BLOCK) {
    float g[VEC], w[VEC], m[VEC], v[VEC];
    load_once(gradient, vector, g);
    load(weight, vector, w);
    load(exp_avg, vector, m);
    load(exp_avg_sq, vector, v);
#pragma unroll
    for (int i = 0; i < VEC; ++i)
      adamw(g[i], w[i], m[i], v[i], factors);
    store(weight, vector, w);
    store(exp_avg, vector, m);
    store(exp_avg_sq, vector, v);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (!averages[n])
        continue;
      float a[VEC];
      load(averages[n], vector, a);
#pragma unroll
      for (int i = 0; i < VEC; ++i)
        a[i] = a[i] * keep[n] + add[n] * w[i];
      store(averages[n], vector, a);
    }
    if (copy)
      store(copy, vector, w);
  }
  for (int i = vectors * VEC + threadIdx.x; i < part.count; i += BLOCK) {
    adamw(widen(gradient[i]), weight[i], exp_avg[i], exp_avg_sq[i], factors);
    for (int n = 0; n < 2; ++n)
      if (averages[n])
        averages[n][i] = averages[n][i] * keep[n] + add[n] * weight[i];
    if (copy)
      copy[i] = narrow<bf16>(weight[i]);
  }
}

KERNEL(update, (const Row *rows, const int *chunks, const float *norm, float first, float keep_second,
                float second, float second_correction, float eps, float decay, float rate, float keep0,
                float add0, float keep1, float add1)) {
  const Part part(rows, chunks);
  const Factors factors = {norm[1], first, keep_second, second, second_correction, eps, decay, rate};
  const float keep[2] = {keep0, keep1}, add[2] = {add0, add1};
  if (part.row.copy)
    update_part<bf16>(part, factors, keep, add);
  else
    update_part<float>(part, factors, keep, add);
}
