#include "shim.h"

#include <dlfcn.h>

#include <memory>
#include <utility>

// If the CUDA headers are available (they are not needed to build), static assertions check the assumptions
// below.
#if __has_include(<cuda_runtime_api.h>) && __has_include(<crt/host_config.h>)
#include <ATen/cuda/CUDAGraph.h>
#define TORCH_EXT_KNOWS_CUDA_GRAPH 1
#endif

using torch_ext::guarded;

// `at::cuda::CUDAGraph` is in libtorch_cuda.so, which is not linked. Its functions are looked up by their
// mangled names once the library is loaded. build.rs ensures that the headers have version 2.11.
namespace {

// `c10::MempoolId_t` and `cudaStreamCaptureModeThreadLocal`.
using PoolId = std::pair<unsigned long long, unsigned long long>;
constexpr int thread_local_mode = 1;

struct Symbols {
  void (*construct)(void *, bool);
  void (*destroy)(void *);
  void (*capture_begin)(void *, PoolId, int);
  void (*capture_end)(void *);
  void (*replay)(void *);
};

template <typename F> void find(const char *name, F &function) {
  void *symbol = dlsym(RTLD_DEFAULT, name);
  TORCH_CHECK(symbol != nullptr, "libtorch does not have the CUDA graph functions of version 2.11 (missing: ", name,
              "); is libtorch_cuda.so loaded, in the version that this binary was built for?");
  function = reinterpret_cast<F>(symbol);
}

const Symbols &symbols() {
  static const Symbols found = [] {
    Symbols symbols{};
    find("_ZN2at4cuda9CUDAGraphC1Eb", symbols.construct);
    find("_ZN2at4cuda9CUDAGraphD1Ev", symbols.destroy);
    find("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode",
         symbols.capture_begin);
    find("_ZN2at4cuda9CUDAGraph11capture_endEv", symbols.capture_end);
    find("_ZN2at4cuda9CUDAGraph6replayEv", symbols.replay);
    return symbols;
  }();
  return found;
}

} // namespace

// Storage for a `CUDAGraph`, which takes 104 bytes, aligned to 8, in libtorch 2.11.
struct te_graph {
  alignas(64) unsigned char storage[1024];

  te_graph() { symbols().construct(storage, false); }
  ~te_graph() { symbols().destroy(storage); }
  te_graph(const te_graph &) = delete;
  te_graph &operator=(const te_graph &) = delete;
};

#ifdef TORCH_EXT_KNOWS_CUDA_GRAPH
static_assert(sizeof(at::cuda::CUDAGraph) <= sizeof(te_graph::storage) &&
              alignof(at::cuda::CUDAGraph) <= alignof(te_graph));
static_assert(std::is_same_v<at::cuda::MempoolId_t, PoolId>);
static_assert(int(cudaStreamCaptureModeThreadLocal) == thread_local_mode);
#endif

extern "C" {

int te_graph_new(te_graph **out) {
  return guarded([&] { *out = new te_graph(); });
}

void te_graph_free(te_graph *graph) { delete graph; }

// From now on, work that this thread queues on its current stream is recorded in the graph instead of run.
// Other threads are not affected.
int te_graph_begin(te_graph *graph) {
  return guarded(
      [&] { symbols().capture_begin(graph->storage, PoolId{0, 0}, thread_local_mode); });
}

int te_graph_end(te_graph *graph) {
  return guarded([&] { symbols().capture_end(graph->storage); });
}

// Queues the whole graph on this thread's current stream.
int te_graph_replay(te_graph *graph) {
  return guarded([&] { symbols().replay(graph->storage); });
}

// Sets the gradients of parameters. An undefined tensor removes the gradient.
int te_set_grads(at::Tensor *const *params, at::Tensor *const *grads, size_t count) {
  return guarded([&] {
    for (size_t i = 0; i < count; ++i)
      params[i]->mutable_grad() = *grads[i];
  });
}
}
