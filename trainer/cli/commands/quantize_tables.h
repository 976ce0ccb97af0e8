// What limbeck quantize shows: what is stored in which format, before it is, and what each module was given.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "trainer/quantize/format_table.h"
#include "trainer/quantize/rounded_model.h"

namespace limbeck::cli {

double ratio_to_float32(int64_t values, int64_t bytes);

// By format and all together: tensors, values, bytes.
std::string plan_table(const quantize::FolderPlan& plan, int width);
nlohmann::ordered_json plan_json(const quantize::FolderPlan& plan);

// By module: format, bytes, and what the policy went by, where it says.
struct Reasons {
  std::string title = {};                    // "predicted loss"; "": none
  std::map<std::string, double> value = {};  // by module
};
std::string mix_table(const quantize::FormatTable& table, const quantize::Mix& mix, const Reasons& reasons, int width);
nlohmann::ordered_json mix_json(const quantize::FormatTable& table, const quantize::Mix& mix, const Reasons& reasons);

// By module: what rounding changes of its outputs, to nearest and as it is.
std::string rounding_table(const std::vector<quantize::RoundedModule>& modules, int width);
nlohmann::ordered_json rounding_json(const std::vector<quantize::RoundedModule>& modules);
// By layer: how far what it gives is from the float model's, rounded to nearest, compensated, and as it is.
std::string learned_table(const std::vector<quantize::LearnedLayer>& layers, int width);
nlohmann::ordered_json learned_json(const std::vector<quantize::LearnedLayer>& layers);

nlohmann::ordered_json estimate_json(const quantize::SizeEstimate& estimate);
std::string estimate_line(const quantize::SizeEstimate& estimate);

}  // namespace limbeck::cli
