// The prepared token shards of a folder as batches. Which samples a batch holds is a pure function of (seed, index):
// no cursor but the index, so a resume is a number and prefetching cannot change an order.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/data/batch.h"

namespace limbeck::data {

enum class Packing { kPacked, kPadded };
enum class LongDocuments { kTruncate, kSplit };  // padded rows: what becomes of a document longer than a row

enum class MaskUnit { kNone, kToken, kWord };

struct MaskingOptions {
  MaskUnit unit = MaskUnit::kNone;
  double fraction = 0.15;               // of the words (or tokens) hidden
  double replaced = 0.8, random = 0.1;  // shares of hidden tokens: the mask token, another token; the rest stays
};

struct DataRequest {
  std::filesystem::path folder;  // written by tools/prepare_data.py: manifest.json and shards
  std::string origin;            // for messages: "data.train (my.ini:12)"
  int64_t batch_size = 8, sequence_length = 512;
  Packing packing = Packing::kPacked;
  bool shuffle = true;
  int64_t seed = 0;
  int64_t student_vocabulary = 0, teacher_vocabulary = 0;  // ids must be below; 0: not checked
  bool skip_bad_shards = false;
  bool whole_epoch = false;  // evaluation: the last batch of an epoch may have fewer rows, and none is dropped
  LongDocuments long_documents = LongDocuments::kTruncate;
  MaskingOptions masking;
  int64_t mask_seed = 0;
  int64_t teacher_sequence_length = 0;  // of a teacher with a tokenizer of its own; 0: sequence_length
};

struct Manifest {
  std::string tokenizer_digest, teacher_tokenizer_digest;  // the second is empty without a second tokenizer
  int64_t vocabulary = 0, teacher_vocabulary = 0;          // real token ids, without the padding of heads
  int64_t end_of_sequence = -1, padding = -1;
  int64_t documents = 0, tokens = 0;  // of the whole folder, skipped shards included
  int64_t teacher_padding = -1, teacher_end_of_sequence = -1;
  int64_t classes = 0;           // labelled documents: their classes are below; 0 = no labels
  int64_t mask = -1;             // -1: the tokenizer has no mask token
  std::vector<int64_t> special;  // ids that stand for no text
  bool knows_words = false;      // the tokenizer says which tokens go on with the word before them:
  std::vector<bool> continues;   // by id
  // What its ids mean, as a checksum; "": the manifest does not say.
  std::string ids_fingerprint, teacher_ids_fingerprint;
  int64_t largest_id = -1, teacher_largest_id = -1;  // in use, by the manifest; -1: it does not say
  std::string digest;                                // of the shards in use and the tokenizers; a resume compares it
};

class DataSource {
 public:
  // Checks every shard (size, checksum, id range) before it returns; InputDataError names file, record and offset.
  explicit DataSource(const DataRequest& request);
  ~DataSource();
  DataSource(const DataSource&) = delete;
  DataSource& operator=(const DataSource&) = delete;

  const Manifest& manifest() const;
  const std::vector<std::string>& notes() const;  // truncated, skipped: one line each, with counts
  int64_t samples() const;                        // rows of an epoch
  int64_t batches_per_epoch() const;  // full batches; the rest of an epoch is dropped. whole_epoch: rounded up
  // The index-th batch since training began (epoch = index / batches_per_epoch()). Thread-safe.
  Batch batch(int64_t index) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Makes the batches [begin, end) on a thread of its own, `depth` ahead, and places them on the models' device: the one
// way by which a batch comes to a model. An error there is rethrown by next().
class Prefetcher {
 public:
  using Make = std::function<Batch(int64_t)>;  // any thread
  Prefetcher(Make make, int64_t begin, int64_t end, int depth, c10::Device device);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;
  Batch next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace limbeck::data
