// Every trainable module beside the student: made in the dtype and on the device of the model it attaches to, filled
// with seeded first values, and listed for the optimizer, the contract and the checkpoint.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "modules/projectors/hidden_projector.h"
#include "modules/projectors/initial_values.h"
#include "trainer/objective/options.h"

namespace limbeck::objective {

class Projectors {
 public:
  enum class Side { kStudent, kTeacher };
  // Between the models of this pair, which outlives it; structure alone where that has no more.
  Projectors(const ProjectorOptions& options, const ModelPair& pair);

  // Where a module attached to this side is built; path such as "projector.hidden.3".
  precision::Scope scope(const std::string& path, Side side) const;
  // Fills its first values and lists it; `group` is its learning rate's.
  template <class Module>
  std::shared_ptr<Module> keep(std::shared_ptr<Module> module, const std::string& group = "projector") {
    projectors::fill_initial_values(*module, options_.init_std, options_.seed);
    kept_.emplace_back(module, group);
    return module;
  }
  // From the student's states into another width.
  std::shared_ptr<projectors::HiddenProjector> from_student(const std::string& path, int64_t out,
                                                            at::ScalarType accepts, at::ScalarType gives,
                                                            projectors::HiddenProjector::Kind kind,
                                                            const std::string& group = "projector");

  const std::vector<std::pair<std::shared_ptr<torch::nn::Module>, std::string>>& kept() const { return kept_; }

 private:
  const ModelPair& pair_;
  ProjectorOptions options_;
  std::unique_ptr<precision::PrecisionPolicy> student_side_, teacher_side_;
  std::vector<std::pair<std::shared_ptr<torch::nn::Module>, std::string>> kept_;
};

}  // namespace limbeck::objective
