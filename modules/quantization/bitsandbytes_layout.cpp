// A weight W of bitsandbytes' nf4 is these tensors (blocks and levels are those of kernels::QuantizedFormat::kNf4):
//   W                                    uint8 [bytes, 1]   two codes a byte, the first one in the high half
//   W.absmax                             float32 [blocks]   scales; uint8 where they are quantized themselves, and then
//   W.nested_absmax                      float32            their scales, one for each 256
//   W.quant_map, W.nested_quant_map      float32            the levels of both
//   W.quant_state.bitsandbytes__nf4      uint8              JSON: shape, block sizes, dtype, the mean of the scales
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "kernels/quantized/quantized_operands.h"
#include "modules/errors.h"
#include "modules/precision/precision.h"
#include "modules/quantization/folder_layout.h"

namespace limbeck::quantization {
namespace {

using kernels::QuantizedFormat;
using precision::PackedWeight;

constexpr const char* kState = ".quant_state.bitsandbytes__nf4";
// Filled up with spaces, so that what a folder will weigh does not depend on the digits of a mean.
constexpr int64_t kStateBytes = 320;

template <class Levels>
bool are_levels(const at::Tensor& stored, const Levels& levels) {
  return stored.scalar_type() == at::kFloat && stored.numel() == static_cast<int64_t>(levels.size()) &&
         std::equal(levels.begin(), levels.end(), stored.const_data_ptr<float>());
}

template <class Levels>
at::Tensor level_tensor(const Levels& levels) {
  return at::tensor(at::ArrayRef<float>(levels.data(), levels.size()), at::kFloat);
}

// As a module's name is held against llm_int8_skip_modules: its beginning or its end.
bool is_about(const std::string& module, const std::string& skipped) {
  return module.starts_with(skipped) || module.ends_with(skipped);
}

class Bitsandbytes : public WrittenLayout {
 public:
  Bitsandbytes() = default;
  explicit Bitsandbytes(const io::JsonFile& quantization) {
    if (!quantization.boolean_or("load_in_4bit", false)) {
      refuse(quantization, "load_in_4bit is not true; the 8 bits of bitsandbytes are not read");
    }
    const std::string type = quantization.string_or("bnb_4bit_quant_type", "fp4");
    if (type != "nf4") refuse(quantization, fmt::format("bnb_4bit_quant_type is \"{}\", wanted \"nf4\"", type));
    const bool nested = quantization.boolean_or("bnb_4bit_use_double_quant", false);
    format_ = nested ? QuantizedFormat::kNf4Double : QuantizedFormat::kNf4;
    if (!quantization.has("llm_int8_skip_modules")) return;
    for (const auto& module : quantization.value().at("llm_int8_skip_modules")) {
      if (!module.is_string()) refuse(quantization, "llm_int8_skip_modules is no list of names");
      skipped_.push_back(module.get<std::string>());
    }
  }

  const char* name() const override { return "bitsandbytes"; }

  // Its readers keep heads and embeddings floats.
  std::optional<QuantizedFormat> format_of(const std::string& weight, Role role) const override {
    if (!precision::packed_by_default(role)) return std::nullopt;
    const std::string module = weight.substr(0, weight.rfind('.'));
    const auto about = [&](const std::string& skipped) { return is_about(module, skipped); };
    if (std::any_of(skipped_.begin(), skipped_.end(), about)) return std::nullopt;
    return format_;
  }

  std::vector<std::string> tensors_of(const io::WeightsFolder& folder, const std::string& weight) const override {
    if (folder.find(weight + kState) == nullptr) return {};
    std::vector<std::string> found = {weight, weight + kState};
    for (const char* part : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
      if (folder.find(weight + part) != nullptr) found.push_back(weight + part);
    }
    return found;
  }

  PackedWeight read(const io::WeightsFolder& folder, const std::string& weight, Role, int64_t rows,
                    int64_t columns) const override {
    const auto refuse_weight = [&](const std::string& what) {
      throw WeightsError(fmt::format("{}: {} of bitsandbytes' nf4: {}", folder.file_of(weight).string(), weight, what));
    };
    const at::Tensor text = folder.read(weight + kState);
    if (text.scalar_type() != at::kByte) refuse_weight("its quant_state is no text");
    const std::string_view characters(static_cast<const char*>(text.const_data_ptr()),
                                      static_cast<size_t>(text.numel()));
    const std::string where = folder.file_of(weight).string() + ": " + weight + kState;
    const io::JsonFile state(io::parse_json(characters, where), where);
    if (state.string("quant_type") != "nf4") refuse_weight("quant_type is not nf4");
    state.integer("blocksize", kernels::kNf4Block, kernels::kNf4Block);
    const nlohmann::json wanted = {rows, columns};
    if (!state.has("shape") || state.value().at("shape") != wanted) {
      refuse_weight(fmt::format("shape {}, wanted {}: config.json and weights are not of one model",
                                state.has("shape") ? state.value().at("shape").dump() : "none", wanted.dump()));
    }
    if (!are_levels(folder.read(weight + ".quant_map"), kernels::kNf4Levels))
      refuse_weight("quant_map holds other levels than those of nf4");
    const bool nested = state.has("nested_blocksize");
    PackedWeight packed(nested ? QuantizedFormat::kNf4Double : QuantizedFormat::kNf4, rows, columns, c10::kCPU);
    const auto fill = [&](const char* part, const std::string& stored) {
      const at::Tensor values = folder.read(stored), tensor = packed.part(part);
      if (values.scalar_type() != tensor.scalar_type() || values.numel() != tensor.numel()) {
        refuse_weight(fmt::format("{} is {} [{}], wanted {} {}", stored, c10::toString(values.scalar_type()),
                                  fmt::join(values.sizes(), ","), tensor.numel(), c10::toString(tensor.scalar_type())));
      }
      std::memcpy(tensor.mutable_data_ptr(), values.const_data_ptr(), values.nbytes());
    };
    fill("codes", weight);
    if (!nested) {
      fill("scales", weight + ".absmax");
      return packed;
    }
    state.integer("nested_blocksize", kernels::kScaleBlock, kernels::kScaleBlock);
    if (!are_levels(folder.read(weight + ".nested_quant_map"), kernels::kDynamicLevels))
      refuse_weight("nested_quant_map holds other levels than those of nf4-double");
    fill("scale_codes", weight + ".absmax");
    fill("scales", weight + ".nested_absmax");
    packed.part("offset").fill_(state.number("nested_offset", 0, std::numeric_limits<float>::max()));
    return packed;
  }

