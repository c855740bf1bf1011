// The C interface of the shim. Every function returns 0, or 1 after setting the
// message of `te_last_error` on the same thread. No exception leaves it.
//
// Tensors are passed as the `at::Tensor*` that torch-sys also uses (`C_tensor*`):
// borrowed if it is an argument, owned by the caller if it is an output.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

extern "C" const char *te_last_error();

namespace torch_ext {

void set_error(const char *message);

// Runs `body` and converts any exception to an error code.
template <typename F> int guarded(F &&body) {
  try {
    body();
    return 0;
  } catch (const c10::Error &error) {
    set_error(error.what_without_backtrace());
  } catch (const std::exception &error) {
    set_error(error.what());
  } catch (...) {
    set_error("unknown C++ exception");
  }
  return 1;
}

// Shares the tensors behind `count` borrowed pointers.
inline std::vector<at::Tensor> share(at::Tensor *const *tensors, size_t count) {
  std::vector<at::Tensor> shared;
  shared.reserve(count);
  for (size_t i = 0; i < count; ++i)
    shared.push_back(*tensors[i]);
  return shared;
}

// tch's device numbering: -1 is the CPU, n >= 0 is CUDA device n.
inline at::Device device_of(int device) {
  return device < 0 ? at::Device(at::kCPU)
                    : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
}

} // namespace torch_ext
