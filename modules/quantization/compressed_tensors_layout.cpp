// A weight W of compressed-tensors is these tensors, of W's module in the group of config.json's config_groups that
// names it:
//   pack-quantized   W_packed      int32 [rows, words]    codes above the least one, 2, 3, 4 or 8 bits each, low bits
//                                                        first, without gaps
//                    W_scale       float [rows, groups]
//                    W_zero_point  int32 [words, groups]  where the group is not symmetric: packed down the rows
//                    W_shape       int64 [2]
//   int-quantized    W             int8 [rows, columns]  also of codes of fewer bits, in groups
//                    W_scale       float [rows, 1], or [rows, groups]
// Our int4, int3 and int2 are that layout itself; int8 is written pack-quantized (weights alone), and read from both;
// int8-dynamic is written int-quantized, beside input_activations that say how its inputs are quantized. An embedding
// is written int-quantized, in int8: transformers loads no other packed embedding (its initialisation asks each for a
// tensor of the name W). A head that shares it has the same codes, stored once, and scales under its own name.
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "modules/errors.h"
#include "modules/io/finite_check.h"
#include "modules/precision/casts.h"
#include "modules/precision/precision.h"
#include "modules/quantization/code_words.h"
#include "modules/quantization/compressed_tensors_groups.h"
#include "modules/quantization/folder_layout.h"

namespace limbeck::quantization {
namespace {

using kernels::CodeKind;
using kernels::QuantizedFormat;
using precision::PackedWeight;

class CompressedTensors : public WrittenLayout {
 public:
  CompressedTensors() = default;
  explicit CompressedTensors(const io::JsonFile& quantization) : groups_(quantization) {
    const std::string status = quantization.string_or("quantization_status", "compressed");
    if (status != "compressed") {
      refuse(quantization, fmt::format("quantization_status is \"{}\", wanted \"compressed\"", status));
    }
    for (const char* more : {"kv_cache_scheme", "transform_config", "sparsity_config"}) {
      const bool there = quantization.has(more) && !quantization.value().at(more).empty();
      if (there && !(quantization.value().at(more).is_object() &&
                     quantization.value().at(more).value("format", "") == "dense")) {
        refuse(quantization, fmt::format("{} changes what the weights compute, and is not read", more));
      }
    }
  }

  const char* name() const override { return "compressed-tensors"; }

