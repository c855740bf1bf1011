#include "shim.h"

#include <ATen/record_function.h>

#include <map>
#include <memory>

using torch_ext::guarded;

// Counts of the operators that a thread has called since `te_operators_begin`.
struct te_operators {
  at::CallbackHandle callback;
  std::map<std::string, uint64_t> counts;
};

namespace {
// The counts to which this thread's calls are added.
thread_local te_operators *counted = nullptr;

std::unique_ptr<at::ObserverContext> count_operator(const at::RecordFunction &function) {
  if (counted)
    ++counted->counts[function.name()];
  return nullptr;
}
} // namespace

extern "C" {

// Starts counting on this thread.
int te_operators_begin(te_operators **out) {
  return guarded([&] {
    TORCH_CHECK(counted == nullptr, "operators of this thread are already counted");
    auto operators = std::make_unique<te_operators>();
    operators->callback = at::addThreadLocalCallback(
        at::RecordFunctionCallback(count_operator).scopes({at::RecordScope::FUNCTION}));
    *out = counted = operators.release();
  });
}

// Ends counting on the thread that began it, and frees the counts, also on failure. `visit` is called for each
// operator.
int te_operators_end(te_operators *operators, void *data,
                     void (*visit)(void *data, const char *name, uint64_t count)) {
  const std::unique_ptr<te_operators> owned(operators);
  counted = nullptr;
  return guarded([&] {
    at::removeCallback(owned->callback);
    for (const auto &[name, count] : owned->counts)
      visit(data, name.c_str(), count);
  });
}
}
