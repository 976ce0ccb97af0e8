#include "trainer/objective/model_pair.h"

namespace limbeck::objective {

c10::Device ModelPair::device() const { return on_meta() ? c10::Device(c10::kMeta) : student.policy->device(); }

bool is_classifier(const models::BuiltModel& model) { return models::is_classifier(model.config.architecture.head); }

bool has_language_head(const models::BuiltModel& model) {
  return model.config.architecture.head == models::HeadKind::kLanguageModel;
}

}  // namespace limbeck::objective
