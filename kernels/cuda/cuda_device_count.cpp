// A plain symbol of liblimbeck_cuda.so; cuda_library.cpp looks it up.
#include <c10/cuda/CUDAFunctions.h>

extern "C" int limbeck_cuda_device_count() { return c10::cuda::device_count(); }
