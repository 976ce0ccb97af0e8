// What one row of a profile times: the student of a recipe as placed_settings() has it, with a batch of its own, ready
// to do its work again and again. Nothing of a run is written.
#pragma once
#include <memory>
#include <vector>

#include "trainer/agreement/pair_agreement.h"
#include "trainer/objective/distillation.h"
#include "trainer/profile/profile_options.h"
#include "trainer/profile/profiled_rows.h"
#include "trainer/registry.h"

namespace limbeck::profile {

class Subject {
 public:
  // `placed`, and what is refused, as profiled_precision.h has them; any limbeck::Error is why there is no such row.
  Subject(const recipe::Settings& placed, const Registries& registries, const ProfileOptions& options, Work work);
  ~Subject();
  Subject(const Subject&) = delete;
  Subject& operator=(const Subject&) = delete;

  // Once through; on a GPU when all of it is done.
  void pass();
  const models::BuiltModel& student() const;
  c10::Device device() const;
  const ProfiledRows& rows() const;
  int64_t rows_of_a_pass() const;
  int64_t tokens_of_a_pass() const;  // read, without padding; of generation, made

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The objective of these settings over this pair; without data sets with the ids of the models' tables.
std::unique_ptr<objective::Distillation> objective_of(const recipe::Settings& settings, const Registries& registries,
                                                      const std::shared_ptr<objective::ModelPair>& pair,
                                                      const std::vector<agreement::DataInUse>& sets);

// Waits for a GPU; nothing on the CPU.
void finish_device(c10::Device device);

}  // namespace limbeck::profile
