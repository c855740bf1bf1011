#include "shim.h"

#include <ATen/Parallel.h>

#ifndef _OPENMP
#error "at::parallel_for runs on one thread unless this file is compiled with OpenMP"
#endif

using torch_ext::guarded;

extern "C" {

// Calls `body(data, begin, end)` for parts of [0, count) on libtorch's threads. `body` must not
// unwind.
int te_parallel_for(int64_t count, int64_t grain, void (*body)(const void *, int64_t, int64_t),
                    const void *data) {
  return guarded([&] {
    at::parallel_for(0, count, grain,
                     [&](int64_t begin, int64_t end) { body(data, begin, end); });
  });
}
}
