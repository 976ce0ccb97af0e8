// Which attention computes on a GPU: FlashAttention 3 of the library that flash_attention_3 names, or what Limbeck has.
#pragma once
#include <string>

#include "trainer/recipe/settings.h"

namespace limbeck::build {

inline constexpr const char* kFlashAttention3 = "flash_attention_3";  // of every command, and of a recipe

// Of the whole process, so that all models of a process must say the same. UsageError, before anything is computed,
// where the library cannot serve: by what it is, or by the device.
void choose_attention(const recipe::Settings& settings);

}  // namespace limbeck::build
