// A plain symbol of liblimbeck_cuda.so; cuda_library.cpp looks it up.
#include <cuda_runtime_api.h>

// 90 for 9.0; 0 for a device that is not there.
extern "C" int limbeck_cuda_compute_capability(int device) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) return 0;
  return 10 * major + minor;
}
