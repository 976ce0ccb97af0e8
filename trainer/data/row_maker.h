// How documents become rows. A row is a pure function of its number and the shards; the order in which rows are used is
// not known here.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/data/batch.h"
#include "trainer/data/data_source.h"
#include "trainer/data/shard.h"

namespace limbeck::data {

class RowMaker {
 public:
  virtual ~RowMaker() = default;
  virtual int64_t rows() const = 0;
  virtual Batch make(const std::vector<int64_t>& rows) const = 0;  // in the order given; any thread
};

using Shards = std::vector<Shard>;

// Documents end to end, cut every sequence_length tokens; document_ids keep them apart. The last row is padded.
// Both add to `notes` what they leave out, with counts.
std::unique_ptr<RowMaker> make_packed_rows(const Shards& shards, const ManifestFile& manifest,
                                           const DataRequest& request, std::vector<std::string>& notes);
// One document a row. A batch is as wide as its longest row, rounded up to a multiple of 16, at most sequence_length.
std::unique_ptr<RowMaker> make_padded_rows(const Shards& shards, const ManifestFile& manifest,
                                           const DataRequest& request, std::vector<std::string>& notes);

// Of the tokens [begin, begin + count) of one stream: ids, and labels with those left out that are no targets.
void read_tokens(const Shard& shard, Which which, int64_t begin, int64_t count, int64_t* ids, int64_t* labels);

int64_t padding_id(int64_t padding, int64_t end_of_sequence);  // the first of them that there is, else 0

}  // namespace limbeck::data
