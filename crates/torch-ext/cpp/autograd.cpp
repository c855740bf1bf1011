#include "shim.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_set>

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch_ext::guarded;
using torch_ext::share;

extern "C" {

// One call of `backward`. The caller owns everything for the duration of the call. In `results`, the callee
// writes tensors whose ownership it gives up, or leaves null.
struct te_backward_call {
  at::Tensor *const *gradients; // null if the output has no gradient
  size_t outputs;
  at::Tensor *const *saved;
  const uint8_t *overwritable; // per saved tensor: whether it is not read again
  size_t saved_count;
  const uint8_t *needed; // per input: whether its gradient is needed
  at::Tensor **results;
  size_t inputs;
};

// A function implemented in Rust. `backward` returns 0, or 1 after calling `te_set_error`.
struct te_function {
  void *data;
  int (*backward)(const void *data, const te_backward_call *call);
  void (*drop)(void *data);
};
}

namespace {

// Owns the Rust value of a function.
class Callbacks {
public:
  Callbacks() = default;
  explicit Callbacks(te_function function) : function_(function) {}
  Callbacks(Callbacks &&other) noexcept : function_(other.function_) { other.function_ = {}; }
  Callbacks &operator=(Callbacks &&other) noexcept {
    std::swap(function_, other.function_);
    return *this;
  }
  ~Callbacks() {
    if (function_.data)
      function_.drop(function_.data);
  }
  int backward(const te_backward_call &call) const {
    return function_.backward(function_.data, &call);
  }

private:
  te_function function_{};
};

// Autocast settings of the forward pass, under which the backward pass runs too.
struct AutocastState {
  at::DeviceType device = at::kCPU;
  bool enabled = false;
  at::ScalarType dtype = at::kBFloat16;

  static AutocastState now(at::DeviceType device) {
    if (!at::autocast::is_autocast_available(device))
      return {};
    return {device, at::autocast::is_autocast_enabled(device),
            at::autocast::get_autocast_dtype(device)};
  }
  void set() const {
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, dtype);
  }
};

class AutocastGuard {
public:
  explicit AutocastGuard(const AutocastState &state)
      : previous_(AutocastState::now(state.device)) {
    state.set();
    at::autocast::increment_nesting();
  }
  ~AutocastGuard() {
    if (at::autocast::decrement_nesting() == 0)
      at::autocast::clear_cache();
    previous_.set();
  }

private:
  AutocastState previous_;
};

struct FunctionNode : public torch::autograd::Node {
  FunctionNode(std::string name, Callbacks &&callbacks, bool twice, AutocastState autocast)
      : name_(std::move(name)), callbacks_(std::move(callbacks)), twice_(twice),
        autocast_(autocast) {}

  std::string name() const override { return name_; }

  void save(const variable_list &tensors) {
    for (const auto &tensor : tensors)
      saved_.emplace_back(tensor, tensor.grad_fn().get() == this);
  }

  variable_list apply(variable_list &&gradients) override {
    // As in libtorch's own custom functions: one call at a time, and not during a release.
    std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    const bool recorded = at::GradMode::is_enabled();

    variable_list saved;
    saved.reserve(saved_.size());
    for (const auto &variable : saved_)
      saved.push_back(variable.unpack(shared_from_this()));
    // If the graph is not kept, this is the last use. The two handles are the node's and the one here.
    const bool last = !recorded && !torch::autograd::get_current_graph_task_keep_graph();
    std::vector<uint8_t> overwritable;
    for (const auto &tensor : saved)
      overwritable.push_back(last && tensor.use_count() == 2 && tensor.has_storage() &&
                             tensor.storage().use_count() == 1 && !tensor.requires_grad());

    const size_t inputs = num_outputs();
    std::vector<uint8_t> needed;
    for (size_t i = 0; i < inputs; ++i)
      needed.push_back(task_should_compute_output(i));

    auto results = call(gradients, saved, overwritable, needed);
    if (recorded && !twice_)
      forbid_second_derivative(gradients, results);
    return results;
  }

