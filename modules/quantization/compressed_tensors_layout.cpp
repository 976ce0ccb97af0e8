// A weight W of compressed-tensors is these tensors, of W's module in the group of config.json's config_groups that
// names it:
//   pack-quantized   W_packed      int32 [rows, words]    codes above the least one, 4 or 8 bits each, low bits first
//                    W_scale       float [rows, groups]
//                    W_zero_point  int32 [words, groups]  where the group is not symmetric: packed down the rows
//                    W_shape       int64 [2]
//   int-quantized    W             int8 [rows, columns]
//                    W_scale       float [rows, 1]
// Our int4 is that layout itself; int8 is written pack-quantized (weights alone), and read from both.
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <re2/re2.h>

#include <algorithm>

#include "modules/errors.h"
#include "modules/io/finite_check.h"
#include "modules/precision/casts.h"
#include "modules/precision/precision.h"
#include "modules/quantization/code_words.h"
#include "modules/quantization/folder_layout.h"

namespace limbeck::quantization {
namespace {

using kernels::CodeKind;
using kernels::QuantizedFormat;
using precision::PackedWeight;

// What names modules: a name, "re:" and an expression for its beginning, or a class. Of several that fit a module, the
// name counts most, then the expression.
class Target {
 public:
  Target(const io::JsonFile& where, std::string text) : text_(std::move(text)) {
    if (!text_.starts_with("re:")) return;
    expression_ = std::make_shared<const re2::RE2>(text_.substr(3), re2::RE2::Quiet);
    if (!expression_->ok()) refuse(where, fmt::format("\"{}\": {}", text_, expression_->error()));
  }

  // 0 where it does not fit. All modules whose weights we pack are of the class Linear.
  int fits(const std::string& module) const {
    if (module == text_) return 3;
    if (expression_ && expression_->Match(module, 0, module.size(), re2::RE2::ANCHOR_START, nullptr, 0)) return 2;
    return text_ == "Linear" ? 1 : 0;
  }

 private:
  std::string text_;
  std::shared_ptr<const re2::RE2> expression_;
};

std::vector<Target> targets_of(const io::JsonFile& where, const std::string& key) {
  std::vector<Target> targets;
  if (!where.has(key)) return targets;
  const auto& listed = where.value().at(key);
  if (!listed.is_array()) refuse(where, key + " is no list of names");
  for (const auto& target : listed) {
    if (!target.is_string()) refuse(where, key + " is no list of names");
    targets.emplace_back(where, target.get<std::string>());
  }
  return targets;
}

struct Group {
  std::vector<Target> targets;
  QuantizedFormat format;
  bool in_words;  // pack-quantized
};

QuantizedFormat format_of_weights(const io::JsonFile& weights, bool in_words) {
  const int64_t bits = weights.integer("num_bits", 1, 16);
  const std::string strategy = weights.string_or("strategy", ""), type = weights.string_or("type", "int");
  const bool symmetric = weights.boolean_or("symmetric", true);
  const int64_t group = weights.integer_or("group_size", -1, -1, int64_t{1} << 30);
  if (type == "int" && bits == 8 && symmetric && strategy == "channel") return QuantizedFormat::kInt8;
  if (type == "int" && bits == 4 && in_words && strategy == "group") {
    const auto format = kernels::find_format(
        fmt::format("int4{}{}", symmetric ? "-sym" : "", group == 128 ? std::string() : fmt::format("-g{}", group)));
    if (format) return *format;
  }
  refuse(weights,
         fmt::format(
             "{} bits of {}, {}, strategy {}, group_size {} are not read: wanted 4 bits of int in groups of 32, 64 or "
             "128 (pack-quantized), or 8 bits, symmetric, by channel",
             bits, type, symmetric ? "symmetric" : "with zero points", strategy.empty() ? "none" : strategy, group));
}

Group group_of(const io::JsonFile& group, const std::string& format_of_all) {
  const std::string format = group.string_or("format", format_of_all);
  const bool in_words = format == "pack-quantized";
  if (!in_words && format != "int-quantized") {
    refuse(group, fmt::format("format \"{}\" is not read: wanted pack-quantized or int-quantized", format));
  }
  return {targets_of(group, "targets"), format_of_weights(group.child("weights"), in_words), in_words};
}

class CompressedTensors : public WrittenLayout {
 public:
  CompressedTensors() = default;
  explicit CompressedTensors(const io::JsonFile& quantization) : ignored_(targets_of(quantization, "ignore")) {
    const std::string status = quantization.string_or("quantization_status", "compressed");
    if (status != "compressed") {
      refuse(quantization, fmt::format("quantization_status is \"{}\", wanted \"compressed\"", status));
    }
    const std::string format = quantization.string_or("format", "");
    for (const char* more : {"kv_cache_scheme", "transform_config", "sparsity_config"}) {
      const bool there = quantization.has(more) && !quantization.value().at(more).empty();
      if (there && !(quantization.value().at(more).is_object() &&
                     quantization.value().at(more).value("format", "") == "dense")) {
        refuse(quantization, fmt::format("{} changes what the weights compute, and is not read", more));
      }
    }
    const io::JsonFile groups = quantization.child("config_groups");
    for (const auto& [name, group] : groups.value().items()) groups_.push_back(group_of(groups.child(name), format));
  }

