// Norm with modulation, gated residuals, and the gradients of both, each in one pass over the tokens.
// The formulas are those of each `kernel.rs`. Sums over tokens are computed per part of an image first, then over the
// parts in order, so that they have the same bits each time.
//
// Besides the prelude's macros, each program defines CONDITION, float or bf16: the dtype of the modulation and of
// the inputs of linear layers. Tokens are float. Rows of a shift, scale or gate are `.._stride` elements apart, since
// each is usually a slice of one tensor.
#include "prelude.cuh"

// Replaces `scale` by `weight (1 + scale)`; a missing weight counts as 1.
__device__ inline void factors(const float *weight, int vector, float (&scale)[VEC]) {
  float of[VEC];
  if (weight)
    load(weight, vector, of);
#pragma unroll
  for (int i = 0; i < VEC; ++i)
    scale[i] = weight ? (1.0f + scale[i]) * of[i] : 1.0f + scale[i];
}

// `y = (x - mean) r weight (1 + scale) + shift` for `tokens` tokens, `count` per image. Writes mean and `r` to
// `statistics` [tokens, 2]. A missing weight counts as 1; with a weight, the mean is replaced by 0.
KERNEL(norm_modulate, (const float *x, const CONDITION *shift, const CONDITION *scale, const float *weight,
                       CONDITION *y, float *statistics, int tokens, int count, int shift_stride,
                       int scale_stride, float eps)) {
  const int token = blockIdx.x * TOKENS + own_token();
  const bool valid = token < tokens;
  const size_t start = size_t(token) * WIDTH;
  const size_t image = valid ? token / count : 0;
  float row[PIECES][VEC] = {};
  float sum[1] = {};
#pragma unroll
  for (int k = 0; k < PIECES; ++k) {
    const int vector = own_vector() + k * STRIDE;
    if (valid && vector < VECTORS)
      load(x + start, vector, row[k]);
  }
#pragma unroll
  for (int k = 0; k < PIECES; ++k)
#pragma unroll
    for (int i = 0; i < VEC; ++i)
      sum[0] += row[k][i];
  sum_over_token(sum);
  const float mean = weight ? 0.0f : sum[0] / WIDTH;
  sum[0] = 0;
#pragma unroll
  for (int k = 0; k < PIECES; ++k)
    if (own_vector() + k * STRIDE < VECTORS)
#pragma unroll
      for (int i = 0; i < VEC; ++i)
        sum[0] += (row[k][i] - mean) * (row[k][i] - mean);
  sum_over_token(sum);
  const float reciprocal = 1.0f / sqrtf(sum[0] / WIDTH + eps);
#pragma unroll
  for (int k = 0; k < PIECES; ++k) {
    const int vector = own_vector() + k * STRIDE;
    if (!valid || vector >= VECTORS)
      continue;
    float by[VEC], offset[VEC], out[VEC];
    load(scale + image * scale_stride, vector, by);
    load(shift + image * shift_stride, vector, offset);
    factors(weight, vector, by);
#pragma unroll
    for (int i = 0; i < VEC; ++i)
      out[i] = (row[k][i] - mean) * reciprocal * by[i] + offset[i];
    store(y + start, vector, out);
  }
  if (valid && own_vector() == 0) {
    statistics[2 * size_t(token)] = mean;
    statistics[2 * size_t(token) + 1] = reciprocal;
  }
}

// Writes N sums over a block's tokens to `out` [N, WIDTH], from each thread's sums over its own tokens, in a fixed
// order.
template <int N> __device__ inline void sum_over_block(const float (&own)[N][PIECES][VEC], float *out) {
  __shared__ float columns[WIDTH];
  for (int n = 0; n < N; ++n) {
    for (int token = 0; token < TOKENS; ++token) {
      if (token == own_token())
#pragma unroll
        for (int k = 0; k < PIECES; ++k) {
          const int vector = own_vector() + k * STRIDE;
          if (vector >= VECTORS)
            continue;
#pragma unroll
          for (int i = 0; i < VEC; ++i) {
            float &column = columns[vector * VEC + i];
            column = token == 0 ? own[n][k][i] : column + own[n][k][i];
          }
        }
      __syncthreads();
    }
    for (int column = threadIdx.x; column < WIDTH; column += BLOCK)
      out[size_t(n) * WIDTH + column] = columns[column];
    __syncthreads();
  }
}

