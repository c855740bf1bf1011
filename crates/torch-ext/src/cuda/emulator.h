// Emulates CUDA's execution model on the host. The threads of a block are fibers that switch at barriers;
// blocks run one after another on a few threads. It is slow and meant only for tests of arithmetic. It
// supports one-dimensional grids, and barriers that all threads of a block (or warp) reach.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <ucontext.h>

// All other symbols are hidden: libraries with functions of the same name would share static variables.
#define EXPORTED __attribute__((visibility("default")))

#define __global__
#define __device__
#define __shared__ static thread_local
#define __launch_bounds__(...)

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { unsigned x; };

static thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 128 << 10;

struct Barrier {
  unsigned arrived = 0, round = 0;
};

struct Block {
  std::vector<ucontext_t> fibers;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<char> finished;
  std::vector<Barrier> warps;
  std::vector<uint32_t> exchanged;
  Barrier all;
  ucontext_t scheduler;
  void (*kernel)(void **);
  void **arguments;
  bool moved, deadlock = false;
};

static thread_local Block *block;

inline void wait(Barrier &barrier, unsigned size) {
  const unsigned own = threadIdx.x, round = barrier.round;
  block->moved = true;
  if (++barrier.arrived == size) {
    barrier.arrived = 0;
    ++barrier.round;
    return;
  }
  while (barrier.round == round)
    swapcontext(&block->fibers[own], &block->scheduler);
}

inline void enter() {
  block->kernel(block->arguments);
  block->finished[threadIdx.x] = 1;
  block->moved = true;
  // Execution continues at `uc_link`.
}

// Runs one block. Returns false if some threads never reach a barrier.
inline bool run(Block &own, unsigned index, unsigned threads) {
  block = &own;
  blockIdx.x = index;
  blockDim.x = threads;
  own.finished.assign(threads, 0);
  own.warps.assign((threads + WARP - 1) / WARP, {});
  own.all = {};
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&own.fibers[i]);
    own.fibers[i].uc_stack.ss_sp = own.stacks[i].get();
    own.fibers[i].uc_stack.ss_size = STACK;
    own.fibers[i].uc_link = &own.scheduler;
    makecontext(&own.fibers[i], enter, 0);
  }
  for (unsigned left = threads; left > 0;) {
    own.moved = false;
    left = 0;
    for (unsigned i = 0; i < threads; ++i) {
      if (own.finished[i])
        continue;
      threadIdx.x = i;
      swapcontext(&own.scheduler, &own.fibers[i]);
      left += !own.finished[i];
    }
    if (!own.moved && left > 0)
      return false;
  }
  return true;
}

template <typename... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A *>(arguments[I])...);
}
template <typename... A> void call(void (*kernel)(A...), void **arguments) {
  call(kernel, arguments, std::index_sequence_for<A...>());
}

} // namespace emulator

// Defines the kernel and its entry for `emulate`, which takes the arguments of `cuLaunchKernel`.
#define KERNEL(name, parameters)                                                                   \
  static void name parameters;                                                                     \
  extern "C" EXPORTED void emulated_##name(void **arguments) { emulator::call(name, arguments); }  \
  static void name parameters

// Returns 0, or 1 if some threads of a block never reach a barrier.
extern "C" EXPORTED int emulate(void (*kernel)(void **), unsigned blocks, unsigned threads, void **arguments) {
  constexpr unsigned WORKERS = 3;
  std::atomic<int> failed{0};
  std::vector<std::thread> workers;
  for (unsigned worker = 0; worker < WORKERS; ++worker)
    workers.emplace_back([&, worker] {
      gridDim.x = blocks;
      emulator::Block own;
      own.fibers.resize(threads);
      for (unsigned i = 0; i < threads; ++i)
        own.stacks.emplace_back(new char[emulator::STACK]);
      own.exchanged.resize(threads);
      own.kernel = kernel;
      own.arguments = arguments;
      for (unsigned index = worker; index < blocks; index += WORKERS)
        if (!emulator::run(own, index, threads)) {
          failed = 1;
          return;
        }
    });
  for (auto &worker : workers)
    worker.join();
  return failed;
}

inline void __syncthreads() { emulator::wait(emulator::block->all, blockDim.x); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  auto &block = *emulator::block;
  auto &warp = block.warps[threadIdx.x / emulator::WARP];
  const unsigned size = std::min(emulator::WARP, blockDim.x);
  const unsigned own = threadIdx.x;
  std::memcpy(&block.exchanged[own], &value, 4);
  emulator::wait(warp, size);
  float other;
  std::memcpy(&other, &block.exchanged[own ^ mask], 4);
  emulator::wait(warp, size);
  return other;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

template <typename T> T __ldcs(const T *from) { return *from; }
template <typename T> T __ldcg(const T *from) { return *from; }
template <typename T> void __stcs(T *to, T value) { *to = value; }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __nanosleep(unsigned) { std::this_thread::yield(); }
inline unsigned atomicAdd(unsigned *to, unsigned value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
inline unsigned load_volatile(const unsigned *from) { return __atomic_load_n(from, __ATOMIC_RELAXED); }
