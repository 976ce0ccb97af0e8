#include "trainer/objective/vocabulary_guard.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "modules/io/json_file.h"
#include "modules/text/tokenizer.h"

namespace limbeck::objective {

namespace {

using Json = nlohmann::json;
using Ids = std::map<int64_t, std::string>;

std::optional<std::string> tokenizer_text(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  if (!std::filesystem::exists(std::filesystem::symlink_status(path))) return std::nullopt;
  return io::read_json_text(path, text::kTokenizerLimits);
}

// The ids that a tokenizer.json gives out; none for a kind that we do not read.
std::optional<Ids> token_ids(const std::string& text, const std::filesystem::path& folder) {
  const Json json = io::parse_json(text, (folder / "tokenizer.json").string(), text::kTokenizerLimits);
  if (!json.is_object() || !json.contains("model") || !json["model"].is_object()) return std::nullopt;
  const Json vocabulary = json["model"].value("vocab", Json());
  Ids ids;
  if (vocabulary.is_object()) {
    for (const auto& [token, id] : vocabulary.items()) {
      if (id.is_number_integer()) ids[id.get<int64_t>()] = token;
    }
  } else if (vocabulary.is_array()) {  // unigram: [token, score], the index is the id
    for (size_t i = 0; i < vocabulary.size(); ++i) {
      const Json& entry = vocabulary[i];
      if (entry.is_array() && !entry.empty() && entry[0].is_string())
        ids[static_cast<int64_t>(i)] = entry[0].get<std::string>();
    }
  }
  return ids.empty() ? std::nullopt : std::optional<Ids>(ids);
}

std::string tokenizer_difference(const models::BuiltModel& teacher, const models::BuiltModel& student) {
  const auto &there = teacher.config.folder, &here = student.config.folder;
  const auto theirs = tokenizer_text(there), ours = tokenizer_text(here);
  if (!theirs || !ours || *theirs == *ours) return "";
  const auto t = token_ids(*theirs, there), s = token_ids(*ours, here);
  if (!t || !s) return "";
  // Ids that one of them has beyond the other's are additions (chat markers); an id with two meanings is a difference.
  for (const auto& [id, token] : *s) {
    const auto found = t->find(id);
    if (found != t->end() && found->second != token) {
      return fmt::format("id {} is \"{}\" in the teacher's tokenizer.json and \"{}\" in the student's", id,
                         found->second, token);
    }
  }
  return "";
}

}  // namespace

std::optional<std::string> ids_fingerprint(const std::filesystem::path& folder) {
  const auto text = tokenizer_text(folder);
  const auto ids = text ? token_ids(*text, folder) : std::nullopt;
  if (!ids) return std::nullopt;
  boost::crc_32_type crc;
  for (const auto& [id, token] : *ids) {
    const std::string line = fmt::format("{}\t{}\n", id, token);
    crc.process_bytes(line.data(), line.size());
  }
  return fmt::format("{:08x}", crc.checksum());
}

bool is_padding(int64_t rows, int64_t real) {
  // Tables are padded to a multiple of at most some hundreds, or by a share of a large vocabulary.
  constexpr int64_t kUsual = 64, kOneIn = 50;
  return rows >= real && rows - real <= std::max(kUsual, rows / kOneIn);
}

std::string vocabulary_difference(const models::BuiltModel& teacher, const models::BuiltModel& student) {
  const int64_t t = teacher.config.architecture.vocabulary, s = student.config.architecture.vocabulary;
  if (!is_padding(std::max(t, s), std::min(t, s)))
    return fmt::format("the teacher's vocabulary has {} ids, the student's {}", t, s);
  return tokenizer_difference(teacher, student);
}

}  // namespace limbeck::objective
