// Spatial z-score, cosine and its gradient in one launch, which reads two token tensors from memory and
// writes one. The formulas are those of `kernel.rs`.
//
// Normalising the first token of an image requires the statistics of all its tokens, so the encoder tokens
// are read twice. The second read must hit the L2 cache for any batch size. Therefore the work is split
// into tiles in a fixed order, which blocks take from a counter: first the statistics of `lag` images, then
// in turn the cosines of image i and the statistics of image i + lag. A tile of cosines waits for the
// statistics of its image. This cannot deadlock: the statistics come earlier in the order, so running
// blocks have already taken them, and statistics wait for nothing. `lag` is so large that the statistics
// should be complete before a block needs them.
//
// All sums are in fixed orders, so the results do not depend on which block takes which tile.
//
// Macros besides those of the prelude: TARGET and PROJECTED, float or bf16; ZSCORE, 0 or 1.
#include "prelude.cuh"

// Lower bound of the length by which a token is divided.
constexpr float NORM_EPS = 1e-12f;

// A tile of statistics covers SPAN vectors of all tokens, 128 bytes per token with whole vectors. A block
// reads ROW_GROUPS tokens at once, and a thread merges ROWS of its tokens at once.
constexpr int SPAN = VEC == 1 ? 32 : 8;
constexpr int ROW_GROUPS = BLOCK / SPAN;
constexpr int ROWS = 8;
constexpr int STATISTIC_TILES = ZSCORE ? (VECTORS + SPAN - 1) / SPAN : 0;

constexpr int MERGED = 2 * BLOCK * VEC;
constexpr int SHARED = ZSCORE ? (2 * WIDTH > MERGED ? 2 * WIDTH : MERGED) : 1;

__device__ inline float pairwise(const float (&x)[ROWS]) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// Computes the z-score's `shift` (subtracted) and `scale` (multiplied) for the columns of one tile of an
// image.
__device__ inline void statistics(const TARGET *rows, float *shift, float *scale, int tile, int count,
                                  float alpha, float eps, float *shared) {
  __shared__ int seen_by[ROW_GROUPS];
  const int group = threadIdx.x / SPAN;
  const int vector = tile * SPAN + threadIdx.x % SPAN;
  const bool inside = vector < VECTORS;
  // Mean and squared deviations of the differences from the first token, over every ROW_GROUPS-th token.
  float origin[VEC] = {}, mean[VEC] = {}, squares[VEC] = {};
  int seen = 0;
  int row = group;
  if (inside) {
    load(rows, vector, origin);
    for (; row + (ROWS - 1) * ROW_GROUPS < count; row += ROWS * ROW_GROUPS) {
      float x[ROWS][VEC];
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        load(rows + size_t(row + r * ROW_GROUPS) * WIDTH, vector, x[r]);
      const float share = ROWS / float(seen + ROWS);
      const float weight = seen * share;
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        float column[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
          column[r] = x[r][i] - origin[i];
        const float block_mean = pairwise(column) * (1.0f / ROWS);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
          column[r] = (column[r] - block_mean) * (column[r] - block_mean);
        const float delta = block_mean - mean[i];
        mean[i] += delta * share;
        squares[i] += pairwise(column) + delta * delta * weight;
      }
      seen += ROWS;
    }
    for (; row < count; row += ROW_GROUPS) {
      float x[VEC];
      load(rows + size_t(row) * WIDTH, vector, x);
      const float share = 1.0f / float(++seen);
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        const float value = x[i] - origin[i], delta = value - mean[i];
        mean[i] += delta * share;
        squares[i] += delta * (value - mean[i]);
      }
    }
  }
  // A tree reduction merges the groups.
  float *means = shared, *deviations = shared + BLOCK * VEC;
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    means[i * BLOCK + threadIdx.x] = mean[i];
    deviations[i * BLOCK + threadIdx.x] = squares[i];
  }
  // The count is the same for all vectors inside the token; the first vector of a tile always is inside.
  if (threadIdx.x % SPAN == 0)
    seen_by[group] = seen;
  __syncthreads();
  for (int half = ROW_GROUPS / 2; half > 0; half /= 2) {
    const int more = group < half ? seen_by[group + half] : 0;
    if (more > 0) {
      const int other = threadIdx.x + half * SPAN;
      const float share = more / float(seen + more);
      const float weight = seen * share;
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        const float delta = means[i * BLOCK + other] - mean[i];
        mean[i] += delta * share;
        squares[i] += deviations[i * BLOCK + other] + delta * delta * weight;
        means[i * BLOCK + threadIdx.x] = mean[i];
        deviations[i * BLOCK + threadIdx.x] = squares[i];
      }
      seen += more;
    }
    __syncthreads();
    if (more > 0 && threadIdx.x % SPAN == 0)
      seen_by[group] = seen;
    __syncthreads();
  }
  if (group == 0 && inside)
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      shift[vector * VEC + i] = (origin[i] + mean[i]) * alpha;
      scale[vector * VEC + i] = 1.0f / (sqrtf(squares[i] / float(count - 1)) + eps);
    }
}

