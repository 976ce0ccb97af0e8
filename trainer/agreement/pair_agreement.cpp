#include "trainer/agreement/pair_agreement.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"
#include "trainer/agreement/data_guard.h"
#include "trainer/agreement/masking_guard.h"

namespace limbeck::agreement {

namespace {

// Fewer classes in the data than in the model are fine: a small held-out set may lack some.
void require_fitting_classes(const recipe::Settings& settings, const DataInUse& set, const objective::ModelPair& pair) {
  if (!objective::is_classifier(pair.student)) return;
  const int64_t labels = pair.student.config.architecture.labels;
  if (set.manifest.classes <= labels) return;
  throw UsageError(fmt::format(
      "{} has documents of {} classes, but student.model {} tells {} apart: name a student whose config.json "
      "has {} labels (tools/as_classifier.py makes one of an encoder), or prepare the data with fewer",
      set.origin, set.manifest.classes, settings.text("student.model"), labels, set.manifest.classes));
}

}  // namespace

PairAgreement::PairAgreement(const recipe::Settings& settings, const objective::ObjectiveOptions& options,
                             const objective::ModelPair& pair)
    : settings_(settings),
      pair_(pair),
      compared_(pair.teacher && options.needs_teacher() ? &*pair.teacher : nullptr),
      crosses_(options.crosses()),
      tokenizers_(pair.student, pair.teacher ? &*pair.teacher : nullptr) {
  require_fitting_masks(settings, options.weights, pair.student, compared_);
  objective::require_fitting_pair(settings, options, pair);
  if (crosses_ || compared_ == nullptr || !objective::has_language_head(pair.student)) return;
  const std::string& difference = tokenizers_.difference();
  if (difference.empty()) return;
  throw UsageError(
      fmt::format("{}, and objective.divergence = {} {} compares them id by id: set objective.divergence "
                  "= uld or dskd, or projector.kind = logit, and prepare data with both tokenizers",
                  difference, settings.text("objective.divergence"), settings.where("objective.divergence")));
}

bool PairAgreement::reads_two_streams() {
  return compared_ != nullptr && crosses_ && !tokenizers_.difference().empty();
}

objective::Vocabulary PairAgreement::of_tables() const {
  objective::Vocabulary ids;
  ids.student = pair_.student.config.architecture.vocabulary;
  if (!pair_.teacher) return ids;
  ids.teacher = pair_.teacher->config.architecture.vocabulary;
  if (!crosses_) ids.student = ids.teacher = std::min(ids.student, ids.teacher);
  return ids;
}

objective::Vocabulary PairAgreement::vocabulary(const std::vector<DataInUse>& sets) {
  objective::Vocabulary ids = of_tables(), largest;
  for (const DataInUse& set : sets) {
    require_fitting_classes(settings_, set, pair_);
    const objective::Vocabulary real =
        require_fitting_data(set.manifest, set.origin, {settings_, tokenizers_, pair_.student, compared_, crosses_});
    // An id that one data set has is real for all.
    largest.student = std::max(largest.student, real.student);
    largest.teacher = std::max(largest.teacher, real.teacher);
  }
  if (sets.empty()) return ids;
  ids.student = largest.student;
  if (compared_ != nullptr) ids.teacher = largest.teacher;
  return ids;
}

}  // namespace limbeck::agreement
