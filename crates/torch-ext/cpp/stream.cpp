#include "shim.h"

#include <c10/core/impl/VirtualGuardImpl.h>

using torch_ext::guarded;

extern "C" {

// The `cudaStream_t` on which this thread's operators run on `device`. libtorch_cuda.so registered
// how to find it, so that none of its symbols is needed here.
int te_current_stream(int device, void **out) {
  return guarded([&] {
    const auto target = torch_ext::device_of(device);
    const c10::impl::VirtualGuardImpl guard(target.type());
    *out = guard.getStreamNativeHandle(guard.getStream(target));
  });
}
}
