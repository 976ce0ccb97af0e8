#include "trainer/agreement/vocabulary_guard.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "modules/io/crc32c.h"
#include "modules/io/json_file.h"
#include "modules/text/tokenizer.h"

namespace limbeck::agreement {

namespace {

using Json = nlohmann::json;

std::optional<std::string> tokenizer_text(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  if (!std::filesystem::exists(std::filesystem::symlink_status(path))) return std::nullopt;
  return io::read_json_text(path, text::kTokenizerLimits);
}

// The ids that a tokenizer.json gives out; none for a kind that we do not read.
std::optional<MeaningOfIds> ids_in(const std::string& text, const std::filesystem::path& folder) {
  const Json json = io::parse_json(text, (folder / "tokenizer.json").string(), text::kTokenizerLimits);
  if (!json.is_object() || !json.contains("model") || !json["model"].is_object()) return std::nullopt;
  const Json& model = json["model"];
  const auto held = model.find("vocab");
  if (held == model.end()) return std::nullopt;
  const Json& vocabulary = *held;
  MeaningOfIds ids;
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
  if (ids.empty()) return std::nullopt;
  return ids;
}

std::string checksum(const MeaningOfIds& ids) {
  uint32_t crc = 0;
  for (const auto& [id, token] : ids) {
    const std::string line = fmt::format("{}\t{}\n", id, token);
    crc = io::crc32c(line.data(), line.size(), crc);
  }
  return fmt::format("{:08x}", crc);
}

}  // namespace

std::optional<std::string> ids_fingerprint(const std::filesystem::path& folder) {
  const auto text = tokenizer_text(folder);
  const auto ids = text ? ids_in(*text, folder) : std::nullopt;
  if (!ids) return std::nullopt;
  return checksum(*ids);
}

bool is_padding(int64_t rows, int64_t real) {
  // Tables are padded to a multiple of at most some hundreds, or by a share of a large vocabulary.
  constexpr int64_t kUsual = 64, kOneIn = 50;
  return rows >= real && rows - real <= std::max(kUsual, rows / kOneIn);
}

PairVocabulary::PairVocabulary(const models::BuiltModel& student, const models::BuiltModel* teacher)
    : student_{.folder = student.config.folder, .rows = student.config.architecture.vocabulary} {
  if (teacher != nullptr)
    teacher_ = Side{.folder = teacher->config.folder, .rows = teacher->config.architecture.vocabulary};
}

void PairVocabulary::parse(Side& side, const std::string& text) {
  if (side.parsed) return;
  side.ids = ids_in(text, side.folder);
  side.parsed = true;
  if (!side.ids) return;
  side.fingerprint = checksum(*side.ids);
  if (!teacher_ || difference_) side.ids.reset();
}

const std::optional<std::string>& PairVocabulary::fingerprint(Reads who) {
  Side& side = who == Reads::kStudent ? student_ : teacher_.value();
  if (side.parsed) return side.fingerprint;
  const auto text = tokenizer_text(side.folder);
  if (!text) {
    side.parsed = true;
    return side.fingerprint;
  }
  if (teacher_) {
    const Side& other = who == Reads::kStudent ? *teacher_ : student_;
    if (other.parsed && tokenizer_text(other.folder) == text) {
      side.parsed = true;
      return side.fingerprint = other.fingerprint;
    }
  }
  parse(side, *text);
  return side.fingerprint;
}

std::string PairVocabulary::differing_meaning() {
  const auto theirs = tokenizer_text(teacher_->folder), ours = tokenizer_text(student_.folder);
  if (!theirs || !ours || *theirs == *ours) return "";
  parse(*teacher_, *theirs);
  parse(student_, *ours);
  if (!teacher_->ids || !student_.ids) return "";
  // Ids that one of them has beyond the other's are additions (chat markers); an id with two meanings is a difference.
  for (const auto& [id, token] : *student_.ids) {
    const auto found = teacher_->ids->find(id);
    if (found != teacher_->ids->end() && found->second != token) {
      return fmt::format("id {} is \"{}\" in the teacher's tokenizer.json and \"{}\" in the student's", id,
                         found->second, token);
    }
  }
  return "";
}

const std::string& PairVocabulary::difference() {
  if (difference_) return *difference_;
  if (!teacher_) return difference_.emplace();
  const int64_t t = teacher_->rows, s = student_.rows;
  difference_ = is_padding(std::max(t, s), std::min(t, s))
                    ? differing_meaning()
                    : fmt::format("the teacher's vocabulary has {} ids, the student's {}", t, s);
  student_.ids.reset();
  teacher_->ids.reset();
  return *difference_;
}

}  // namespace limbeck::agreement
