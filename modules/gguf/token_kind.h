// What a token of a GGUF vocabulary is, by llama.cpp's numbers ("tokenizer.ggml.token_type").
#pragma once
#include <cstdint>

namespace limbeck::gguf {

enum TokenKind : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// The score of a token that no merge makes.
inline constexpr float kNeverJoined = -1e9F;

}  // namespace limbeck::gguf
