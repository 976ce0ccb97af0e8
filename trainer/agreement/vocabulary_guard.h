// Whether two models read the same token ids. Heads that are padded to different sizes do; different tokenizers do not,
// and comparing them id by id would train on noise without a word.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "modules/models/weights/load_model.h"

namespace limbeck::agreement {

enum class Reads { kStudent, kTeacher };

using MeaningOfIds = std::map<int64_t, std::string>;

// What the tokenizers of a pair say. A tokenizer.json is large: each is parsed when a question needs it, and once.
class PairVocabulary {
 public:
  // Without a teacher there is nothing that could differ.
  PairVocabulary(const models::BuiltModel& student, const models::BuiltModel* teacher);

  // Why the models' vocabularies cannot be the same, or "" when they may be: tokenizer.json of both folders where both
  // are there, else the sizes of the two tables, which may differ by padding.
  const std::string& difference();

  // A checksum of what each id of a model's tokenizer.json means, as tools/prepare_data.py keeps it in a manifest
  // (tokenizer_file.py: ids_fingerprint). Tokens that were added to the model's own vocabulary are left out: a chat
  // marker more is no other tokenizer. Nothing where there is no such file, or of a kind that we do not read.
  const std::optional<std::string>& fingerprint(Reads who);

 private:
  struct Side {
    std::filesystem::path folder = {};
    int64_t rows = 0;  // of the model's table
    bool parsed = false;
    std::optional<std::string> fingerprint = std::nullopt;
    std::optional<MeaningOfIds> ids = std::nullopt;  // until the difference is known
  };
  void parse(Side& side, const std::string& text);
  std::string differing_meaning();

  Side student_;
  std::optional<Side> teacher_;
  std::optional<std::string> difference_;
};

// PairVocabulary::fingerprint of a folder that is no model's.
std::optional<std::string> ids_fingerprint(const std::filesystem::path& folder);

// Whether a table of `rows` can be a padded one of `real` ids.
bool is_padding(int64_t rows, int64_t real);

}  // namespace limbeck::agreement
