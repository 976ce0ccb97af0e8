#include "modules/quantization/compressed_tensors_groups.h"

#include <fmt/format.h>

#include "modules/quantization/folder_layout.h"

namespace limbeck::quantization {
namespace {

using kernels::QuantizedFormat;
using precision::Role;

std::vector<CompressedTarget> targets_of(const io::JsonFile& where, const std::string& key) {
  std::vector<CompressedTarget> targets;
  if (!where.has(key)) return targets;
  const auto& listed = where.value().at(key);
  if (!listed.is_array()) refuse(where, key + " is no list of names");
  for (const auto& target : listed) {
    if (!target.is_string()) refuse(where, key + " is no list of names");
    targets.emplace_back(where, target.get<std::string>());
  }
  return targets;
}

QuantizedFormat format_of_weights(const io::JsonFile& weights, bool in_words) {
  const int64_t bits = weights.integer("num_bits", 1, 16);
  const std::string strategy = weights.string_or("strategy", ""), type = weights.string_or("type", "int");
  const bool symmetric = weights.boolean_or("symmetric", true);
  const int64_t group = weights.integer_or("group_size", -1, -1, int64_t{1} << 30);
  if (type == "int" && bits == 8 && symmetric && strategy == "channel") return QuantizedFormat::kInt8;
  if (type == "int" && bits == 8 && symmetric && strategy == "group") {
    if (const auto format = kernels::find_format(fmt::format("int8-g{}", group))) return *format;
  }
  if (type == "int" && bits <= 4 && (in_words || symmetric) && strategy == "group") {
    const auto format = kernels::find_format(
        fmt::format("int{}{}{}", bits, symmetric ? "-sym" : "", group == 128 ? "" : fmt::format("-g{}", group)));
    if (format) return *format;
  }
  refuse(
      weights,
      fmt::format(
          "{} bits of {}, {}, strategy {}, group_size {} are not read: wanted 2 to 4 bits of int in groups of 32, 64 "
          "or 128 (with zero points: pack-quantized), or 8 bits, symmetric, in such groups or by channel",
          bits, type, symmetric ? "symmetric" : "with zero points", strategy.empty() ? "none" : strategy, group));
}

// The format of the same weights whose inputs are quantized too, row by row while they are read.
std::optional<QuantizedFormat> dynamic_format(QuantizedFormat format) {
  format.dynamic = true;
  return kernels::find_format(kernels::format_name(format));
}

QuantizedFormat format_with_inputs(const io::JsonFile& group, QuantizedFormat format) {
  for (const char* more : {"output_activations", "input_activations"}) {
    if (!group.has(more) || group.value().at(more).is_null()) continue;
    const io::JsonFile inputs = group.child(more);
    const bool by_row = inputs.integer_or("num_bits", 8, 1, 16) == 8 && inputs.string_or("type", "int") == "int" &&
                        inputs.boolean_or("symmetric", true) && inputs.boolean_or("dynamic", false) &&
                        inputs.string_or("strategy", "") == "token";
    const auto dynamic = dynamic_format(format);
    if (more != std::string_view("input_activations") || !by_row || !dynamic) {
      refuse(inputs,
             "changes what the module computes, and is not read: wanted none, or beside weights of 8 bits by channel "
             "or of 4 bits, symmetric, in groups of 32 or 128, input_activations of 8 bits of int, symmetric, dynamic, "
             "strategy token");
    }
    return *dynamic;
  }
  return format;
}

CompressedGroup group_of(const io::JsonFile& group, const std::string& format_of_all) {
  const std::string format = group.string_or("format", format_of_all);
  const bool in_words = format == kInWords;
  if (!in_words && format != kInBytes) {
    refuse(group, fmt::format("format \"{}\" is not read: wanted pack-quantized or int-quantized", format));
  }
  const QuantizedFormat of_weights = format_of_weights(group.child("weights"), in_words);
  return {targets_of(group, "targets"), format_with_inputs(group, of_weights), in_words};
}

}  // namespace

CompressedTarget::CompressedTarget(const io::JsonFile& where, std::string text) : text_(std::move(text)) {
  if (!text_.starts_with("re:")) return;
  expression_ = std::make_shared<const re2::RE2>(text_.substr(3), re2::RE2::Quiet);
  if (!expression_->ok()) refuse(where, fmt::format("\"{}\": {}", text_, expression_->error()));
}

int CompressedTarget::fits(const std::string& module, Role role) const {
  if (module == text_) return 3;
  if (expression_ && expression_->Match(module, 0, module.size(), re2::RE2::ANCHOR_START, nullptr, 0)) return 2;
  return text_ == (role == Role::kEmbedding ? "Embedding" : "Linear") ? 1 : 0;
}

CompressedGroups::CompressedGroups(const io::JsonFile& quantization) : ignored_(targets_of(quantization, "ignore")) {
  const std::string format = quantization.string_or("format", "");
  const io::JsonFile groups = quantization.child("config_groups");
  for (const auto& [name, group] : groups.value().items()) groups_.push_back(group_of(groups.child(name), format));
}

const CompressedGroup* CompressedGroups::find(const std::string& weight, Role role) const {
  const std::string module = weight.substr(0, weight.rfind('.'));
  for (const CompressedTarget& ignored : ignored_) {
    if (ignored.fits(module, role) > 0) return nullptr;
  }
  const CompressedGroup* best = nullptr;
  int most = 0;
  for (const CompressedGroup& group : groups_) {
    for (const CompressedTarget& target : group.targets) {
      const int fits = target.fits(module, role);
      if (fits > most) most = fits, best = &group;
    }
  }
  return best;
}

}  // namespace limbeck::quantization
