// The modules of a float model that precision rules store otherwise, in both forms: put in place and taken out again in
// no time. Out of place, contract and weights are what they were before, to the bit.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "modules/models/weights/load_model.h"

namespace limbeck::sweep {

class ConvertedModules {
 public:
  // Nothing is in place yet. `rules` come after the model's own; UsageError where one is for no module, or cannot be.
  ConvertedModules(const models::BuiltModel& model, const std::vector<std::string>& rules);

  std::vector<std::string> paths() const;
  const std::vector<std::shared_ptr<precision::ContractModule>>& modules() const { return modules_; }
  int64_t bytes() const { return bytes_; }
  int64_t bytes_before() const { return bytes_before_; }
  // "" or how many finite weights have become infinite, and where.
  const std::string& overflow() const { return overflow_; }

  // While this lives they are in place.
  class InPlace {
   public:
    explicit InPlace(ConvertedModules& converted) : converted_(converted) { converted_.exchange(); }
    ~InPlace() { converted_.exchange(); }
    InPlace(const InPlace&) = delete;
    InPlace& operator=(const InPlace&) = delete;

   private:
    ConvertedModules& converted_;
  };

 private:
  void exchange();

  std::vector<std::shared_ptr<precision::ContractModule>> modules_;
  std::vector<precision::StoredWeights> others_;  // of the modules, in their order: the form that is not in place
  int64_t bytes_ = 0, bytes_before_ = 0;
  std::string overflow_;
};

}  // namespace limbeck::sweep
