// Hides tokens of a batch for a masked language model to fill in. What is hidden in a row is a pure function of seed,
// epoch, the row's number and the position in it: the same on a resume, on any number of ranks and for any batch size.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "trainer/data/batch.h"
#include "trainer/data/data_source.h"

namespace limbeck::data {

class Masking {
 public:
  // InputDataError, naming the data, where its tokenizer has no mask token, or does not say which tokens are one word.
  Masking(const DataRequest& request, const Manifest& manifest);

  // Row i of the stream is row rows[i] of the data. Labels are left at the hidden tokens alone, where they are
  // predicted. A word takes part if all of its tokens are targets and none is special.
  void apply(TokenStream& stream, const std::vector<int64_t>& rows, int64_t epoch) const;

 private:
  struct Row;
  bool begins_word(const Row& row, int64_t at) const;
  void hide(Row& row, int64_t begin, int64_t end) const;
  void apply_to(Row& row) const;

  MaskingOptions options_;
  int64_t seed_, mask_;
  std::vector<bool> special_, continues_;  // by id
  std::vector<int64_t> ordinary_;          // ids that a hidden token may be replaced by
};

}  // namespace limbeck::data
