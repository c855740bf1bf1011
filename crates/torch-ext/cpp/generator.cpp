#include "shim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/Generator.h>

#include <mutex>

using torch_ext::guarded;

namespace {

at::TensorOptions options(int device, int dtype) {
  return at::TensorOptions()
      .device(torch_ext::device_of(device))
      .dtype(static_cast<at::ScalarType>(dtype));
}

} // namespace

extern "C" {

int te_generator_new(int device, uint64_t seed, at::Generator **out) {
  return guarded([&] {
    if (device < 0) {
      *out = new at::Generator(at::detail::createCPUGenerator(seed));
      return;
    }
    // Cloning the device's default generator works for any device and needs no CUDA symbols here.
    at::Generator source =
        at::globalContext().defaultGenerator(torch_ext::device_of(device));
    at::Generator own;
    {
      std::lock_guard<std::mutex> lock(source.mutex());
      own = source.clone();
    }
    own.set_current_seed(seed);
    *out = new at::Generator(own);
  });
}

void te_generator_free(at::Generator *generator) { delete generator; }

int te_generator_seed(at::Generator *generator, uint64_t seed) {
  return guarded([&] {
    std::lock_guard<std::mutex> lock(generator->mutex());
    generator->set_current_seed(seed);
  });
}

int te_generator_state(at::Generator *generator, at::Tensor **out) {
  return guarded([&] {
    std::lock_guard<std::mutex> lock(generator->mutex());
    *out = new at::Tensor(generator->get_state());
  });
}

int te_generator_set_state(at::Generator *generator, at::Tensor *state) {
  return guarded([&] {
    std::lock_guard<std::mutex> lock(generator->mutex());
    generator->set_state(*state);
  });
}

int te_rand(at::Generator *generator, const int64_t *size, size_t rank, int dtype,
            int device, at::Tensor **out) {
  return guarded([&] {
    *out = new at::Tensor(at::rand(at::IntArrayRef(size, rank), *generator,
                                   options(device, dtype)));
  });
}

int te_randn(at::Generator *generator, const int64_t *size, size_t rank, int dtype,
             int device, at::Tensor **out) {
  return guarded([&] {
    *out = new at::Tensor(at::randn(at::IntArrayRef(size, rank), *generator,
                                    options(device, dtype)));
  });
}

int te_uniform_(at::Generator *generator, at::Tensor *tensor, double low, double high) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    tensor->uniform_(low, high, *generator);
  });
}

int te_normal_(at::Generator *generator, at::Tensor *tensor, double mean, double std) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    tensor->normal_(mean, std, *generator);
  });
}
}
