#include "shim.h"

using torch_ext::guarded;
using torch_ext::share;

extern "C" {

int te_fused_adamw_(at::Tensor *const *params, at::Tensor *const *grads,
                    at::Tensor *const *exp_avgs, at::Tensor *const *exp_avg_sqs,
                    at::Tensor *const *steps, size_t count, double lr, double beta1,
                    double beta2, double weight_decay, double eps) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    at::_fused_adamw_(share(params, count), share(grads, count), share(exp_avgs, count),
                      share(exp_avg_sqs, count), {}, share(steps, count), lr, beta1,
                      beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

// average <- decay * average + (1 - decay) * value, rounded twice like upstream's mul_().add_().
int te_ema_(at::Tensor *const *averages, at::Tensor *const *values, size_t count,
            double decay) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const auto average = share(averages, count);
    at::_foreach_mul_(average, decay);
    at::_foreach_add_(average, share(values, count), 1.0 - decay);
  });
}

// The 2-norm of all gradients together, as a scalar tensor on their device.
int te_grad_norm(at::Tensor *const *grads, size_t count, at::Tensor **out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const auto norms = at::_foreach_norm(share(grads, count), 2.0);
    *out = new at::Tensor(at::linalg_vector_norm(at::stack(norms), 2.0));
  });
}

// gradient <- gradient * min(1, max_norm / (norm + 1e-6)), without waiting for the device.
int te_clip_grads_(at::Tensor *const *grads, size_t count, at::Tensor *norm,
                   double max_norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const auto factor = at::clamp_max(max_norm / (*norm + 1e-6), 1.0);
    at::_foreach_mul_(share(grads, count), factor);
  });
}

// Removes the gradients, so that the next backward pass writes instead of adding.
int te_clear_grads(at::Tensor *const *params, size_t count) {
  return guarded([&] {
    for (size_t i = 0; i < count; ++i)
      params[i]->mutable_grad().reset();
  });
}

int te_copy_(at::Tensor *const *targets, at::Tensor *const *sources, size_t count) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < count; ++i)
      targets[i]->copy_(*sources[i]);
  });
}
}
