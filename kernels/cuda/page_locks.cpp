// Plain symbols of liblimbeck_cuda.so, which modules/memory/page_locked.cpp looks up.
#include <cuda_runtime_api.h>

// Host memory for the current device to copy to and from by itself; nullptr, or why not.
extern "C" const char* limbeck_cuda_lock_pages(void* memory, size_t bytes) {
  const cudaError_t code = cudaHostRegister(memory, bytes, cudaHostRegisterDefault);
  if (code == cudaSuccess) return nullptr;
  cudaGetLastError();  // or the next launch would be blamed for it
  return cudaGetErrorString(code);
}

// At the end of a process the driver may be gone: then nothing is left to undo.
extern "C" void limbeck_cuda_unlock_pages(void* memory) {
  if (cudaHostUnregister(memory) != cudaSuccess) cudaGetLastError();
}
