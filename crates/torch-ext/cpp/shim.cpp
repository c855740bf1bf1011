#include "shim.h"

#include <torch/headeronly/version.h>

namespace {
thread_local std::string last_error;
}

namespace torch_ext {
void set_error(const char *message) {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
}
} // namespace torch_ext

extern "C" {

// Valid until the next failing call on this thread.
const char *te_last_error() { return last_error.c_str(); }

// Sets the error message of this thread, for callbacks into Rust that fail.
void te_set_error(const char *message) { torch_ext::set_error(message); }

// The version of the headers that the shim was compiled with.
const char *te_torch_version() { return TORCH_VERSION; }
}
