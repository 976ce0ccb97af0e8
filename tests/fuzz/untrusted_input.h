// One untrusted input through every parser that needs no torch, with the oracle: whatever is accepted must satisfy the
// invariants, recomputed here by other means (128-bit arithmetic, a second JSON parser). A violation aborts.
// Shared by the libFuzzer target and by the corpus replay among the ordinary tests.
#pragma once
#include <cstddef>
#include <cstdint>

namespace limbeck::fuzz {

struct Verdict {
  bool safetensors = false;  // accepted as a whole .safetensors file
  bool json = false;         // accepted as JSON
  bool index = false;        // accepted as model.safetensors.index.json
};

Verdict judge(const uint8_t* data, size_t size);

}  // namespace limbeck::fuzz
