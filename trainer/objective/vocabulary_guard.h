// Whether two models read the same token ids. Heads that are padded to different sizes do; different tokenizers do not,
// and comparing them id by id would train on noise without a word.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "modules/models/load_model.h"

namespace limbeck::objective {

// Why the models' vocabularies cannot be the same, or "" when they may be: tokenizer.json of both folders where both
// are there, else the sizes of the two tables, which may differ by padding.
std::string vocabulary_difference(const models::BuiltModel& teacher, const models::BuiltModel& student);

// A checksum of what each id of a folder's tokenizer.json means, as tools/prepare_data.py keeps it in a manifest
// (tokenizer_file.py: ids_fingerprint). Tokens that were added to the model's own vocabulary are left out: a chat
// marker more is no other tokenizer. Nothing where there is no such file, or of a kind that we do not read.
std::optional<std::string> ids_fingerprint(const std::filesystem::path& folder);

// Whether a table of `rows` can be a padded one of `real` ids.
bool is_padding(int64_t rows, int64_t real);

}  // namespace limbeck::objective
