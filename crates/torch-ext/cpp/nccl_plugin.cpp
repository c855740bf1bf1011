// Adds NCCL to a process group. NCCL's part of c10d is in libtorch_cuda.so, so this is a shared object of its own, which is
// loaded after that library. `cargo xtask nccl` compiles it.
#define USE_C10D_NCCL
#include "distributed.h"
#include "shim.h"

#include <c10/util/env.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <torch/headeronly/version.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <future>
#include <thread>

using torch_ext::guarded;

// The size of c10d's options depends on the version of this header.
static_assert(NCCL_VERSION_CODE == NCCL_VERSION(2, 28, 9),
              "libtorch 2.11.0 is compiled with NCCL 2.28.9: use the nccl.h of that version");

namespace {

thread_local void (*set_error_of_shim)(const char *) = nullptr;

// Before c10d ends a process in which an operation takes too long, it writes a report and waits a minute for the reports
// of the others, unless these variables say otherwise.
void end_in_time() {
  if (c10::utils::has_env("TORCH_NCCL_DUMP_ON_TIMEOUT"))
    return;
  c10::utils::set_env("TORCH_NCCL_DUMP_ON_TIMEOUT", "0");
  c10::utils::set_env("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "0", /*overwrite=*/false);
}

// c10d ends the process by an exception that leaves one of its threads. This prints its message without the C++ frames.
[[noreturn]] void end_process() {
  std::string message = "an exception left a thread";
  try {
    if (auto exception = std::current_exception())
      std::rethrow_exception(exception);
  } catch (const std::exception &error) {
    message = error.what();
    message = message.substr(0, message.find("\nException raised from "));
  } catch (...) {
  }
  std::fprintf(stderr, "error: %s\n", message.c_str());
  std::abort();
}

// NCCL waits without end for a rank that does not connect. After the timeout, its thread is left behind.
void connect(const c10::intrusive_ptr<c10d::ProcessGroupNCCL> &nccl, at::Device device,
             std::chrono::milliseconds timeout) {
  std::packaged_task<void()> task([nccl, device] { nccl->eagerConnectSingleDevice(device); });
  auto end = task.get_future();
  std::thread(std::move(task)).detach();
  TORCH_CHECK(end.wait_for(timeout) == std::future_status::ready,
              "NCCL did not connect all ranks within ", timeout.count(), " ms");
  end.get();
}

} // namespace

void torch_ext::set_error(const char *message) { set_error_of_shim(message); }

// Makes `group` run operations on CUDA tensors with NCCL on `device`, connecting all ranks. `torch_version` is that of the
// headers of the shim, whose types must be those of this file. Errors are passed to `set_error`.
//
// A change of the parameters or of `distributed.h` changes the name, so that a plugin of another build is refused.
extern "C" __attribute__((visibility("default"))) int
te_nccl_attach_1(te_group *group, te_store *store, const char *name, int rank, int size,
                 uint64_t timeout_ms, int device, const char *torch_version,
                 void (*set_error)(const char *)) {
  set_error_of_shim = set_error;
  return guarded([&] {
    TORCH_CHECK(std::string(torch_version) == TORCH_VERSION, "the NCCL plugin is built for libtorch ",
                TORCH_VERSION, ", not ", torch_version, ": run `cargo xtask nccl` again");
    using c10d::ProcessGroupNCCL;
    end_in_time();
    std::set_terminate(end_process);
    const std::chrono::milliseconds timeout(timeout_ms);
    const auto target = torch_ext::device_of(device);
    auto own = c10::make_intrusive<c10d::PrefixStore>(name, store->store);
    auto options = ProcessGroupNCCL::Options::create();
    options->timeout = timeout;
    options->group_name = name;
    auto nccl = c10::make_intrusive<ProcessGroupNCCL>(own, rank, size, options);
    connect(nccl, target, timeout);
    group->group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL,
                             std::optional<c10::intrusive_ptr<c10d::Backend>>(nccl));
    group->device = device;
  });
}
