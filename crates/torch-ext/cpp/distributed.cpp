#define USE_C10D_GLOO
#include "distributed.h"
#include "shim.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>
#include <unordered_set>

using torch_ext::guarded;
using torch_ext::share;

struct te_reducer {
  std::unique_ptr<c10d::Reducer> reducer;
  te_group group;
};

namespace {

void finish(const c10::intrusive_ptr<c10d::Work> &work) {
  TORCH_CHECK(work->wait(), "the operation was aborted");
}

// Waits for the work of the current stream, which waits for every operation of the group. Returns whether it ended within
// the group's timeout.
bool wait_for_queued(const te_group &group) {
  if (group.device < 0)
    return true;
  const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
  c10::Event end(c10::DeviceType::CUDA);
  end.record(guard.getStream(torch_ext::device_of(group.device)));
  const auto deadline = std::chrono::steady_clock::now() + group.timeout;
  while (!end.query()) {
    if (std::chrono::steady_clock::now() > deadline)
      return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

// Reduces buckets in another dtype. Each rank divides before the sum, which therefore cannot overflow.
class CastHook : public c10d::CppCommHookInterface<Group> {
public:
  CastHook(const Group &group, at::ScalarType dtype)
      : c10d::CppCommHookInterface<Group>(group), dtype_(dtype) {}

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket &bucket) override {
    at::Tensor whole = bucket.getBufferRef();
    std::vector<at::Tensor> cast{whole.to(dtype_).div_(state_->getSize())};
    return state_->allreduce(cast)->getFuture()->then(
        [whole](c10::ivalue::Future &reduced) {
          auto result = reduced.value();
          TORCH_INTERNAL_ASSERT(result.isTensorList(), "an all-reduce returns tensors");
          whole.copy_(result.toTensorVector()[0]);
          return c10::IValue(whole);
        },
        c10::TensorType::get());
  }

private:
  at::ScalarType dtype_;
};

// The parameters that `loss` depends on.
std::vector<at::Tensor> reached(const std::vector<at::Tensor> &params, const at::Tensor &loss) {
  using torch::autograd::Node;
  std::unordered_set<Node *> seen;
  std::vector<Node *> open;
  auto visit = [&](Node *node) {
    if (node && seen.insert(node).second)
      open.push_back(node);
  };
  visit(torch::autograd::impl::gradient_edge(loss).function.get());
  while (!open.empty()) {
    Node *node = open.back();
    open.pop_back();
    for (const auto &edge : node->next_edges())
      visit(edge.function.get());
  }
  std::vector<at::Tensor> found;
  for (const auto &param : params)
    if (seen.count(torch::autograd::impl::grad_accumulator(param).get()))
      found.push_back(param);
  return found;
}

// A reducer puts parameters in buckets by the order of their gradients in its first backward pass, and from then on
// sums in another order. This is that pass, so that the first step has the same bits as a later one.
void settle(c10d::Reducer &reducer, std::vector<at::Tensor> &params) {
  at::AutoGradMode with_gradients(true);
  at::Tensor sum = at::zeros({}, params.front().options());
  for (const auto &param : params)
    sum = sum + param.sum();
  reducer.prepare_for_forward();
  reducer.prepare_for_backward({});
  sum.backward();
  reducer.rebuild_buckets();
  for (auto &param : params)
    param.mutable_grad().reset();
}

} // namespace

extern "C" {

// libtorch reads TORCH_CPP_LOG_LEVEL only when Python starts it. Without the variable, only fatal messages remain: c10d
// writes each failure to standard error, with C++ frames, before it throws it.
void te_init_logging() {
  const char *level = std::getenv("TORCH_CPP_LOG_LEVEL");
  if (level && *level)
    c10::initLogging();
  else
    FLAGS_caffe2_log_level = c10::GLOG_FATAL;
}

// Connects to the store at an address, or serves it if `serves` is not 0. All keys get `prefix`.
int te_store_connect(const char *host, uint16_t port, int serves, uint64_t timeout_ms,
                     const char *prefix, te_store **out) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves != 0;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
    *out = new te_store{c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(tcp))};
  });
}

void te_store_free(te_store *store) { delete store; }

int te_store_set(te_store *store, const char *key, const uint8_t *value, size_t length) {
  return guarded([&] { store->store->set(key, std::vector<uint8_t>(value, value + length)); });
}

// Passes the value to `receive` with `receiver`.
int te_store_get(te_store *store, const char *key, void *receiver,
                 void (*receive)(void *, const uint8_t *, size_t)) {
  return guarded([&] {
    auto value = store->store->get(key);
    receive(receiver, value.data(), value.size());
  });
}

int te_store_check(te_store *store, const char *key, int *out) {
  return guarded([&] { *out = store->store->check({key}); });
}

