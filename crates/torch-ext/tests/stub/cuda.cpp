// A stand-in for the CUDA runtime, the driver and NCCL, for tests without a GPU. Its two devices have the host's memory.
// Kernels do nothing, and everything else is done at once. A collective operation of NCCL behaves as if all ranks had
// the tensor of this one.
//
// STUB_HANG=1: an all-reduce does not end. STUB_LOST=1: after an all-reduce, the connection to another rank is lost.
// STUB_ABSENT=1: the connection of the ranks does not end.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

namespace {

std::atomic<bool> reduced{false};
int ranks = 1;
thread_local int current = 0;

bool is_set(const char *name) { return std::getenv(name) != nullptr; }

cudaError_t query() {
  return reduced && is_set("STUB_HANG") ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t synchronize() {
  while (query() != cudaSuccess)
    usleep(1000);
  return cudaSuccess;
}

template <typename Handle> cudaError_t handle(Handle *out) {
  static std::atomic<size_t> next{0};
  *out = reinterpret_cast<Handle>(++next * 64);
  return cudaSuccess;
}

cudaError_t allocate(void **out, size_t size) {
  *out = std::aligned_alloc(512, (size + 511) / 512 * 512);
  return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t release(void *memory) {
  std::free(memory);
  return cudaSuccess;
}

template <typename T> cudaError_t set(T *out, T value) {
  *out = value;
  return cudaSuccess;
}

size_t bytes(size_t count, ncclDataType_t type) {
  switch (type) {
  case ncclInt8:
  case ncclUint8:
    return count;
  case ncclFloat16:
  case ncclBfloat16:
    return count * 2;
  case ncclInt64:
  case ncclUint64:
  case ncclFloat64:
    return count * 8;
  default:
    return count * 4;
  }
}

ncclResult_t copy(void *out, const void *in, size_t count, ncclDataType_t type) {
  std::memmove(out, in, bytes(count, type));
  return ncclSuccess;
}

} // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int *count) { return set(count, 2); }
cudaError_t cudaGetDevice(int *device) { return set(device, current); }
cudaError_t cudaSetDevice(int device) { return set(&current, device); }
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) { return set(value, 1); }
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { return set(can, 0); }
cudaError_t cudaDriverGetVersion(int *version) { return set(version, CUDART_VERSION); }
cudaError_t cudaRuntimeGetVersion(int *version) { return set(version, CUDART_VERSION); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  return set(greatest, -1);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int) {
  std::memset(out, 0, sizeof *out);
  out->major = 9;
  out->warpSize = 32;
  out->multiProcessorCount = 8;
  out->maxThreadsPerMultiProcessor = 2048;
  out->maxThreadsPerBlock = 1024;
  out->maxGridSize[0] = out->maxGridSize[1] = out->maxGridSize[2] = 65535;
  out->sharedMemPerBlock = 48 << 10;
  out->totalGlobalMem = size_t(8) << 30;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return synchronize(); }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *free = size_t(4) << 30;
  return set(total, size_t(8) << 30);
}
cudaError_t cudaMalloc(void **out, size_t size) { return allocate(out, size); }
cudaError_t cudaFree(void *memory) { return release(memory); }
cudaError_t cudaHostAlloc(void **out, size_t size, unsigned) { return allocate(out, size); }
cudaError_t cudaFreeHost(void *memory) { return release(memory); }
cudaError_t cudaMemcpy(void *out, const void *in, size_t size, cudaMemcpyKind) {
  std::memmove(out, in, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *out, const void *in, size_t size, cudaMemcpyKind, cudaStream_t) {
  std::memmove(out, in, size);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *out, int value, size_t size, cudaStream_t) {
  std::memset(out, value, size);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *out, const void *) {
  std::memset(out, 0, sizeof *out);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned, int) { return handle(out); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return query(); }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return synchronize(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *out) {
  return set(out, cudaStreamCaptureStatusNone);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *out) { return handle(out); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) { return handle(out); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return query(); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return synchronize(); }
cudaError_t cudaEventElapsedTime(float *out, cudaEvent_t, cudaEvent_t) { return set(out, 1.0f); }

unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void *) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = *block = dim3(1);
  *shared = 0;
  return set(static_cast<void **>(stream), static_cast<void *>(nullptr));
}
cudaError_t __cudaGetKernel(void **out, const void *function) {
  return set(out, const_cast<void *>(function));
}
cudaError_t __cudaLaunchKernel(void *, dim3, dim3, void **, size_t, cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void *, void **) {
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, const void *) {
  std::memset(out, 0, sizeof *out);
  return set(&out->maxThreadsPerBlock, 1024);
}
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *out, const void *, int,
                                                                   size_t, unsigned) {
  return set(out, 2);
}

// libtorch loads the driver when it sets the device of a thread.
#define DRIVER(name)                                                                               \
  int name(...) { return 0; }
DRIVER(cuCtxGetCurrent)
DRIVER(cuCtxSetCurrent)
DRIVER(cuDeviceGet)
DRIVER(cuDeviceGetAttribute)
DRIVER(cuDevicePrimaryCtxGetState)
DRIVER(cuDevicePrimaryCtxRetain)
DRIVER(cuFuncGetAttribute)
DRIVER(cuFuncSetAttribute)
DRIVER(cuFuncSetCacheConfig)
DRIVER(cuGetErrorString)
DRIVER(cuLaunchCooperativeKernel)
DRIVER(cuLaunchKernel)
DRIVER(cuLinkAddData_v2)
DRIVER(cuLinkComplete)
DRIVER(cuLinkCreate_v2)
DRIVER(cuModuleGetFunction)
DRIVER(cuModuleLoad)
DRIVER(cuModuleLoadData)
DRIVER(cuModuleLoadDataEx)
DRIVER(cuModuleUnload)
DRIVER(cuOccupancyMaxActiveBlocksPerMultiprocessor)
DRIVER(cuPointerGetAttribute)
DRIVER(cuTensorMapEncodeTiled)

ncclResult_t ncclGetVersion(int *out) {
  *out = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *out) {
  std::memset(out, 1, sizeof *out);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId, int, ncclConfig_t *) {
  while (is_set("STUB_ABSENT"))
    sleep(1);
  ranks = size;
  handle(out);
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *out) {
  *out = reduced && is_set("STUB_LOST") ? ncclRemoteError : ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommAbort(ncclComm_t) {
  reduced = false;
  return ncclSuccess;
}
const char *ncclGetErrorString(ncclResult_t) { return "an error of the stub"; }
const char *ncclGetLastError(ncclComm_t) { return ""; }
ncclResult_t ncclGroupStart() { return ncclSuccess; }
ncclResult_t ncclGroupEnd() { return ncclSuccess; }
ncclResult_t ncclAllReduce(const void *in, void *out, size_t count, ncclDataType_t type, ncclRedOp_t,
                           ncclComm_t, cudaStream_t) {
  reduced = true;
  return copy(out, in, count, type);
}
ncclResult_t ncclBroadcast(const void *in, void *out, size_t count, ncclDataType_t type, int,
                           ncclComm_t, cudaStream_t) {
  return copy(out, in, count, type);
}
ncclResult_t ncclBcast(void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t) {
  return ncclSuccess;
}
ncclResult_t ncclAllGather(const void *in, void *out, size_t count, ncclDataType_t type, ncclComm_t,
                           cudaStream_t) {
  for (int rank = 0; rank < ranks; ++rank)
    copy(static_cast<char *>(out) + rank * bytes(count, type), in, count, type);
  return ncclSuccess;
}
}
