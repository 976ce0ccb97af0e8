// What a model makes of the rows of one batch, held against the same model in floats: how good it is, and how far its
// logits and predictions moved. All sums are float64, over the targets of a row, in one order.
#pragma once
#include <string>
#include <vector>

#include "trainer/data/batch.h"
#include "trainer/objective/model_pair.h"
#include "trainer/sweep/converted_modules.h"

namespace limbeck::sweep {

// What is measured of a model: of a sequence classifier accuracy, of a language model (a masked one at its hidden
// tokens) perplexity, of an encoder without a head the cosine of its pooled states to those of the floats.
enum class Kind { kClassifier, kDecoder, kMasked, kEncoder };
Kind kind_of(const models::BuiltModel& model);
const char* kind_name(Kind kind);     // "classifier", …
const char* quality_name(Kind kind);  // "accuracy", "perplexity", "cosine"

struct RowMeasure {
  int64_t targets = 0;
  double right = 0;    // classifiers: 0 or 1; encoders: the cosine
  double loss = 0;     // in nats, of those that have one
  double kl = 0;       // from the floats, in nats; encoders: 1 - cosine
  double squares = 0;  // of the differences of logits (encoders: of the pooled states at length 1)
  int64_t values = 0;  // how many differences those are
  bool is_finite() const;
};

class BatchBaseline {
 public:
  // `last`: what the model in floats, which must live on, gives of the batch before its head; the batch is where it is.
  BatchBaseline(const models::BuiltModel& floats, data::Batch batch, at::Tensor last);

  // What it keeps of logits.
  int64_t bytes() const;

  // Of the floats themselves: no distance.
  std::vector<RowMeasure> own() const;
  // Of another model, from its last states of the same batch. `in_place`: it is the floats themselves, in which these
  // modules are exchanged now.
  std::vector<RowMeasure> measure(const models::BuiltModel& other, const at::Tensor& last,
                                  ConvertedModules* in_place = nullptr) const;

 private:
  // Of some targets of a language model.
  at::Tensor logits_of(const models::BuiltModel& model, const at::Tensor& last, int64_t begin, int64_t count) const;
  at::Tensor float_logits(int64_t begin, int64_t count, ConvertedModules* in_place) const;
  std::vector<RowMeasure> measure_classes(const at::Tensor& logits) const;
  std::vector<RowMeasure> measure_tokens(const models::BuiltModel& other, const at::Tensor& last,
                                         ConvertedModules* in_place, bool own) const;
  std::vector<RowMeasure> measure_pooled(const at::Tensor& directions) const;

  const Kind kind_;
  const models::BuiltModel& floats_;
  const data::Batch batch_;
  at::Tensor last_;
  at::Tensor positions_, labels_;  // of a language model: which of the flat states predict, and what
  int64_t at_a_time_ = 1;
  // Of the floats; undefined where they are too many. Logits: of a classifier float64, of a language model as its head
  // gives them; of an encoder directions.
  at::Tensor kept_;
  at::Tensor log_p_;     // of a classifier: log-probabilities
  at::Tensor log_sums_;  // of a language model: the logarithm of the sum of exp(logits), by target
};

}  // namespace limbeck::sweep
