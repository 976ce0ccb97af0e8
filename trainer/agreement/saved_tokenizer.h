// Which tokenizer stands beside a student that is saved: a model that only knows ids cannot be asked in words.
#pragma once
#include <filesystem>
#include <string>

#include "trainer/data/data_source.h"

namespace limbeck::agreement {

// Of a student that is drawn at random, or whose folder holds no tokenizer.json: the one that packed its data, which
// tools/prepare_data.py left in `tokenizer/` in the data's folder or above it. It is taken only when its ids mean what
// the manifest says; empty: the student's own stays.
std::filesystem::path tokenizer_of_data(const std::filesystem::path& data, const data::Manifest& manifest,
                                        const std::filesystem::path& student, bool drawn_at_random);

}  // namespace limbeck::agreement
