// The C library's allocator, set for tensor work.
#pragma once

namespace limbeck::cli {

// Keeps freed buffers in the process instead of handing them back to the kernel after every step. Call before the first
// tensor exists. Leaves alone what the user sets in the environment (MALLOC_TRIM_THRESHOLD_ and its like, or another
// allocator in LD_PRELOAD).
void tune_allocator();

}  // namespace limbeck::cli
