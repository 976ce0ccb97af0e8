#include "trainer/data/data_request.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"

namespace limbeck::data {
namespace {

DataRequest request_of(const recipe::Settings& settings, const std::string& key) {
  DataRequest request = data_shape(settings);
  request.folder = settings.required_path(key);
  request.origin = key + " " + settings.where(key);
  return request;
}

}  // namespace

DataRequest data_shape(const recipe::Settings& settings) {
  DataRequest request;
  request.batch_size = settings.integer("data.batch_size");
  request.sequence_length = settings.integer("data.sequence_length");
  request.teacher_sequence_length = settings.integer("data.teacher_sequence_length");
  request.packing = settings.text("data.packing") == "packed" ? Packing::kPacked : Packing::kPadded;
  const bool splits = settings.text("data.long_documents") == "split";
  request.long_documents = splits ? LongDocuments::kSplit : LongDocuments::kTruncate;
  request.skip_bad_shards = settings.enabled("data.skip_bad_shards");
  request.seed = settings.integer("seed");
  const std::string& masking = settings.text("data.masking");
  request.masking.unit = masking == "whole_word" ? MaskUnit::kWord
                         : masking == "token"    ? MaskUnit::kToken
                                                 : MaskUnit::kNone;
  request.masking.fraction = settings.number("data.mask_fraction");
  request.masking.replaced = settings.number("data.mask_replaced");
  request.masking.random = settings.number("data.mask_random");
  return request;
}

DataRequest training_data(const recipe::Settings& settings) {
  DataRequest request = request_of(settings, "data.train");
  request.shuffle = settings.enabled("data.shuffle");
  request.mask_seed = request.seed;
  return request;
}

DataRequest validation_data(const recipe::Settings& settings) {
  DataRequest request = request_of(settings, "data.validation");
  request.shuffle = false;
  request.whole_epoch = true;
  request.mask_seed = 0;  // one mask for all runs, whatever their seeds: perplexities compare
  return request;
}

EvaluatedBatches evaluated_batches(const recipe::Settings& settings) {
  return {settings.integer("eval.skip"), settings.integer("eval.batches")};
}

BatchSpan EvaluatedBatches::of(int64_t all) const {
  if (skipped >= all) {
    throw UsageError(fmt::format(
        "eval.skip = {}: data.validation is {} batches, of which none is left to evaluate: wanted less", skipped, all));
  }
  const int64_t left = all - skipped;
  return {skipped, most > 0 ? std::min(most, left) : left};
}

}  // namespace limbeck::data
