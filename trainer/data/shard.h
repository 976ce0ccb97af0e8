// One file of token shards, open and verified: size, CRC-32C, tensors, document offsets, every id within the
// tokenizer's vocabulary. Tokens stay on disk and are read by range (any thread); offsets and classes are held in
// memory.
#pragma once
#include <cstdint>
#include <exception>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "modules/io/input_file.h"
#include "trainer/data/manifest_file.h"

namespace limbeck::data {

enum class Which { kStudent, kTeacher };  // kStudent: the only stream, unless the teacher has a tokenizer of its own

class Shard {
 public:
  // InputDataError names file and, for an id, record and token. A record is a document of this file, counted from 0.
  Shard(const std::filesystem::path& folder, const ShardRecord& record, const ManifestFile& manifest);

  const std::string& name() const { return name_; }
  int64_t documents() const { return static_cast<int64_t>(offsets(Which::kStudent).size()) - 1; }
  // Where each document begins, and behind the last where it ends: documents() + 1 numbers.
  const std::vector<int64_t>& offsets(Which which) const { return stream(which).offsets; }
  int64_t tokens(Which which) const { return offsets(which).back(); }
  const std::vector<int64_t>& classes() const { return classes_; }  // empty without labels

  int64_t largest_id(Which which) const { return stream(which).largest; }  // -1 without tokens
  int64_t targets(Which which) const { return stream(which).targets; }
  int64_t unended() const { return unended_; }  // documents that do not end with the end-of-sequence token
  int64_t without_targets() const { return without_targets_; }
  // "record 3, token 17 (id 70000)": the first id outside [0, vocabulary), "" when there is none.
  std::string place_of_stranger(Which which, int64_t vocabulary) const;

  // Tokens [begin, begin + count). Ids are range-checked again: the file may have changed since it was opened.
  void read_ids(Which which, int64_t begin, int64_t count, int64_t* out) const;
  void read_mask(Which which, int64_t begin, int64_t count, uint8_t* out) const;
  void read_teacher_position(int64_t begin, int64_t count, int64_t* out) const;

 private:
  struct Stream {
    uint64_t ids_at = 0, mask_at = 0;  // bytes from the start of the file; mask 0: every token is a target
    std::vector<int64_t> offsets = {0};
    int64_t vocabulary = 0, largest = -1, targets = 0;
  };
  class Tensors;

  const Stream& stream(Which which) const { return which == Which::kStudent ? student_ : teacher_; }
  void check_bytes(const ShardRecord& record) const;
  void open_stream(const Tensors& tensors, Which which, Stream& out) const;
  void open_classes(const Tensors& tensors, int64_t classes);
  void check_counts(const ShardRecord& record) const;
  void scan(Which which, Stream& stream) const;
  void scan_positions() const;
  void count_documents(int64_t end_of_sequence);
  [[noreturn]] void refuse(const std::string& fault) const;
  std::string place(Which which, int64_t token) const;

  io::InputFile file_;
  std::string name_;
  Stream student_, teacher_;
  uint64_t positions_at_ = 0;
  std::vector<int64_t> classes_;
  int64_t unended_ = 0, without_targets_ = 0;
};

// A shard that could be opened, or the one line that says why not.
struct OpenedShard {
  std::optional<Shard> shard;
  std::string fault;
};

// Opens and verifies every shard, several at a time; the result has the order of the manifest.
std::vector<OpenedShard> open_shards(const std::filesystem::path& folder, const ManifestFile& manifest);

}  // namespace limbeck::data