  const char* name() const override { return "compressed-tensors"; }

  std::optional<QuantizedFormat> format_of(const std::string& weight) const override {
    const Group* group = group_for(weight);
    return group == nullptr ? std::nullopt : std::optional(group->format);
  }

  std::vector<std::string> tensors_of(const io::WeightsFolder& folder, const std::string& weight) const override {
    std::vector<std::string> found;
    const bool packed = folder.find(weight + "_packed") != nullptr;
    if (!packed && (folder.find(weight + "_scale") == nullptr || folder.find(weight) == nullptr)) return found;
    found.push_back(packed ? weight + "_packed" : weight);
    for (const char* part : {"_scale", "_zero_point", "_shape", "_g_idx"}) {
      if (folder.find(weight + part) != nullptr) found.push_back(weight + part);
    }
    return found;
  }

  PackedWeight read(const io::WeightsFolder& folder, const std::string& weight, int64_t rows,
                    int64_t columns) const override {
    const Group* group = group_for(weight);
    const std::string stored = group != nullptr && group->in_words ? weight + "_packed" : weight;
    const auto refuse_weight = [&](const std::string& what) {
      const std::string there = folder.find(stored) != nullptr ? stored : tensors_of(folder, weight).at(0);
      throw WeightsError(fmt::format("{}: {} of compressed-tensors: {}", folder.file_of(there).string(), weight, what));
    };
    if (group == nullptr) refuse_weight("it is packed, and no group of config.json's config_groups names its module");
    if (folder.find(weight + "_g_idx") != nullptr) {
      refuse_weight(
          "it has a _g_idx: groups of reordered columns are not read; quantize without activation order by group");
    }
    const auto wanted = [&](const std::string& name, at::ArrayRef<at::ScalarType> dtypes, at::IntArrayRef shape) {
      const io::TensorEntry* entry = folder.find(name);
      if (entry == nullptr) refuse_weight(name + " is missing");
      const at::Tensor tensor = folder.read(name);
      if (std::find(dtypes.begin(), dtypes.end(), tensor.scalar_type()) == dtypes.end() || tensor.sizes() != shape) {
        refuse_weight(fmt::format("{} is {} [{}], wanted {} [{}]", name, precision::dtype_name(tensor.scalar_type()),
                                  fmt::join(tensor.sizes(), ","), precision::dtype_name(dtypes[0]),
                                  fmt::join(shape, ",")));
      }
      return tensor;
    };
    if (group->in_words) {
      const at::Tensor shape = wanted(weight + "_shape", {at::kLong}, {2});
      const auto* sizes = shape.const_data_ptr<int64_t>();
      if (sizes[0] != rows || sizes[1] != columns) {
        refuse_weight(fmt::format("{}_shape is {} x {}, wanted {} x {}: config.json and weights are not of one model",
                                  weight, sizes[0], sizes[1], rows, columns));
      }
    }
    const auto floats = {at::kFloat, at::kBFloat16, at::kHalf};
    const bool int8 = group->format.kind == CodeKind::kInt8;
    const int64_t groups = int8 ? 1 : kernels::rounded_up_quotient(columns, group->format.group());
    at::Tensor scales = wanted(weight + "_scale", floats, {rows, groups});
    if (io::first_nonfinite(scales)) refuse_weight(weight + "_scale holds NaN or infinity");
    if (int8) scales = scales.view({rows});
    kernels::QuantizedMatrix matrix{group->format, rows, columns, {}};
    if (!group->in_words) {
      matrix.parts = {wanted(weight, {at::kChar}, {rows, columns}), scales};
    } else {
      const int64_t codes_of_word = int8 ? 4 : kernels::kWordCodes;
      const at::Tensor words = wanted(stored, {at::kInt}, {rows, kernels::rounded_up_quotient(columns, codes_of_word)});
      matrix.parts = {int8 ? codes_of_words(words, columns) : words, scales};
      if (group->format.has_zeros) {
        matrix.parts.push_back(wanted(weight + "_zero_point", {at::kInt},
                                      {kernels::rounded_up_quotient(rows, kernels::kWordCodes), groups}));
      }
    }
    return PackedWeight(std::move(matrix));
  }

  bool has_transposed() const override { return false; }
  bool writes(QuantizedFormat format) const override { return format.kind != CodeKind::kNf4; }

