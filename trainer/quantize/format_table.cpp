#include "trainer/quantize/format_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "modules/errors.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/contract_modules.h"
#include "modules/quantization/folder_layout.h"

namespace limbeck::quantize {

namespace {

using kernels::QuantizedFormat;

// Below the root.
std::string path_below(const std::string& path, const std::string& root) { return path.substr(root.size() + 1); }

bool packs(const models::BuiltModel& built) {
  const auto modules = precision::contract_modules(*built.model);
  return std::any_of(modules.begin(), modules.end(),
                     [](const auto& module) { return !module->packed_weights().empty(); });
}

// Everything that is covered in one format, where readers take it there. `tied_head`: the path of a head that has no
// weight of its own, and so is what its embedding is. An encoder is measured before its head, which stays floats.
models::BuiltModel built_in(const models::ModelRequest& request, const StoredFormat& format, Covered covered,
                            const std::string& tied_head) {
  models::ModelRequest asked = request;
  asked.packing = {};
  if (format.packed) {
    quantization::StoredModules one;
    one.packed[format.name] = *format.packed;
    const auto layout = quantization::layout_for(one);
    const bool encoder = models::read_model_config(request.folder).architecture.kind == models::ModelKind::kEncoder;
    const auto format_of = [=, packed = *format.packed](const std::string& path, precision::Role role) {
      const bool everything = covered == Covered::kEverything && path != tied_head &&
                              !(encoder && role == precision::Role::kHead) && layout->writes_for(role, packed);
      return everything || precision::packed_by_default(role) ? std::optional(packed) : std::nullopt;
    };
    asked.packing = {format_of, format.name};
  }
  return models::build_on_meta(asked);
}

std::string tied_head_of(const models::BuiltModel& built, const std::string& root) {
  for (const auto& module : precision::contract_modules(*built.model)) {
    const auto* linear = dynamic_cast<const models::Linear*>(module.get());
    if (linear != nullptr && linear->is_tied()) return path_below(linear->path(), root);
  }
  return "";
}

std::map<std::string, int64_t> bytes_by_module(const models::BuiltModel& built) {
  const FolderPlan plan = plan_folder(built);
  std::map<std::string, int64_t> bytes;
  size_t tensor = 0;
  for (const auto& binding : models::bind_weights(*built.model, *built.config.family)) {
    const FolderPlan::Tensor& stored = plan.tensors.at(tensor++);
    if (stored.name != binding.name)
      throw std::logic_error("the plan of " + binding.name + " is that of " + stored.name);
    bytes[binding.owner->path()] += stored.bytes;
  }
  return bytes;
}

bool has_a_matrix(const precision::ContractModule& module) {
  if (dynamic_cast<const models::ExpertWeights*>(&module) != nullptr) return true;
  const auto* linear = dynamic_cast<const models::Linear*>(&module);
  return linear != nullptr ? !linear->is_tied() : dynamic_cast<const models::Embedding*>(&module) != nullptr;
}

// What must be in one format with it: a linear module that others compute with it; the experts of a layer are one.
std::string group_of(const precision::ContractModule& module) {
  const auto* linear = dynamic_cast<const models::Linear*>(&module);
  return linear != nullptr ? linear->fused_with() : module.path();
}

std::vector<int64_t> column_counts(const precision::ContractModule& module) {
  if (const auto* linear = dynamic_cast<const models::Linear*>(&module)) return {linear->in_features()};
  if (const auto* table = dynamic_cast<const models::Embedding*>(&module)) return {table->width()};
  std::vector<int64_t> columns;
  for (const auto& stack : dynamic_cast<const models::ExpertWeights&>(module).stacks())
    columns.push_back(stack->sizes().in);
  return columns;
}

// Others refuse a last group that is shorter.
bool has_whole_groups(const precision::ContractModule& module, const StoredFormat& format) {
  if (!format.packed || !format.packed->has_groups()) return true;
  const auto columns = column_counts(module);
  return std::all_of(columns.begin(), columns.end(),
                     [&](int64_t count) { return count % format.packed->group() == 0; });
}

bool holds(const precision::ContractModule& module, const StoredFormat& format) {
  return module.precision().quantized.has_value() == format.packed.has_value() && has_whole_groups(module, format);
}

}  // namespace

std::vector<StoredFormat> parse_formats(const std::string& names, const std::string& source) {
  std::vector<StoredFormat> formats;
  quantization::StoredModules together;
  std::istringstream words(names);
  for (std::string name; std::getline(words, name, ',');) {
    const auto packed = kernels::find_format(name);
    const bool again = std::any_of(formats.begin(), formats.end(), [&](const auto& one) { return one.name == name; });
    if (again || (!packed && name != kFloatFormat)) {
      throw UsageError(fmt::format("{}={}: \"{}\" is {}: wanted different ones of {}, {}", source, names, name,
                                   again ? "there twice" : "no format", kFloatFormat,
                                   fmt::join(kernels::format_names(), ", ")));
    }
    formats.push_back({name, packed});
    if (packed) together.packed[name] = *packed;
  }
  if (formats.empty()) throw UsageError(fmt::format("{} names no format: wanted such as float,int8,int4", source));
  if (quantization::layout_for(together) == nullptr) {
    throw UsageError(
        fmt::format("{}={}: no folder that others read holds them together: nf4 is of bitsandbytes, int8 "
                    "to int2 are of compressed-tensors",
                    source, names));
  }
  return formats;
}

void refuse_for_vllm(const std::string& where, QuantizedFormat format) {
  throw UsageError(
      fmt::format("{} {}, and vLLM serves codes of 8 and 4 bits alone: take int4-g32 or int4-sym-g32, or leave "
                  "--serve-by out, for limbeck and for transformers with compressed-tensors",
                  where, kernels::format_name(format)));
}

FolderPlan plan_folder(const models::BuiltModel& built) {
  FolderPlan plan;
  if (packs(built)) {
    const models::PackedPlan packed = models::plan_packed(built);
    for (const auto& tensor : packed.tensors)
      plan.tensors.push_back({tensor.name, tensor.format, tensor.values, tensor.bytes});
    plan.layout = packed.layout;
    return plan;
  }
  for (const auto& binding : models::bind_weights(*built.model, *built.config.family)) {
    const at::Tensor part = binding.part_of(binding.parameter);
    plan.tensors.push_back({binding.name, precision::dtype_name(part.scalar_type()), part.numel(),
                            static_cast<int64_t>(part.numel() * part.element_size())});
  }
  return plan;
}

FormatTable::FormatTable(const models::ModelRequest& request, std::vector<StoredFormat> formats, Covered covered)
    : formats_(std::move(formats)) {
  const models::BuiltModel plain = built_in(request, {kFloatFormat, std::nullopt}, covered, "");
  const std::string tied_head = tied_head_of(plain, request.root);
  const auto float_bytes = bytes_by_module(plain);
  for (const FolderPlan::Tensor& tensor : plan_folder(plain).tensors) {
    values_ += tensor.values;
    rest_bytes_ += tensor.bytes;
  }
  // A rule that holds whatever the packing shows by a module that does not follow it.
  const models::BuiltModel packed = built_in(request, {"int8", QuantizedFormat::kInt8}, covered, tied_head);
  const auto in_floats = precision::contract_modules(*plain.model),
             in_codes = precision::contract_modules(*packed.model);
  std::map<std::string, size_t> places;
  for (size_t i = 0; i < in_floats.size(); ++i) {
    const auto& module = *in_floats[i];
    if (!has_a_matrix(module) || module.precision().quantized || !in_codes[i]->precision().quantized ||
        in_codes[i]->precision().source != "int8") {
      continue;
    }
    const auto below = [&](const std::string& path) { return path_below(path, request.root); };
    modules_.push_back({below(module.path()), module.role(), below(group_of(module)), module.footprint().values, {}});
    rest_bytes_ -= float_bytes.at(module.path());
    const auto [group, is_new] = places.emplace(modules_.back().group, groups_.size());
    if (is_new) groups_.emplace_back();
    groups_[group->second].push_back(modules_.size() - 1);
  }
  for (const StoredFormat& format : formats_) {
    const models::BuiltModel built = built_in(request, format, covered, tied_head);
    const auto bytes = bytes_by_module(built);
    size_t next = 0;
    for (const auto& module : precision::contract_modules(*built.model)) {
      if (next == modules_.size() || module->path() != request.root + "." + modules_[next].path) continue;
      modules_[next++].bytes.push_back(holds(*module, format) ? std::optional(bytes.at(module->path())) : std::nullopt);
    }
  }
}

size_t FormatTable::format_index(const std::string& name) const {
  for (size_t i = 0; i < formats_.size(); ++i) {
    if (formats_[i].name == name) return i;
  }
  throw std::logic_error("the table has no format " + name);
}

int64_t FormatTable::bytes_of(const Mix& mix) const {
  int64_t bytes = rest_bytes_;
  for (const Candidate& module : modules_) {
    const std::string& format = mix.at(module.path);
    const auto stored = module.bytes[format_index(format)];
    if (!stored && module.role == precision::Role::kEmbedding) {
      throw UsageError(fmt::format("{}: others read an embedding in int8 or {}, not in {}: give it one of these",
                                   module.path, kFloatFormat, format));
    }
    if (!stored) {
      throw UsageError(
          fmt::format("{}: its columns are no multiple of the groups of {}, which others refuse: take a "
                      "format of smaller groups, or give it int8 by a --rule",
                      module.path, format));
    }
    bytes += *stored;
  }
  return bytes;
}

std::string spelled(const FormatTable& table, const Mix& mix) {
  std::string text;
  for (const Candidate& module : table.modules())
    text += fmt::format("{}{}", text.empty() ? "" : " ", table.format_index(mix.at(module.path)));
  return text;
}

SizeEstimate estimate_model_size(const FormatTable& table, const Mix& mix) {
  return size_estimate(table.values(), table.bytes_of(mix));
}

SizeEstimate size_estimate(int64_t values, int64_t bytes) {
  SizeEstimate estimate;
  estimate.total_parameters = values;
  estimate.fp32_bytes = 4 * values;
  estimate.mixed_precision_bytes = bytes;
  estimate.compression_ratio =
      static_cast<double>(estimate.fp32_bytes) / static_cast<double>(estimate.mixed_precision_bytes);
  estimate.meets_target = estimate.compression_ratio >= estimate.target_compression;
  return estimate;
}

precision::Packing packing_of(const Mix& mix, std::string source) {
  const auto format_of = [mix](const std::string& path, precision::Role) -> std::optional<QuantizedFormat> {
    const auto found = mix.find(path);
    return found == mix.end() ? std::nullopt : kernels::find_format(found->second);
  };
  return {format_of, std::move(source)};
}

}  // namespace limbeck::quantize
