// Small distillations for tests: model folders with random weights, settings from recipe text, batches of random
// tokens.
#pragma once
#include <filesystem>
#include <string>

#include "trainer/agreement/pair_agreement.h"
#include "trainer/objective/distillation.h"

namespace limbeck::test {

// A fresh folder with the tiny model of this family, config.json changed by `changes` (a JSON object) and weights drawn
// from `seed`, in float32.
std::filesystem::path weighted_model(const std::string& family, const std::string& changes, uint64_t seed);

// Resolves recipe text as the command line does.
recipe::Settings settings_of(const std::string& ini);

struct BatchShape {
  int64_t rows = 3, length = 10, vocabulary = 97;
  bool packed = false;
};
// Random ids; the last row is shorter (padded), or every row holds two documents (packed). The first target of each row
// is left out, as a prompt would be.
data::TokenStream random_stream(const BatchShape& shape, uint64_t seed);
data::Batch random_batch(const BatchShape& shape, uint64_t seed);
// The same batch on meta.
data::Batch on_meta(const data::Batch& batch);
// Rows [begin, begin + count).
data::Batch rows_of(const data::Batch& batch, int64_t begin, int64_t count);

// A pair of models, what a recipe asks of it, and what it agrees on with data.
struct RecipePair {
  explicit RecipePair(const std::string& ini, objective::Materialize how = objective::Materialize::kWeights);
  recipe::Settings settings;
  std::shared_ptr<objective::ModelPair> pair;
  objective::ObjectiveOptions options;
  agreement::PairAgreement agreement;
};

// Over a pair of its own, without data.
objective::Distillation distillation_of(const std::string& ini,
                                        objective::Materialize how = objective::Materialize::kWeights);

}  // namespace limbeck::test