// The gradients of `norm_modulate`. Each block processes one of `parts` parts of an image, with `tokens_of_part`
// tokens, and writes its partial sums of the gradients of the shift and, without the factor of the weight, of the
// scale to `sums` [batch, parts, 2, WIDTH].
KERNEL(norm_modulate_backward, (const float *x, const CONDITION *scale, const float *weight,
                                const float *statistics, const CONDITION *dy, float *dx, float *sums,
                                int count, int parts, int tokens_of_part, int scale_stride)) {
  const size_t image = blockIdx.x / parts;
  const int begin = blockIdx.x % parts * tokens_of_part;
  const int end = begin + tokens_of_part < count ? begin + tokens_of_part : count;
  float own[2][PIECES][VEC] = {};
  for (int first = begin; first < end; first += TOKENS) {
    const bool valid = first + own_token() < end;
    const size_t token = image * count + (valid ? first + own_token() : begin);
    const float mean = statistics[2 * token], reciprocal = statistics[2 * token + 1];
    float normal[PIECES][VEC] = {}, slope[PIECES][VEC] = {};
    // Sum of the slopes, and their dot product with the normalised token.
    float products[2] = {};
#pragma unroll
    for (int k = 0; k < PIECES; ++k) {
      const int vector = own_vector() + k * STRIDE;
      if (!valid || vector >= VECTORS)
        continue;
      float by[VEC];
      load(scale + image * scale_stride, vector, by);
      factors(weight, vector, by);
      load_once(x + token * WIDTH, vector, normal[k]);
      load_once(dy + token * WIDTH, vector, slope[k]);
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        normal[k][i] = (normal[k][i] - mean) * reciprocal;
        own[0][k][i] += slope[k][i];
        own[1][k][i] += slope[k][i] * normal[k][i];
        slope[k][i] *= by[i];
        products[0] += slope[k][i];
        products[1] += slope[k][i] * normal[k][i];
      }
    }
    sum_over_token(products);
    const float average = weight ? 0.0f : products[0] / WIDTH, along = products[1] / WIDTH;
#pragma unroll
    for (int k = 0; k < PIECES; ++k) {
      const int vector = own_vector() + k * STRIDE;
      if (!valid || vector >= VECTORS)
        continue;
      float out[VEC];
#pragma unroll
      for (int i = 0; i < VEC; ++i)
        out[i] = reciprocal * (slope[k][i] - average - normal[k][i] * along);
      store(dx + token * WIDTH, vector, out);
    }
  }
  sum_over_block(own, sums + size_t(blockIdx.x) * 2 * WIDTH);
}

// `z = x + gate y` for `tokens` tokens, `count` per image.
KERNEL(gate, (const float *x, const CONDITION *gate, const CONDITION *y, float *z, int tokens, int count,
              int gate_stride)) {
  const int token = blockIdx.x * TOKENS + own_token();
  if (token >= tokens)
    return;
  const size_t start = size_t(token) * WIDTH, image = size_t(token / count) * gate_stride;
#pragma unroll
  for (int k = 0; k < PIECES; ++k) {
    const int vector = own_vector() + k * STRIDE;
    if (vector >= VECTORS)
      continue;
    float sum[VEC], by[VEC], of[VEC];
    load(x + start, vector, sum);
    load(gate + image, vector, by);
    load(y + start, vector, of);
#pragma unroll
    for (int i = 0; i < VEC; ++i)
      sum[i] += by[i] * of[i];
    store(z + start, vector, sum);
  }
}

// The gradients of `x + gate y` with respect to `y` and `gate`. Parts are as above; `sums` is [batch, parts, 1,
// WIDTH].
KERNEL(gate_backward, (const CONDITION *y, const CONDITION *gate, const float *gradient, CONDITION *dy,
                       float *sums, int count, int parts, int tokens_of_part, int gate_stride)) {
  const size_t image = blockIdx.x / parts;
  const int begin = blockIdx.x % parts * tokens_of_part;
  const int end = begin + tokens_of_part < count ? begin + tokens_of_part : count;
  float own[1][PIECES][VEC] = {};
  for (int token = begin + own_token(); token < end; token += TOKENS) {
    const size_t start = (image * count + token) * WIDTH;
#pragma unroll
    for (int k = 0; k < PIECES; ++k) {
      const int vector = own_vector() + k * STRIDE;
      if (vector >= VECTORS)
        continue;
      float g[VEC], by[VEC], of[VEC];
      load(gradient + start, vector, g);
      load_once(y + start, vector, of);
      load(gate + image * gate_stride, vector, by);
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        own[0][k][i] += g[i] * of[i];
        g[i] *= by[i];
      }
      store(dy + start, vector, g);
    }
  }
  sum_over_block(own, sums + size_t(blockIdx.x) * WIDTH);
}

// Sums `sums` [batch, parts, kinds, WIDTH] over the parts, in order, to `result` [batch, kinds, WIDTH]. Each block
// processes BLOCK columns of one kind of one image.
KERNEL(sum_parts, (const float *sums, float *result, int parts, int kinds)) {
  const int pieces = (WIDTH + BLOCK - 1) / BLOCK;
  const int column = blockIdx.x % pieces * BLOCK + threadIdx.x;
  const int kind = blockIdx.x / pieces % kinds;
  const size_t image = blockIdx.x / pieces / kinds;
  if (column >= WIDTH)
    return;
  float sum = 0;
  for (int part = 0; part < parts; ++part)
    sum += sums[((image * parts + part) * kinds + kind) * WIDTH + column];
  result[(image * kinds + kind) * WIDTH + column] = sum;
}
