// A plain symbol of liblimbeck_cuda.so; cuda_library.cpp looks it up.
#include <cuda_runtime_api.h>

// "0000:01:00.0"; false for a device that is not there.
extern "C" bool limbeck_cuda_bus_place(int device, char* text, int length) {
  return cudaDeviceGetPCIBusId(text, length, device) == cudaSuccess;
}
