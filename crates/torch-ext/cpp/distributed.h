// Stores and groups, which the shim and the NCCL plugin share.
#pragma once

#define USE_DISTRIBUTED

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>

struct te_store {
  c10::intrusive_ptr<c10d::Store> store;
};

struct te_group {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  // The CUDA device that operations are queued on, or -1 if there is none.
  int device;
  std::chrono::milliseconds timeout;
};
