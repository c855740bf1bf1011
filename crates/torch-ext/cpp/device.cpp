#include "shim.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cstring>

using torch_ext::guarded;

namespace {
std::string library_dir() {
  Dl_info info;
  // The address of any symbol of libtorch_cpu identifies the file that it was loaded from.
  if (dladdr(reinterpret_cast<void *>(&at::globalContext), &info) == 0 || !info.dli_fname)
    return {};
  std::string path(info.dli_fname);
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? std::string() : path.substr(0, slash);
}
} // namespace

extern "C" {

// Copies the folder that libtorch was loaded from to `out` (NUL-terminated, truncated at `capacity`).
int te_library_dir(char *out, size_t capacity) {
  return guarded([&] {
    if (capacity == 0)
      return;
    const auto dir = library_dir();
    const auto length = std::min(dir.size(), capacity - 1);
    std::memcpy(out, dir.data(), length);
    out[length] = '\0';
  });
}

// Loads libtorch_cuda.so from the folder of libtorch_cpu.so. Its initialisers register the CUDA
// kernels and hooks. It stays loaded until the process ends.
int te_load_cuda() {
  return guarded([&] {
    const auto path = library_dir() + "/libtorch_cuda.so";
    if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      const char *reason = dlerror();
      TORCH_CHECK(false, reason ? reason : "dlopen failed without a reason");
    }
  });
}

int te_peak_memory(int device, uint64_t *bytes) {
  return guarded([&] {
    const auto target = torch_ext::device_of(device);
    auto *allocator = at::getDeviceAllocator(target.type());
    const auto stats = allocator->getDeviceStats(target.index());
    constexpr auto total =
        static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *bytes = static_cast<uint64_t>(stats.allocated_bytes[total].peak);
  });
}

// Memory that the allocator has taken from the device, whether or not tensors use it.
int te_reserved_memory(int device, uint64_t *bytes) {
  return guarded([&] {
    const auto target = torch_ext::device_of(device);
    const auto stats = at::getDeviceAllocator(target.type())->getDeviceStats(target.index());
    constexpr auto total =
        static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *bytes = static_cast<uint64_t>(stats.reserved_bytes[total].current);
  });
}

int te_reset_peak_memory(int device) {
  return guarded([&] {
    const auto target = torch_ext::device_of(device);
    at::getDeviceAllocator(target.type())->resetPeakStats(target.index());
  });
}

// Free memory of the device plus the unused memory of the allocator.
int te_free_memory(int device, uint64_t *bytes) {
  return guarded([&] {
    const auto target = torch_ext::device_of(device);
    auto *allocator = at::getDeviceAllocator(target.type());
    const auto [free, total] = allocator->getMemoryInfo(target.index());
    (void)total;
    const auto stats = allocator->getDeviceStats(target.index());
    constexpr auto all =
        static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    const auto reserve =
        stats.reserved_bytes[all].current - stats.allocated_bytes[all].current;
    *bytes = static_cast<uint64_t>(free) + static_cast<uint64_t>(reserve);
  });
}

int te_synchronize(int device) {
  return guarded([&] {
    const auto target = torch_ext::device_of(device);
    c10::impl::VirtualGuardImpl(target.type()).synchronizeDevice(target.index());
  });
}

int te_empty_cache(int device) {
  return guarded([&] {
    at::getDeviceAllocator(torch_ext::device_of(device).type())->emptyCache();
  });
}

// Makes the C library keep freed memory instead of returning it to the system. Otherwise, every large
// tensor would be mapped, faulted in page by page and unmapped again. Returns 0 if the C library has no
// such setting.
int te_keep_freed_memory() {
#ifdef __GLIBC__
  // 32 MiB is glibc's upper limit for M_MMAP_THRESHOLD.
  return mallopt(M_MMAP_THRESHOLD, 32 << 20) == 1 &&
         mallopt(M_TRIM_THRESHOLD, INT32_MAX) == 1 && mallopt(M_TOP_PAD, 64 << 20) == 1;
#else
  return 0;
#endif
}

// Returns freed memory to the system, including memory that te_keep_freed_memory keeps.
void te_give_back_freed_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

int te_set_tf32(int products, int convolutions) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuBLAS(products != 0);
    at::globalContext().setAllowTF32CuDNN(convolutions != 0);
  });
}

int te_tf32(int *products, int *convolutions) {
  return guarded([&] {
    *products = at::globalContext().allowTF32CuBLAS() ? 1 : 0;
    *convolutions = at::globalContext().allowTF32CuDNN() ? 1 : 0;
  });
}

int te_deterministic(int *enabled) {
  return guarded([&] { *enabled = at::globalContext().deterministicAlgorithms() ? 1 : 0; });
}

int te_set_deterministic(int enabled) {
  return guarded([&] {
    at::globalContext().setDeterministicAlgorithms(enabled != 0, /*warn_only=*/false);
    at::globalContext().setDeterministicCuDNN(enabled != 0);
  });
}
}
