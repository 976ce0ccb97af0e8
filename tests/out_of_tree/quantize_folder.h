// A model quantized by the library alone, as a program of one's own would.
#pragma once
#include <cstdint>

// What the folder weighs by the estimate; -1, with the reason on standard error, where it could not be made.
int64_t quantize_folder(const char* model, const char* output);
