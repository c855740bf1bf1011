#include "shim.h"

#include <ATen/autocast_mode.h>

using torch_ext::guarded;

extern "C" {

// Opens an autocast region. Pass `previous_enabled` and `previous_dtype` to `te_autocast_leave`.
int te_autocast_enter(int device, int dtype, int *previous_enabled, int *previous_dtype) {
  return guarded([&] {
    const auto type = torch_ext::device_of(device).type();
    *previous_enabled = at::autocast::is_autocast_enabled(type) ? 1 : 0;
    *previous_dtype = static_cast<int>(at::autocast::get_autocast_dtype(type));
    at::autocast::set_autocast_dtype(type, static_cast<at::ScalarType>(dtype));
    at::autocast::set_autocast_enabled(type, true);
    at::autocast::increment_nesting();
  });
}

int te_autocast_leave(int device, int previous_enabled, int previous_dtype) {
  return guarded([&] {
    const auto type = torch_ext::device_of(device).type();
    // The cache holds casts of the weights, which are stale after an optimiser step.
    if (at::autocast::decrement_nesting() == 0)
      at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(type, previous_enabled != 0);
    at::autocast::set_autocast_dtype(type,
                                     static_cast<at::ScalarType>(previous_dtype));
  });
}
}
