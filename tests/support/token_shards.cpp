#include "tests/support/token_shards.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "modules/io/crc32c.h"
#include "modules/io/safetensors.h"
#include "tests/modules/weights_files.h"

namespace limbeck::test {
namespace {

template <class T>
at::Tensor as_tensor(const std::vector<T>& values) {
  at::Tensor out = at::empty({static_cast<int64_t>(values.size())}, c10::CppTypeToScalarType<T>::value);
  std::copy(values.begin(), values.end(), out.data_ptr<T>());
  return out;
}

struct Columns {
  std::vector<int32_t> ids, position;
  std::vector<uint8_t> mask;
  std::vector<int64_t> offsets = {0};

  void add(const std::vector<int32_t>& tokens, const std::vector<uint8_t>& targets) {
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    if (targets.empty()) mask.insert(mask.end(), tokens.size(), 1);
    mask.insert(mask.end(), targets.begin(), targets.end());
    offsets.push_back(static_cast<int64_t>(ids.size()));
  }
};

nlohmann::ordered_json write_shard(const std::filesystem::path& path, const std::vector<TokenDocument>& documents,
                                   const TokenSet& set) {
  Columns student, teacher;
  std::vector<int64_t> classes;
  for (const TokenDocument& document : documents) {
    student.add(document.ids, document.mask);
    teacher.add(document.teacher_ids, {});
    student.position.insert(student.position.end(), document.position.begin(), document.position.end());
    classes.push_back(document.label);
  }
  io::NamedTensors tensors = {{"input_ids", as_tensor(student.ids)},
                              {"target_mask", as_tensor(student.mask)},
                              {"document_offsets", as_tensor(student.offsets)}};
  if (set.teacher_vocabulary > 0) {
    tensors.insert(tensors.end(), {{"teacher.input_ids", as_tensor(teacher.ids)},
                                   {"teacher.target_mask", as_tensor(teacher.mask)},
                                   {"teacher.document_offsets", as_tensor(teacher.offsets)},
                                   {"teacher.position", as_tensor(student.position)}});
  }
  if (set.classes > 0) tensors.emplace_back("classes", as_tensor(classes));
  io::write_safetensors(path, tensors);
  int64_t targets = 0;
  for (const uint8_t bit : student.mask) targets += bit;
  return {{"file", path.filename().string()},
          {"bytes", std::filesystem::file_size(path)},
          {"crc32c", fmt::format("{:08x}", crc_of_file(path))},
          {"documents", documents.size()},
          {"tokens", student.ids.size()},
          {"targets", targets},
          {"teacher_tokens", teacher.ids.size()}};
}

nlohmann::ordered_json tokenizer_of(const char* digest, int64_t vocabulary, const TokenSet& set) {
  nlohmann::ordered_json out = {{"digest", digest}, {"vocabulary", vocabulary}};
  if (set.end_of_sequence >= 0) out["end_of_sequence"] = set.end_of_sequence;
  if (set.padding >= 0) out["padding"] = set.padding;
  return out;
}

}  // namespace

uint32_t crc_of_text(const std::string& text) { return io::crc32c(text.data(), text.size()); }

uint32_t crc_of_file(const std::filesystem::path& path) { return crc_of_text(read_bytes(path)); }

void write_manifest(const std::filesystem::path& folder, const nlohmann::ordered_json& manifest) {
  std::string text = manifest.dump(2);
  text.replace(text.size() - 2, 2, ",\n");
  write_bytes(folder / "manifest.json", text + fmt::format("  \"crc32c\": \"{:08x}\"\n}}\n", crc_of_text(text)));
}

nlohmann::ordered_json write_token_set(const std::filesystem::path& folder, const TokenSet& set) {
  std::filesystem::create_directories(folder);
  nlohmann::ordered_json manifest = {{"format", "limbeck-tokens"}, {"version", 2}};
  manifest["tokenizer"] = tokenizer_of("aa11", set.vocabulary, set);
  if (set.teacher_vocabulary > 0) manifest["teacher_tokenizer"] = tokenizer_of("bb22", set.teacher_vocabulary, set);
  if (set.classes > 0) manifest["classes"] = set.classes;
  int64_t documents = 0, tokens = 0;
  auto shards = nlohmann::ordered_json::array();
  for (size_t i = 0; i < set.shards.size(); ++i) {
    shards.push_back(write_shard(folder / fmt::format("shard-{:05d}.safetensors", i), set.shards[i], set));
    documents += shards.back()["documents"].get<int64_t>();
    tokens += shards.back()["tokens"].get<int64_t>();
  }
  manifest["documents"] = documents;
  manifest["tokens"] = tokens;
  manifest["shards"] = shards;
  write_manifest(folder, manifest);
  return manifest;
}

}  // namespace limbeck::test