int te_store_add(te_store *store, const char *key, int64_t value, int64_t *out) {
  return guarded([&] { *out = store->store->add(key, value); });
}

// A group on the CPU, with keys of its own in the store. It listens on `interface`, or on the interface of `host`, or on
// that of the machine's name; a null pointer is no choice.
int te_group_gloo(te_store *store, const char *name, int rank, int size, uint64_t timeout_ms,
                  const char *interface, const char *host, te_group **out) {
  return guarded([&] {
    using c10d::ProcessGroupGloo;
    auto options = ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
    options->devices.push_back(interface ? ProcessGroupGloo::createDeviceForInterface(interface)
                               : host    ? ProcessGroupGloo::createDeviceForHostname(host)
                                         : ProcessGroupGloo::createDefaultDevice());
    c10::intrusive_ptr<c10d::Store> own =
        c10::make_intrusive<c10d::PrefixStore>(name, store->store);
    auto backend = c10::make_intrusive<ProcessGroupGloo>(own, rank, size, options);
    auto group = c10::make_intrusive<c10d::ProcessGroup>(own, rank, size);
    group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, backend);
    group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    *out = new te_group{std::move(group), -1, std::chrono::milliseconds(timeout_ms)};
  });
}

// The end of the last reference to a group with NCCL aborts what is queued. Thus this waits first.
int te_group_free(te_group *group) {
  const std::unique_ptr<te_group> owned(group);
  return guarded([&] { wait_for_queued(*owned); });
}

// `op` is the number of a `c10d::ReduceOp`: 0 sum, 1 average, 3 minimum, 4 maximum.
int te_all_reduce_(te_group *group, at::Tensor *tensor, int op) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{*tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = static_cast<c10d::ReduceOp::RedOpType>(op);
    finish(group->group->allreduce(tensors, options));
  });
}

int te_broadcast_(te_group *group, at::Tensor *tensor, int root) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    finish(group->group->broadcast(tensors, options));
  });
}

// `out` has room for as many pointers as the group has ranks.
int te_all_gather(te_group *group, at::Tensor *tensor, at::Tensor **out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> inputs{*tensor};
    std::vector<std::vector<at::Tensor>> outputs(1);
    for (int rank = 0; rank < group->group->getSize(); ++rank)
      outputs[0].push_back(at::empty_like(*tensor));
    finish(group->group->allgather(outputs, inputs));
    for (size_t rank = 0; rank < outputs[0].size(); ++rank)
      out[rank] = new at::Tensor(std::move(outputs[0][rank]));
  });
}

int te_barrier(te_group *group) {
  return guarded([&] {
    TORCH_CHECK(wait_for_queued(*group), "the work that is queued on the device did not end within ",
                group->timeout.count(), " ms");
    finish(group->group->barrier());
  });
}

// `dtype` is the dtype of the reduction, or -1 for that of the gradients. `loss` tells which parameters have gradients.
int te_reducer_new(te_group *group, at::Tensor *const *params, size_t count, at::Tensor *loss,
                   int64_t bucket_bytes, int dtype, te_reducer **out) {
  return guarded([&] {
    auto used = reached(share(params, count), *loss);
    TORCH_CHECK(!used.empty(), "the loss depends on none of the tensors");
    auto first = std::min<int64_t>(c10d::kDefaultFirstBucketBytes, bucket_bytes);
    auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
        used, {static_cast<size_t>(first), static_cast<size_t>(bucket_bytes)}));
    // The backward pass computes the gradients of the last parameters first.
    std::reverse(buckets.begin(), buckets.end());
    auto reducer = std::make_unique<c10d::Reducer>(
        used, std::move(buckets), group->group, std::vector<bool>(used.size(), false), bucket_bytes,
        /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/true,
        std::unordered_map<size_t, std::string>(), first,
        /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
        std::vector<int64_t>());
    if (dtype >= 0)
      reducer->register_comm_hook(
          std::make_unique<CastHook>(group->group, static_cast<at::ScalarType>(dtype)));
    settle(*reducer, used);
    *out = new te_reducer{std::move(reducer), *group};
  });
}

int te_reducer_free(te_reducer *reducer) {
  return guarded([&] {
    const std::unique_ptr<te_reducer> owned(reducer);
    wait_for_queued(owned->group);
  });
}

// Runs the backward pass of `loss`, and returns when the gradients of all processes are averaged, or on a CUDA device when
// that is queued.
int te_reducer_backward(te_reducer *reducer, at::Tensor *loss) {
  return guarded([&] {
    reducer->reducer->prepare_for_forward();
    reducer->reducer->prepare_for_backward({});
    loss->backward();
  });
}
}
