// Spatial z-score, cosine and its gradient, in one launch: two token tensors are read from memory, one is
// written. The formulas are those of `kernel.rs`.
//
// The statistics of an image need all its tokens before the first can be normalised, which is a second
// reading of its encoder tokens. It must find them in the L2 cache, whatever the size of the batch. So
// the work is cut into tiles of one order, which blocks take from a counter: first `lag` images'
// statistics; then, in turn, the cosines of image i and the statistics of image i + lag. A tile of
// cosines waits for the statistics of its image. That cannot hang: they come earlier in the order, so
// running blocks have taken them, and statistics wait for nothing. `lag` is large enough for the wait
// to be over before it starts.
//
// All sums are in fixed orders: the same bits, whichever block does what.
//
// Defined besides the prelude's: TARGET and PROJECTED, float or bf16; ZSCORE, 0 or 1.
#include "prelude.cuh"

// Lower bound of a token's length before it is divided by it.
constexpr float NORM_EPS = 1e-12f;

// A tile of statistics: SPAN vectors of all tokens, 128 bytes each where they are whole; ROW_GROUPS
// tokens are read at once, and ROWS of a thread's tokens are merged at once.
constexpr int SPAN = VEC == 1 ? 32 : 8;
constexpr int ROW_GROUPS = BLOCK / SPAN;
constexpr int ROWS = 8;
constexpr int STATISTIC_TILES = ZSCORE ? (VECTORS + SPAN - 1) / SPAN : 0;

constexpr int MERGED = 2 * BLOCK * VEC;
constexpr int SHARED = ZSCORE ? (2 * WIDTH > MERGED ? 2 * WIDTH : MERGED) : 1;

__device__ inline float pairwise(const float (&x)[ROWS]) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// What is subtracted (`shift`) and multiplied with (`scale`), for the columns of one tile of an image.
__device__ inline void statistics(const TARGET *rows, float *shift, float *scale, int tile, int count,
                                  float alpha, float eps, float *shared) {
  __shared__ int seen_by[ROW_GROUPS];
  const int group = threadIdx.x / SPAN;
  const int vector = tile * SPAN + threadIdx.x % SPAN;
  const bool inside = vector < VECTORS;
  // Mean and squares of deviations from the first token, of every ROW_GROUPS-th token.
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
        const float own = pairwise(column) * (1.0f / ROWS);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
          column[r] = (column[r] - own) * (column[r] - own);
        const float delta = own - mean[i];
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
  // The groups are merged in halves.
  float *means = shared, *deviations = shared + BLOCK * VEC;
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    means[i * BLOCK + threadIdx.x] = mean[i];
    deviations[i * BLOCK + threadIdx.x] = squares[i];
  }
  // Of any vector inside, the same; the first of a tile always is.
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

// Vector `index` of numbers in shared memory.
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

// The sum of the cosines of tokens `begin` to `end` of an image, which thread 0 returns, and their
// gradient.
__device__ inline double cosines(const TARGET *target, const PROJECTED *projected, PROJECTED *gradient,
                                 const float *shift, const float *scale, int begin, int end, float slope,
                                 float *shared) {
  if constexpr (ZSCORE) {
    for (int column = threadIdx.x; column < WIDTH; column += BLOCK) {
      // Written by other blocks of this launch: not what the nearest cache may remember.
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
    // Of the product, of the target's and of the projected token's squares.
    float sums[3] = {};
#pragma unroll
    for (int k = 0; k < PIECES; ++k) {
      const int vector = own_vector() + k * STRIDE;
      if (ZSCORE && valid && vector < VECTORS) {
        float from[VEC], by[VEC];
        load_shared(shared, vector, from);
        load_shared(shared + WIDTH, vector, by);
#pragma unroll
        for (int i = 0; i < VEC; ++i)
          y[k][i] = (y[k][i] - from[i]) * by[i];
      }
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        sums[0] += y[k][i] * p[k][i];
        sums[1] += y[k][i] * y[k][i];
        sums[2] += p[k][i] * p[k][i];
      }
    }
    sum_over_token(sums);
    // A length that is NaN stays so: `fmaxf` would hide it.
    const float length = sqrtf(sums[2]), target_length = sqrtf(sums[1]);
    const float of_target = target_length < NORM_EPS ? NORM_EPS : target_length;
    const float of_projected = length < NORM_EPS ? NORM_EPS : length;
    const float cosine = sums[0] / of_target / of_projected;
    if (valid)
      sum += cosine;
    if (valid && gradient != nullptr) {
      // Below the bound, the length is a constant.
      const float along = length < NORM_EPS ? 0.0f : -slope * cosine / of_projected / of_projected;
      const float across = slope / of_target / of_projected;
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
  __shared__ double of_token[TOKENS];
  if (own_vector() == 0)
    of_token[own_token()] = sum;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int other = 1; other < TOKENS; ++other)
      sum += of_token[other];
  return sum;
}

// `loss` is a scalar, `gradient` that of the projected tokens for a gradient of the loss that `slope`
// stands for, or null. Scratch: `shift` and `scale` [batch, WIDTH], `sums` [batch, tiles of an image],
// and `counters` [2 + batch], which are 0.
KERNEL(cosine_loss,
       (const TARGET *target, const PROJECTED *projected, PROJECTED *gradient, float *loss, float *shift,
        float *scale, double *sums, unsigned *counters, int batch, int count, int tokens_of_tile, int lag,
        float alpha, float eps, float slope)) {
  alignas(16) __shared__ float shared[SHARED];
  __shared__ unsigned taken, earlier;
  unsigned *next = counters, *finished = counters + 1, *ready = counters + 2;
  const int cosine_tiles = (count + tokens_of_tile - 1) / tokens_of_tile;
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
      const int begin = part * tokens_of_tile;
      const int end = begin + tokens_of_tile < count ? begin + tokens_of_tile : count;
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
        // All tiles are done: their sums, in the order of the tiles.
        __shared__ double parts[BLOCK];
        double own = 0;
        for (size_t index = threadIdx.x; index < size_t(batch) * cosine_tiles; index += BLOCK)
          own += __ldcg(sums + index);
        parts[threadIdx.x] = own;
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
    // `taken`, `shared` and the rest are free again.
    __syncthreads();
  }
}

// Multiplies a gradient with what the loss was given over what was expected; nothing if that is the same.
KERNEL(rescale, (PROJECTED *gradient, const float *given, double expected, int vectors)) {
  const double factor = double(*given) / expected;
  if (factor == 1.0)
    return;
  const float by = float(factor);
  for (int index = blockIdx.x * BLOCK + threadIdx.x; index < vectors; index += gridDim.x * BLOCK) {
    float x[VEC];
    load_once(gradient, index, x);
    for (int i = 0; i < VEC; ++i)
      x[i] *= by;
    store(gradient, index, x);
  }
}
