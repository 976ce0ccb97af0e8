#include "trainer/profile/profiled_precision.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "modules/errors.h"
#include "modules/precision/precision.h"
#include "trainer/build/adapter_options.h"
#include "trainer/recipe/value.h"

namespace limbeck::profile {

ProfiledPrecision ProfiledPrecision::parse(const std::string& name, const std::string& where) {
  ProfiledPrecision found;
  found.name = name;
  found.as_recipe = name == "recipe";
  if (found.as_recipe) return found;
  const size_t plus = name.find('+');
  const std::string first = name.substr(0, plus);
  found.format = kernels::find_format(first);
  found.dtype = recipe::to_dtype(found.format && plus != name.npos ? name.substr(plus + 1) : first);
  if (plus == name.npos ? found.format || found.dtype : found.format && found.dtype) return found;
  throw UsageError(
      fmt::format("profile.precisions {}: \"{}\" is unknown, wanted a dtype, {}, a format with a dtype "
                  "(int4+bfloat16), or recipe",
                  where, name, fmt::join(kernels::format_names(), ", ")));
}

recipe::Settings placed_settings(const recipe::Settings& settings, const ProfiledPrecision& precision,
                                 c10::Device device) {
  recipe::Settings placed = settings.with("device", device.str()).with("student.device", device.str());
  if (settings.given("teacher.device")) placed = placed.with("teacher.device", device.str());
  if (precision.as_recipe) return placed;
  const bool own_dtype = settings.text("student.dtype") != "auto";
  if (precision.dtype) {
    placed = placed.with("student.dtype", precision::dtype_name(*precision.dtype));
  } else if (!own_dtype) {
    placed = placed.with("student.dtype", "float32");
  }
  placed = placed.with("student.quantize", precision.format ? kernels::format_name(*precision.format) : "none");
  // Rules would store some modules otherwise than the row says.
  placed = placed.with("precision.rule", "none");
  for (const std::string& rule : settings.list("precision.rule")) {
    if (rule.starts_with("teacher")) placed = placed.with("precision.rule", rule);
  }
  return placed;
}

std::string refusal(const recipe::Settings& placed, const ProfiledPrecision& precision, Work work,
                    const models::Architecture& student, bool stored_packed) {
  if (stored_packed && !precision.as_recipe) {
    return fmt::format(
        "{} holds packed weights, which are profiled as they are: --precisions=recipe, or name the "
        "folder of floats they were made from",
        placed.path("student.model").string());
  }
  if (work == Work::kGeneration &&
      (student.kind != models::ModelKind::kDecoder || student.head != models::HeadKind::kLanguageModel)) {
    return fmt::format(
        "generation wants a decoder with a language model's head, and {} is none: --work=forward,training",
        student.family);
  }
  if (work == Work::kTraining && placed.text("student.quantize") != "none" && !build::trains_adapter(placed) &&
      !placed.enabled("student.train_codes")) {
    return fmt::format(
        "weights in {} are frozen: --adapter.kind=lora trains beside them, --student.train_codes=true trains the codes "
        "themselves, float32 and bfloat16 train all",
        placed.text("student.quantize"));
  }
  return "";
}

}  // namespace limbeck::profile
