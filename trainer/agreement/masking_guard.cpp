#include "trainer/agreement/masking_guard.h"

#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::agreement {

namespace {

void require_sound_shares(const recipe::Settings& settings) {
  const double replaced = settings.number("data.mask_replaced"), random = settings.number("data.mask_random");
  if (replaced + random <= 1.0) return;
  throw UsageError(
      fmt::format("data.mask_replaced = {} and data.mask_random = {} {} are shares of the same tokens: wanted a sum of "
                  "at most 1",
                  replaced, random, settings.where("data.mask_random")));
}

}  // namespace

// Who fills in hidden tokens learns nothing where none is hidden, and who predicts the next token must not see a hidden
// one.
void require_fitting_masks(const recipe::Settings& settings, const objective::TermWeights& weights,
                           const models::BuiltModel& student, const models::BuiltModel* teacher) {
  require_sound_shares(settings);
  const models::Architecture& a = student.model->architecture();
  const bool fills = a.masked_language_model(), hides = settings.text("data.masking") != "none";
  if (hides && !fills) {
    throw UsageError(fmt::format(
        "data.masking = {} {} hides tokens for a masked language model to fill in, and student.model {} is {}: set "
        "data.masking = none",
        settings.text("data.masking"), settings.where("data.masking"), settings.where("student.model"),
        a.kind == models::ModelKind::kDecoder ? "a decoder, which predicts the next token"
                                              : "an encoder without such a head"));
  }
  if (fills && !hides && (weights.full(recipe::TermKind::kKd) > 0 || weights.full(recipe::TermKind::kCe) > 0)) {
    throw UsageError(
        fmt::format("student.model {} is a masked language model, and no token is hidden for it to fill in: set "
                    "data.masking = whole_word (or token), or objective.alpha = 0 and objective.ce_weight = 0",
                    settings.where("student.model")));
  }
  if (!fills || teacher == nullptr) return;
  const models::Architecture& other = teacher->model->architecture();
  if (other.head != models::HeadKind::kLanguageModel || other.masked_language_model()) return;
  throw UsageError(
      fmt::format("teacher.model {} predicts the next token and student.model {} hidden ones: wanted two masked "
                  "language models",
                  settings.where("teacher.model"), settings.where("student.model")));
}

}  // namespace limbeck::agreement
