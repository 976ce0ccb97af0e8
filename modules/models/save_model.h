// A model as a Hugging Face folder that transformers and our own loader read: weights by the checkpoint's names (tied
// ones once, experts one by one), config.json with the dtype that is stored, the tokenizer's files as they were.
#pragma once
#include <cstdint>
#include <filesystem>

#include "modules/io/safetensors.h"
#include "modules/models/load_model.h"

namespace limbeck::models {

inline constexpr uint64_t kMaxShardBytes = uint64_t{5} << 30;

// Writes `folder`, which must not exist or be empty; it appears complete or not at all. config.json and the tokenizer
// come from the folder that the model was read from. UsageError, IoError.
// before: see modules/io/safetensors.h.
void save_model(const BuiltModel& built, const std::filesystem::path& folder, uint64_t max_shard_bytes = kMaxShardBytes,
                const io::BeforeTensor& before = {});

}  // namespace limbeck::models
