// What the steps of a stranger's tokenizer may make of a text: sixty that double it would fill any memory. Each step is
// held to what it was given, and all of them together to the text they began with.
#pragma once
#include <cstddef>
#include <string>

namespace limbeck::text {

// Bytes, more than any known tokenizer makes: a ligature of 3 bytes has 33 when it is written out, and ▁ is 3 for a
// space.
constexpr size_t most_grown(size_t bytes) { return (size_t{1} << 20) + 16 * bytes; }

[[noreturn]] void refuse_growth(const std::string& where, size_t most);  // WeightsError

}  // namespace limbeck::text