  void release_variables() override {
    // Dropping these may run Rust code, so it must not happen under the lock.
    std::vector<SavedVariable> saved;
    Callbacks callbacks;
    std::lock_guard<std::mutex> lock(mutex_);
    released_ = true;
    saved.swap(saved_);
    std::swap(callbacks, callbacks_);
  }

private:
  variable_list call(const variable_list &gradients, const variable_list &saved,
                     const std::vector<uint8_t> &overwritable,
                     const std::vector<uint8_t> &needed) const {
    std::vector<at::Tensor *> gradient_handles, saved_handles;
    for (const auto &gradient : gradients)
      gradient_handles.push_back(
          gradient.defined() ? const_cast<at::Tensor *>(&gradient) : nullptr);
    for (const auto &tensor : saved)
      saved_handles.push_back(const_cast<at::Tensor *>(&tensor));
    std::vector<at::Tensor *> written(needed.size(), nullptr);
    int status;
    {
      AutocastGuard autocast(autocast_);
      at::AutoGradMode mode(at::GradMode::is_enabled() && twice_);
      const te_backward_call call{
          gradient_handles.data(), gradients.size(), saved_handles.data(), overwritable.data(),
          saved.size(),            needed.data(),    written.data(),       needed.size()};
      status = callbacks_.backward(call);
    }
    variable_list results;
    for (at::Tensor *tensor : written)
      results.push_back(tensor ? *std::unique_ptr<at::Tensor>(tensor) : at::Tensor());
    // libtorch propagates the exception to the caller of backward, also from another thread.
    if (status != 0)
      throw std::runtime_error(te_last_error());
    return results;
  }

  // Without this, the results of a backward pass that was not recorded would look like constants.
  void forbid_second_derivative(const variable_list &gradients, variable_list &results) const {
    auto edges = torch::autograd::collect_next_edges(gradients);
    edges.insert(edges.end(), next_edges().begin(), next_edges().end());
    auto error = std::shared_ptr<torch::autograd::Error>(
        new torch::autograd::Error("the backward pass of `" + name_ +
                                       "` cannot be differentiated again (its "
                                       "`twice_differentiable` says so)",
                                   std::move(edges)),
        torch::autograd::deleteNode);
    for (auto &result : results) {
      if (!result.defined())
        continue;
      result = result.detach();
      torch::autograd::create_gradient_edge(result, error);
    }
  }

  std::string name_;
  Callbacks callbacks_;
  bool twice_;
  AutocastState autocast_;
  std::vector<SavedVariable> saved_;
  bool released_ = false;
};

std::unordered_set<at::TensorImpl *> identities(const variable_list &tensors) {
  std::unordered_set<at::TensorImpl *> set;
  for (const auto &tensor : tensors)
    set.insert(tensor.unsafeGetTensorImpl());
  return set;
}

} // namespace

extern "C" {

// Whether operations of this thread are recorded.
int te_is_recording() { return at::GradMode::is_enabled() ? 1 : 0; }

// Marks a tensor as changed in place, so that backward passes that need its old values fail.
int te_bump_version(at::Tensor *tensor) {
  return guarded([&] { tensor->unsafeGetTensorImpl()->bump_version(); });
}

// Records that `function` computed `outputs` from `inputs`. Takes ownership of `function`, also on failure.
// `results` receives one tensor per output.
int te_autograd_record(const char *name, te_function function, int twice,
                       at::Tensor *const *inputs, size_t input_count,
                       at::Tensor *const *outputs, size_t output_count,
                       at::Tensor *const *saved, size_t saved_count,
                       at::Tensor *const *non_differentiable, size_t non_differentiable_count,
                       at::Tensor **results) {
  Callbacks callbacks(function);
  return guarded([&] {
    const auto input_vars = share(inputs, input_count);
    const auto output_vars = share(outputs, output_count);
    for (const auto &output : output_vars)
      TORCH_CHECK(output.defined(), "`", name, "` returned an undefined tensor");
    TORCH_CHECK(identities(output_vars).size() == output_count, "`", name,
                "` returned one tensor as two outputs");
    const bool recorded =
        at::GradMode::is_enabled() && torch::autograd::any_variable_requires_grad(input_vars);
    std::shared_ptr<FunctionNode> node;
    if (recorded) {
      const auto device = input_vars[0].device().type();
      const auto autocast = AutocastState::now(device);
      node = std::shared_ptr<FunctionNode>(
          new FunctionNode(name, std::move(callbacks), twice != 0, autocast),
          torch::autograd::deleteNode);
      node->set_next_edges(torch::autograd::collect_next_edges(input_vars));
    }
    const std::vector<std::optional<at::Tensor>> raw(output_vars.begin(), output_vars.end());
    const auto wrapped = torch::autograd::_wrap_outputs(
        input_vars, identities(share(non_differentiable, non_differentiable_count)), {}, raw,
        node,
        [name](const variable_list &, const variable_list &) -> variable_list {
          TORCH_CHECK(false, "`", name, "` has no forward-mode derivative");
        },
        {}, [](const at::Tensor &tensor) { return tensor.view_as(tensor); },
        /*pure_view=*/false);
    // Saved after the outputs are part of the graph, since an output may be among the saved tensors.
    if (node)
      node->save(share(saved, saved_count));
    for (size_t i = 0; i < output_count; ++i)
      results[i] = new at::Tensor(wrapped[i].value());
  });
}
}
