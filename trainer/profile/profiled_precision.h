// One way to store the student: what its name in profile.precisions means for the recipe, and where that cannot work.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <optional>
#include <string>

#include "kernels/quantized/quantized_matrix.h"
#include "modules/models/family/architecture.h"
#include "trainer/profile/profile_options.h"
#include "trainer/recipe/settings.h"

namespace limbeck::profile {

struct ProfiledPrecision {
  std::string name;
  bool as_recipe = false;  // as it says, rules included
  std::optional<at::ScalarType> dtype;
  std::optional<kernels::QuantizedFormat> format;

  // "bfloat16", "int4", "int4+bfloat16", "recipe"; UsageError, which ends with `where`.
  static ProfiledPrecision parse(const std::string& name, const std::string& where);
};

// Model and data decided together: the recipe with its student stored so, and both models and their batches there.
recipe::Settings placed_settings(const recipe::Settings& settings, const ProfiledPrecision& precision,
                                 c10::Device device);

// Why this work cannot be done by such a student, with what to do instead; "": it can. `stored_packed`: the folder
// itself is of packed weights.
std::string refusal(const recipe::Settings& placed, const ProfiledPrecision& precision, Work work,
                    const models::Architecture& student, bool stored_packed);

}  // namespace limbeck::profile
