#include "trainer/profile/profiled_rows.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <vector>

#include "modules/errors.h"
#include "modules/models/network/token_loss.h"
#include "modules/precision/casts.h"
#include "trainer/agreement/data_guard.h"
#include "trainer/data/data_request.h"
#include "trainer/objective/forward_pass.h"

namespace limbeck::profile {
namespace {

constexpr double kHiddenShare = 0.15;

std::vector<std::string> keys_for(Work work) {
  if (work == Work::kTraining) return {"data.train", "data.validation"};
  return {"data.validation", "data.train"};
}

// A prompt ends where its row does: padding goes to the left.
void make_prompts(data::TokenStream& stream) {
  stream.attention_mask = precision::integers(objective::valid_tokens(stream), at::kLong);
  stream.document_ids.reset();
  const int64_t length = stream.ids.size(1);
  const at::Tensor padding = length - stream.attention_mask->sum(1, /*keepdim=*/true);
  const at::Tensor from = (at::arange(length, at::kLong).unsqueeze(0) - padding).remainder(length);
  for (at::Tensor* one : {&stream.ids, &stream.labels, &*stream.attention_mask}) *one = one->gather(1, from);
}

ProfiledRows rows_of(const recipe::Settings& settings, const std::string& key, const objective::ModelPair& pair,
                     Work work) {
  data::DataRequest request = key == "data.train" ? data::training_data(settings) : data::validation_data(settings);
  request.whole_epoch = true;  // few rows are better than none
  auto source = std::make_shared<data::DataSource>(agreement::fitted(request, pair));
  ProfiledRows rows{source->batch(0), key, "", source, key + " " + settings.where(key)};
  if (work == Work::kTraining && objective::is_classifier(pair.student) && !rows.batch.classes.defined())
    throw InputDataError(fmt::format("{} {}: has no classes to train a classifier by", key, settings.where(key)));
  if (work == Work::kGeneration) make_prompts(rows.batch.student);
  return rows;
}

}  // namespace

data::Batch random_batch(const models::Architecture& student, const ProfileOptions& options) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(options.seed);
  data::Batch batch;
  data::TokenStream& stream = batch.student;
  stream.ids = at::empty({options.batch, options.length}, at::kLong).random_(0, student.vocabulary, generator);
  stream.labels = stream.ids.clone();
  stream.attention_mask = at::ones_like(stream.ids);
  stream.masked = student.masked_language_model();
  if (stream.masked) {
    const at::Tensor shown = at::empty(stream.ids.sizes(), at::kFloat).uniform_(0, 1, generator).ge(kHiddenShare);
    stream.labels.masked_fill_(shown, models::kIgnoredLabel);
  }
  if (student.labels > 0) batch.classes = at::empty({options.batch}, at::kLong).random_(0, student.labels, generator);
  return batch;
}

ProfiledRows profiled_rows(const recipe::Settings& settings, const objective::ModelPair& pair,
                           const ProfileOptions& options, Work work) {
  const recipe::Settings shaped = settings.with("data.batch_size", std::to_string(options.batch))
                                      .with("data.sequence_length", std::to_string(options.length));
  std::string reason;
  for (const std::string& key : keys_for(work)) {
    if (!settings.given(key)) continue;
    try {
      return rows_of(shaped, key, pair, work);
    } catch (const Error& error) {
      if (reason.empty()) reason = error.what();
    }
  }
  if (reason.empty()) reason = "the recipe names no data";
  return {random_batch(pair.student.model->architecture(), options), "random ids", reason, nullptr, ""};
}

}  // namespace limbeck::profile
