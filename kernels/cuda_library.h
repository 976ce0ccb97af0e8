// liblimbeck_cuda.so holds the CUDA operators and brings libtorch_cuda (350 MB more of resident memory), so it is
// loaded only when a run asks for a GPU. The two libraries lie side by side.
#pragma once

namespace limbeck::kernels {

// Loads it, once; throws c10::Error saying what to do where it or the driver is missing. Call it before anything that
// asks ATen for CUDA (at::manual_seed does): ATen keeps the first answer, which is "no" while libtorch_cuda is absent.
void load_cuda_library();

// Whether the CUDA operators are in this process, by whichever way they came.
bool cuda_library_loaded();

// Loads the library if it can; true when a GPU can be used. Never throws.
bool cuda_available();

}  // namespace limbeck::kernels