// Loads vector `index` of a row in shared memory.
__device__ inline void load_shared(const float *row, int index, float (&x)[VEC]) {
  if constexpr (VEC % 4 == 0) {
    const float4 *vectors = reinterpret_cast<const float4 *>(row) + index * (VEC / 4);
#pragma unroll
    for (int i = 0; i < VEC / 4; ++i) {
      const float4 four = vectors[i];
      x[4 * i] = four.x, x[4 * i + 1] = four.y, x[4 * i + 2] = four.z, x[4 * i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < VEC; ++i)
      x[i] = row[index * VEC + i];
  }
}

// Computes the cosines of tokens `begin` to `end` of an image and writes their gradient. Thread 0 returns
// the sum of the cosines.
__device__ inline double cosines(const TARGET *target, const PROJECTED *projected, PROJECTED *gradient,
                                 const float *shift, const float *scale, int begin, int end, float slope,
                                 float *shared) {
  if constexpr (ZSCORE) {
    for (int column = threadIdx.x; column < WIDTH; column += BLOCK) {
      // Other blocks of this launch wrote these values, so the L1 cache may hold stale ones.
      shared[column] = __ldcg(shift + column);
      shared[WIDTH + column] = __ldcg(scale + column);
    }
    __syncthreads();
  }
  double sum = 0;
  for (int first = begin; first < end; first += TOKENS) {
    const int token = first + own_token();
    const bool valid = token < end;
    const size_t start = size_t(token) * WIDTH;
    float y[PIECES][VEC] = {}, p[PIECES][VEC] = {};
#pragma unroll
    for (int k = 0; k < PIECES; ++k) {
      const int vector = own_vector() + k * STRIDE;
      if (valid && vector < VECTORS) {
        load_once(target + start, vector, y[k]);
        load_once(projected + start, vector, p[k]);
      }
    }
    // Sums of the products, of the target's squares and of the projected token's squares.
    float sums[3] = {};
#pragma unroll
    for (int k = 0; k < PIECES; ++k) {
      const int vector = own_vector() + k * STRIDE;
      if (ZSCORE && valid && vector < VECTORS) {
        float shifts[VEC], scales[VEC];
        load_shared(shared, vector, shifts);
        load_shared(shared + WIDTH, vector, scales);
#pragma unroll
        for (int i = 0; i < VEC; ++i)
          y[k][i] = (y[k][i] - shifts[i]) * scales[i];
      }
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        sums[0] += y[k][i] * p[k][i];
        sums[1] += y[k][i] * y[k][i];
        sums[2] += p[k][i] * p[k][i];
      }
    }
    sum_over_token(sums);
    // Not `fmaxf`, which would replace a NaN by the bound.
    const float length = sqrtf(sums[2]), target_length = sqrtf(sums[1]);
    const float target_divisor = target_length < NORM_EPS ? NORM_EPS : target_length;
    const float projected_divisor = length < NORM_EPS ? NORM_EPS : length;
    const float cosine = sums[0] / target_divisor / projected_divisor;
    if (valid)
      sum += cosine;
    if (valid && gradient != nullptr) {
      // Below the bound, the divisor is constant.
      const float along = length < NORM_EPS ? 0.0f : -slope * cosine / projected_divisor / projected_divisor;
      const float across = slope / target_divisor / projected_divisor;
#pragma unroll
      for (int k = 0; k < PIECES; ++k) {
        const int vector = own_vector() + k * STRIDE;
        if (vector >= VECTORS)
          continue;
        float d[VEC];
#pragma unroll
        for (int i = 0; i < VEC; ++i)
          d[i] = across * y[k][i] + along * p[k][i];
        store(gradient + start, vector, d);
      }
    }
  }
  __shared__ double token_sums[TOKENS];
  if (own_vector() == 0)
    token_sums[own_token()] = sum;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int other = 1; other < TOKENS; ++other)
      sum += token_sums[other];
  return sum;
}