  io::NamedTensors tensors(const std::string& weight, const PackedWeight& packed, at::ScalarType dtype) const override {
    const PackedWeight here = packed.on(c10::kCPU);
    const kernels::QuantizedMatrix& matrix = here.matrix();
    const bool int8 = matrix.format.kind == CodeKind::kInt8;
    if (!int8 && matrix.columns % matrix.format.group() != 0) {
      throw UsageError(
          fmt::format("{}: {} columns are no multiple of its groups of {}, which others refuse: keep its module in "
                      "int8 or in floats by a "
                      "precision.rule, or take a format of smaller groups",
                      weight, matrix.columns, matrix.format.group()));
    }
    const at::Tensor codes = here.part("codes");
    io::NamedTensors tensors = {
        {weight + "_packed", int8 ? words_of(codes) : codes},
        {weight + "_scale", in_dtype(weight, here.part("scales"), dtype).view({matrix.rows, -1})},
        {weight + "_shape", at::tensor({matrix.rows, matrix.columns}, at::kLong)}};
    if (matrix.format.has_zeros) tensors.emplace_back(weight + "_zero_point", here.part("zeros"));
    return tensors;
  }

  int64_t bytes_of(QuantizedFormat format, int64_t rows, int64_t columns, at::ScalarType dtype) const override {
    constexpr int64_t kWord = 4, kShape = 16;
    // Rows of int8 are filled up to whole words; int4 has them already.
    const bool int8 = format.kind == CodeKind::kInt8;
    const int64_t stored = int8 ? kernels::rounded_up_quotient(columns, kWord) * kWord : columns;
    int64_t bytes = kShape;
    for (const kernels::QuantizedPart& part : kernels::parts_of(format, rows, stored, dtype))
      bytes += c10::multiply_integers(part.shape) * static_cast<int64_t>(c10::elementSize(part.dtype));
    return bytes;
  }

  nlohmann::json config(const StoredModules& modules, at::ScalarType) const override {
    std::map<std::string, std::vector<std::string>> by_format;
    for (const auto& [module, format] : modules.packed) by_format[kernels::format_name(format)].push_back(module);
    nlohmann::json groups = nlohmann::json::object();
    for (const auto& [name, packed] : by_format) {
      const QuantizedFormat format = kernels::format_named(name);
      const bool int8 = format.kind == CodeKind::kInt8;
      nlohmann::json weights = {{"num_bits", int8 ? 8 : 4},       {"type", "int"},
                                {"symmetric", !format.has_zeros}, {"strategy", int8 ? "channel" : "group"},
                                {"group_size", nullptr},          {"dynamic", false}};
      if (!int8) weights["group_size"] = format.group();
      groups[fmt::format("group_{}", groups.size())] = {
          {"targets", by_format.size() == 1 ? std::vector<std::string>{"Linear"} : packed},
          {"format", "pack-quantized"},
          {"weights", weights},
          {"input_activations", nullptr},
          {"output_activations", nullptr}};
    }
    return {{"quant_method", "compressed-tensors"},
            {"format", "pack-quantized"},
            {"quantization_status", "compressed"},
            {"global_compression_ratio", nullptr},
            {"kv_cache_scheme", nullptr},
            {"ignore", modules.plain},
            {"config_groups", groups}};
  }

 private:
  const Group* group_for(const std::string& weight) const {
    const std::string module = weight.substr(0, weight.rfind('.'));
    for (const Target& ignored : ignored_) {
      if (ignored.fits(module) > 0) return nullptr;
    }
    const Group* best = nullptr;
    int most = 0;
    for (const Group& group : groups_) {
      for (const Target& target : group.targets) {
        const int fits = target.fits(module);
        if (fits > most) most = fits, best = &group;
      }
    }
    return best;
  }

  // Scales as the file is to hold them, if nothing is lost by it.
  static at::Tensor in_dtype(const std::string& weight, const at::Tensor& scales, at::ScalarType dtype) {
    at::Tensor narrow = at::empty(scales.sizes(), scales.options().dtype(dtype));
    precision::cast_into(narrow, scales);
    at::Tensor back = at::empty_like(scales);
    precision::cast_into(back, narrow);
    if (back.equal(scales)) return narrow;
    throw UsageError(
        fmt::format("{}: its scales are {}, and not all of them are numbers of {}, which others read them in: quantize "
                    "the float weights "
                    "anew (limbeck quantize), or save in {}",
                    weight, precision::dtype_name(scales.scalar_type()), precision::dtype_name(dtype),
                    precision::dtype_name(scales.scalar_type())));
  }

  std::vector<Target> ignored_;
  std::vector<Group> groups_;
};

}  // namespace

std::shared_ptr<const FolderLayout> compressed_tensors_layout(const io::JsonFile& quantization) {
  return std::make_shared<CompressedTensors>(quantization);
}

std::shared_ptr<const WrittenLayout> compressed_tensors_layout() { return std::make_shared<CompressedTensors>(); }

}  // namespace limbeck::quantization
