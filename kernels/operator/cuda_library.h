// liblimbeck_cuda.so holds the CUDA operators and brings libtorch_cuda (350 MB more of resident memory), so it is
// loaded only when a run asks for a GPU. It lies beside liblimbeck_kernels.so, and so does liblimbeck_nccl.so.
#pragma once
#include <string>

namespace limbeck::kernels {

// Loads it, once; throws c10::Error saying what to do where it or the driver is missing. Call it before anything that
// asks ATen for CUDA (at::manual_seed does): ATen keeps the first answer, which is "no" while libtorch_cuda is absent.
void load_cuda_library();

// Opens a library that lies beside this one and returns dlopen's handle; throws c10::Error that names the file.
void* open_library_beside(const std::string& file);

// Whether the CUDA operators are in this process, by whichever way they came.
bool cuda_library_loaded();

// A plain function of the library that is loaded; nullptr: it has none of that name, or is not loaded.
void* cuda_library_symbol(const char* name);

// Loads the library if it can; true when a GPU can be used. Never throws.
bool cuda_available();

// 90 for 9.0; 0 where that GPU cannot be used. Never throws.
int cuda_compute_capability(int device);

// "0000:01:00.0", where that GPU is on the bus; "" where it cannot be used. Never throws.
std::string cuda_bus_place(int device);

}  // namespace limbeck::kernels