// Writes the scalar `loss` and, unless it is null, `gradient`, the gradient of the projected tokens.
// `slope` is the gradient of the loss with respect to each token's cosine. Scratch: `shift` and `scale`
// [batch, WIDTH], `sums` [batch, cosine tiles per image], and `counters` [2 + batch], initially 0.
KERNEL(cosine_loss,
       (const TARGET *target, const PROJECTED *projected, PROJECTED *gradient, float *loss, float *shift,
        float *scale, double *sums, unsigned *counters, int batch, int count, int tokens_per_tile, int lag,
        float alpha, float eps, float slope)) {
  alignas(16) __shared__ float shared[SHARED];
  __shared__ unsigned taken, earlier;
  unsigned *next = counters, *finished = counters + 1, *ready = counters + 2;
  const int cosine_tiles = (count + tokens_per_tile - 1) / tokens_per_tile;
  const unsigned tiles = STATISTIC_TILES + cosine_tiles;
  const unsigned last = unsigned(batch) * cosine_tiles - 1;
  for (;;) {
    if (threadIdx.x == 0)
      taken = atomicAdd(next, 1u);
    __syncthreads();
    const int step = int(taken / tiles);
    const int tile = int(taken % tiles);
    if (step >= batch + lag)
      return;
    if (tile < STATISTIC_TILES) {
      if (step < batch) {
        statistics(target + size_t(step) * count * WIDTH, shift + size_t(step) * WIDTH,
                   scale + size_t(step) * WIDTH, tile, count, alpha, eps, shared);
        __syncthreads();
        if (threadIdx.x == 0) {
          __threadfence();
          atomicAdd(ready + step, 1u);
        }
      }
    } else if (step >= lag) {
      const int image = step - lag;
      const int part = tile - STATISTIC_TILES;
      if (STATISTIC_TILES > 0) {
        if (threadIdx.x == 0) {
          while (load_volatile(ready + image) < STATISTIC_TILES)
            __nanosleep(100);
          __threadfence();
        }
        __syncthreads();
      }
      const size_t start = size_t(image) * count * WIDTH;
      const int begin = part * tokens_per_tile;
      const int end = begin + tokens_per_tile < count ? begin + tokens_per_tile : count;
      const double sum =
          cosines(target + start, projected + start, gradient == nullptr ? nullptr : gradient + start,
                  shift + size_t(image) * WIDTH, scale + size_t(image) * WIDTH, begin, end, slope, shared);
      if (threadIdx.x == 0) {
        sums[size_t(image) * cosine_tiles + part] = sum;
        __threadfence();
        earlier = atomicAdd(finished, 1u);
        __threadfence();
      }
      __syncthreads();
      if (earlier == last) {
        // This block finished the last tile. It adds the sums of all tiles in the order of the tiles.
        __shared__ double parts[BLOCK];
        double part_sum = 0;
        for (size_t index = threadIdx.x; index < size_t(batch) * cosine_tiles; index += BLOCK)
          part_sum += __ldcg(sums + index);
        parts[threadIdx.x] = part_sum;
        __syncthreads();
        for (int half = BLOCK / 2; half > 0; half /= 2) {
          if (threadIdx.x < half)
            parts[threadIdx.x] += parts[threadIdx.x + half];
          __syncthreads();
        }
        if (threadIdx.x == 0)
          *loss = float(-parts[0] / (double(batch) * count));
      }
    }
    // The next iteration overwrites `taken`, `shared` and the other shared variables.
    __syncthreads();
  }
}

// Multiplies `gradient` by `output_grad / expected_grad`; does nothing if the factor is 1.
KERNEL(rescale, (PROJECTED *gradient, const float *output_grad, double expected_grad, int vectors)) {
  const double factor = double(*output_grad) / expected_grad;
  if (factor == 1.0)
    return;
  const float scale = float(factor);
  for (int index = blockIdx.x * BLOCK + threadIdx.x; index < vectors; index += gridDim.x * BLOCK) {
    float x[VEC];
    load_once(gradient, index, x);
    for (int i = 0; i < VEC; ++i)
      x[i] *= scale;
    store(gradient, index, x);
  }
}