  std::optional<QuantizedFormat> format_of(const std::string& weight, Role role) const override {
    const CompressedGroup* group = groups_.find(weight, role);
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

  // Codes and scales alike; where the head's tensors differ, config.json ties what the files do not.
  std::vector<std::string> repeated_for(const io::WeightsFolder& folder, const std::string& head,
                                        const std::string& embedding) const override {
    std::vector<std::string> found;
    for (const char* part : {"", "_packed", "_scale", "_zero_point", "_shape"}) {
      const std::string own = head + part, other = embedding + part;
      if (folder.find(own) == nullptr || folder.find(other) == nullptr) continue;
      if (!folder.read(own).equal(folder.read(other))) {
        throw WeightsError(fmt::format(
            "{}: {} differs from {}, but config.json ties them (\"tie_word_embeddings\"): set it to false to "
            "use both",
            folder.file_of(own).string(), own, other));
      }
      found.push_back(own);
    }
    return found;
  }

  PackedWeight read(const io::WeightsFolder& folder, const std::string& weight, Role role, int64_t rows,
                    int64_t columns) const override {
    const CompressedGroup* group = groups_.find(weight, role);
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
    const bool in_groups = group->format.has_groups();
    const int64_t groups = in_groups ? kernels::rounded_up_quotient(columns, group->format.group()) : 1;
    at::Tensor scales = wanted(weight + "_scale", floats, {rows, groups});
    if (io::first_nonfinite(scales)) refuse_weight(weight + "_scale holds NaN or infinity");
    if (!in_groups) scales = scales.view({rows});
    kernels::QuantizedMatrix matrix{group->format, rows, columns, {}};
    if (!group->in_words) {
      at::Tensor codes = wanted(weight, {at::kChar}, {rows, columns});
      if (!int8) {
        const int bits = group->format.bits, middle = group->format.middle_code();
        const auto words = short_words_of(codes, bits);
        if (!words) {
          refuse_weight(fmt::format("{} holds codes beyond {} to {}, and config.json says {} bits", weight, -middle,
                                    middle - 1, bits));
        }
        codes = *words;
      }
      matrix.parts = {codes, scales};
    } else {
      const int bits = group->format.bits;
      const at::Tensor words = wanted(stored, {at::kInt}, {rows, kernels::words_of_codes(bits, columns)});
      matrix.parts = {int8 ? codes_of_words(words, columns) : words, scales};
      if (group->format.has_zeros) {
        matrix.parts.push_back(
            wanted(weight + "_zero_point", {at::kInt}, {kernels::words_of_codes(bits, rows), groups}));
      }
    }
    return PackedWeight(std::move(matrix));
  }

  bool has_transposed() const override { return false; }
  bool writes(QuantizedFormat format) const override { return format.kind != CodeKind::kNf4; }
  bool writes_for(Role role, QuantizedFormat format) const override {
    return role == Role::kEmbedding ? format == QuantizedFormat::kInt8
                                    : writes(format) && precision::packable_in(role, format);
  }

  io::NamedTensors tensors(const StoredWeight& stored, const PackedWeight& packed,
                           at::ScalarType dtype) const override {
    const std::string& weight = stored.name;
    const PackedWeight here = packed.on(c10::kCPU);
    const kernels::QuantizedMatrix& matrix = here.matrix();
    if (stored.embedding) {
      const at::Tensor scales = in_dtype(weight, here.part("scales"), dtype).view({matrix.rows, 1});
      io::NamedTensors bytes = {{weight, here.part("codes")}, {weight + "_scale", scales}};
      if (!stored.tied_head.empty()) bytes.emplace_back(stored.tied_head + ".weight_scale", scales.clone());
      return bytes;
    }
    const bool int8 = matrix.format.kind == CodeKind::kInt8;
    if (matrix.format.has_groups() && matrix.columns % matrix.format.group() != 0) {
      throw UsageError(
          fmt::format("{}: {} columns are no multiple of its groups of {}, which others refuse: keep its module in "
                      "int8 or in floats by a "
                      "precision.rule, or take a format of smaller groups",
                      weight, matrix.columns, matrix.format.group()));
    }
    const at::Tensor codes = here.part("codes");
    const at::Tensor scales = in_dtype(weight, here.part("scales"), dtype).view({matrix.rows, -1});
    if (matrix.format == QuantizedFormat::kInt8Dynamic) return {{weight, codes}, {weight + "_scale", scales}};
    io::NamedTensors tensors = {{weight + "_packed", int8 ? words_of(codes) : codes},
                                {weight + "_scale", scales},
                                {weight + "_shape", at::tensor({matrix.rows, matrix.columns}, at::kLong)}};
    if (matrix.format.has_zeros) tensors.emplace_back(weight + "_zero_point", here.part("zeros"));
    return tensors;
  }

  int64_t bytes_of(const StoredWeight& weight, QuantizedFormat format, int64_t rows, int64_t columns,
                   at::ScalarType dtype) const override {
    constexpr int64_t kWord = 4, kShape = 16;
    if (weight.embedding) {
      const int64_t scales = rows * static_cast<int64_t>(c10::elementSize(dtype));
      return rows * columns + scales * (weight.tied_head.empty() ? 1 : 2);
    }
    // Rows of int8 are filled up to whole words; the others have them already.
    const bool int8 = format.kind == CodeKind::kInt8;
    const bool in_bytes = format == QuantizedFormat::kInt8Dynamic;
    const int64_t stored = int8 && !in_bytes ? kernels::rounded_up_quotient(columns, kWord) * kWord : columns;
    int64_t bytes = in_bytes ? 0 : kShape;
    for (const kernels::QuantizedPart& part : kernels::parts_of(format, rows, stored, dtype))
      bytes += c10::multiply_integers(part.shape) * static_cast<int64_t>(c10::elementSize(part.dtype));
    return bytes;
  }

  nlohmann::json config(const StoredModules& modules, at::ScalarType) const override {
    std::map<std::string, std::vector<std::string>> by_format;
    for (const auto& [module, format] : modules.packed) by_format[kernels::format_name(format)].push_back(module);
    for (const auto& [begin, format] : modules.experts)
      by_format[kernels::format_name(format)].push_back(modules_below(begin));
    std::vector<std::string> ignored = modules.plain;
    for (const std::string& begin : modules.plain_experts) ignored.push_back(modules_below(begin));
    nlohmann::json groups = nlohmann::json::object();
    std::set<std::string> forms;
    const auto add = [&](const std::vector<std::string>& targets, QuantizedFormat format, const char* form) {
      groups[fmt::format("group_{}", groups.size())] = {{"targets", targets},
                                                        {"format", form},
                                                        {"weights", weights_of(format)},
                                                        {"input_activations", inputs_of(format)},
                                                        {"output_activations", nullptr}};
      forms.insert(form);
    };
    const bool names = by_format.size() > 1 || !modules.embeddings.empty();
    for (const auto& [name, packed] : by_format) {
      const QuantizedFormat format = kernels::format_named(name);
      add(names ? packed : std::vector<std::string>{"Linear"}, format,
          format == QuantizedFormat::kInt8Dynamic ? kInBytes : kInWords);
    }
    const std::vector<std::string> embeddings = embedding_targets(modules);
    if (!embeddings.empty()) add(embeddings, QuantizedFormat::kInt8, kInBytes);
    const std::string all = forms.size() > 1 ? "mixed-precision" : forms.empty() ? kInWords : *forms.begin();
    return {{"quant_method", "compressed-tensors"},
            {"format", all},
            {"quantization_status", "compressed"},
            {"global_compression_ratio", nullptr},
            {"kv_cache_scheme", nullptr},
            {"ignore", ignored},
            {"config_groups", groups}};
  }

 private:
  // An expression for all modules whose names begin so.
  static std::string modules_below(const std::string& begin) {
    std::string expression = "re:";
    for (const char letter : begin) expression += letter == '.' ? std::string("\\.") : std::string(1, letter);
    return expression + "\\..*";
  }

  static nlohmann::json weights_of(QuantizedFormat format) {
    const bool in_groups = format.has_groups();
    nlohmann::json weights = {{"num_bits", format.bits},        {"type", "int"},
                              {"symmetric", !format.has_zeros}, {"strategy", in_groups ? "group" : "channel"},
                              {"group_size", nullptr},          {"dynamic", false}};
    if (in_groups) weights["group_size"] = format.group();
    return weights;
  }

  static nlohmann::json inputs_of(QuantizedFormat format) {
    if (!format.dynamic) return nullptr;
    return {{"num_bits", 8},       {"type", "int"},         {"symmetric", true},
            {"strategy", "token"}, {"group_size", nullptr}, {"dynamic", true}};
  }

  // And the head that shares the weight.
  static std::vector<std::string> embedding_targets(const StoredModules& modules) {
    std::vector<std::string> targets;
    for (const auto& [module, format] : modules.embeddings) {
      if (!compressed_tensors_layout()->writes_for(Role::kEmbedding, format)) {
        throw UsageError(
            fmt::format("{} is in {}, and transformers loads packed embeddings in int8 alone: say int8 for it in the "
                        "rule, or leave "
                        "it in floats",
                        module, kernels::format_name(format)));
      }
      targets.push_back(module);
    }
    if (!modules.tied_head.empty()) targets.push_back(modules.tied_head);
    return targets;
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

  CompressedGroups groups_;
};

}  // namespace

std::shared_ptr<const FolderLayout> compressed_tensors_layout(const io::JsonFile& quantization) {
  return std::make_shared<CompressedTensors>(quantization);
}

std::shared_ptr<const WrittenLayout> compressed_tensors_layout() { return std::make_shared<CompressedTensors>(); }

}  // namespace limbeck::quantization