  bool has_transposed() const override { return true; }
  bool writes(QuantizedFormat format) const override { return format.kind == kernels::CodeKind::kNf4; }
  bool writes_for(Role role, QuantizedFormat format) const override {
    return writes(format) && precision::packed_by_default(role);
  }

  io::NamedTensors tensors(const StoredWeight& stored, const PackedWeight& packed,
                           at::ScalarType dtype) const override {
    const std::string& weight = stored.name;
    const PackedWeight here = packed.on(c10::kCPU);
    const kernels::QuantizedMatrix& matrix = packed.matrix();
    nlohmann::ordered_json state = {{"quant_type", "nf4"},
                                    {"blocksize", kernels::kNf4Block},
                                    {"dtype", precision::dtype_name(dtype)},
                                    {"shape", {matrix.rows, matrix.columns}}};
    io::NamedTensors tensors = {{weight, here.part("codes").view({-1, 1})}};
    if (packed.format() == QuantizedFormat::kNf4) {
      tensors.emplace_back(weight + ".absmax", here.part("scales"));
    } else {
      tensors.emplace_back(weight + ".absmax", here.part("scale_codes"));
      tensors.emplace_back(weight + ".nested_absmax", here.part("scales"));
      tensors.emplace_back(weight + ".nested_quant_map", level_tensor(kernels::kDynamicLevels));
      state["nested_blocksize"] = kernels::kScaleBlock;
      state["nested_dtype"] = "float32";
      state["nested_offset"] = static_cast<double>(*here.part("offset").const_data_ptr<float>());
    }
    tensors.emplace_back(weight + ".quant_map", level_tensor(kernels::kNf4Levels));
    std::string text = state.dump();
    text.resize(std::max(text.size(), static_cast<size_t>(kStateBytes)), ' ');
    at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
    std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
    tensors.emplace_back(weight + kState, bytes);
    return tensors;
  }

  int64_t bytes_of(const StoredWeight&, QuantizedFormat format, int64_t rows, int64_t columns,
                   at::ScalarType) const override {
    int64_t bytes = kStateBytes + static_cast<int64_t>(sizeof(kernels::kNf4Levels));
    for (const kernels::QuantizedPart& part : kernels::parts_of(format, rows, columns)) {
      if (std::string_view(part.name) == "offset") continue;  // in the text
      bytes += c10::multiply_integers(part.shape) * static_cast<int64_t>(c10::elementSize(part.dtype));
    }
    return bytes + (format.double_scales ? static_cast<int64_t>(sizeof(kernels::kDynamicLevels)) : 0);
  }

  nlohmann::json config(const StoredModules& modules, at::ScalarType dtype) const override {
    if (!modules.embeddings.empty()) {
      throw UsageError(fmt::format(
          "{} is in {}: bitsandbytes keeps embeddings in floats: leave it out, or write int8 (compressed-tensors)",
          modules.embeddings.begin()->first, kernels::format_name(modules.embeddings.begin()->second)));
    }
    std::map<std::string, QuantizedFormat> packed = modules.packed;
    packed.insert(modules.experts.begin(), modules.experts.end());
    const bool nested = packed.begin()->second.double_scales;
    for (const auto& [module, format] : packed) {
      if (format.double_scales == nested) continue;
      throw UsageError(fmt::format("{} is in {}, {} in {}: bitsandbytes has one format for a folder", module,
                                   kernels::format_name(format), packed.begin()->first,
                                   kernels::format_name(packed.begin()->second)));
    }
    std::vector<std::string> skipped = modules.plain;
    skipped.insert(skipped.end(), modules.plain_experts.begin(), modules.plain_experts.end());
    return {{"quant_method", "bitsandbytes"},
            {"load_in_4bit", true},
            {"load_in_8bit", false},
            {"bnb_4bit_quant_type", "nf4"},
            {"bnb_4bit_use_double_quant", nested},
            {"bnb_4bit_compute_dtype", precision::dtype_name(dtype)},
            {"bnb_4bit_quant_storage", "uint8"},
            {"llm_int8_skip_modules", skipped}};
  }

 private:
  QuantizedFormat format_ = QuantizedFormat::kNf4;
  std::vector<std::string> skipped_;
};

}  // namespace

std::shared_ptr<const FolderLayout> bitsandbytes_layout(const io::JsonFile& quantization) {
  return std::make_shared<Bitsandbytes>(quantization);
}

std::shared_ptr<const WrittenLayout> bitsandbytes_layout() { return std::make_shared<Bitsandbytes>(); }

}  // namespace limbeck::quantization
