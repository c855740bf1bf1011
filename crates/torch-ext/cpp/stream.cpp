#include "shim.h"

#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

using torch_ext::guarded;

// libtorch_cuda.so registers its implementation of streams and events, so none of its symbols are needed
// here. A stream is passed as its device and its id.
namespace {
c10::impl::VirtualGuardImpl guard_of(int device) {
  return c10::impl::VirtualGuardImpl(torch_ext::device_of(device).type());
}

c10::Stream stream_of(int device, int64_t id) {
  return c10::Stream(c10::Stream::UNSAFE, torch_ext::device_of(device), id);
}
} // namespace

extern "C" {

// The `cudaStream_t` on which this thread's operators run on `device`.
int te_current_stream(int device, void **out) {
  return guarded([&] {
    const auto guard = guard_of(device);
    *out = guard.getStreamNativeHandle(guard.getStream(torch_ext::device_of(device)));
  });
}

int te_stream_current(int device, int64_t *id) {
  return guarded(
      [&] { *id = guard_of(device).getStream(torch_ext::device_of(device)).id(); });
}

int te_stream_from_pool(int device, int high_priority, int64_t *id) {
  return guarded([&] {
    *id = guard_of(device)
              .getStreamFromGlobalPool(torch_ext::device_of(device), high_priority != 0)
              .id();
  });
}

// Sets this thread's current stream for its device.
int te_stream_exchange(int device, int64_t id, int64_t *previous) {
  return guarded([&] {
    *previous = guard_of(device).exchangeStream(stream_of(device, id)).id();
  });
}

// Sets this thread's current device.
int te_device_exchange(int device, int *previous) {
  return guarded([&] {
    *previous = guard_of(device).exchangeDevice(torch_ext::device_of(device)).index();
  });
}

int te_event_record(int device, int64_t id, c10::Event **out) {
  return guarded([&] {
    const auto stream = stream_of(device, id);
    auto event = std::make_unique<c10::Event>(stream.device_type());
    event->record(stream);
    *out = event.release();
  });
}

int te_event_wait(const c10::Event *event, int device, int64_t id) {
  return guarded([&] { event->block(stream_of(device, id)); });
}

// Makes the calling thread wait for the event.
int te_event_synchronize(const c10::Event *event) {
  return guarded([&] { event->synchronize(); });
}

void te_event_free(c10::Event *event) { delete event; }

// The tensor's memory is not reused before the work that is queued on the stream when the tensor is freed is
// done.
int te_record_stream(at::Tensor *tensor, int device, int64_t id) {
  return guarded([&] { tensor->record_stream(stream_of(device, id)); });
}
}
