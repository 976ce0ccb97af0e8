// A weight W of GPTQ or AWQ, of a module M, is these tensors; codes and zeros are unsigned, a word has its low bits
// first:
//              GPTQ                      AWQ
//   M.qweight  int32 [words, rows]       int32 [columns, words]   packed along the columns, or along the rows
//   M.qzeros   int32 [groups, words]     the same                 the code that stands for 0, packed along the rows
//   M.scales   float [groups, rows]      the same
//   M.g_idx    int32 [columns]           not there                the group of each column; not always there
// GPTQ's zeros are stored less one in all but gptq_v2; a word of AWQ has its eight codes in an order of its own. Turned
// over, that is our int4, int3 or int2 itself, and our int8 where a row has one group and 128 stands for 0.
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <re2/re2.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <map>

#include "kernels/operator/rounded_up.h"
#include "kernels/quantized/short_codes.h"
#include "modules/errors.h"
#include "modules/io/finite_check.h"
#include "modules/precision/precision.h"
#include "modules/quantization/code_words.h"
#include "modules/quantization/folder_layout.h"

namespace limbeck::quantization {
namespace {

using kernels::CodeKind;
using kernels::QuantizedFormat;
using precision::PackedWeight;

// Which of its eight rows the four bits of an AWQ word hold, the low ones first.
constexpr std::array<int, 8> kRowOfBits = {0, 2, 4, 6, 1, 3, 5, 7};

enum class Packing { kGptqLessOne, kGptq, kAwq };

struct Scheme {
  int64_t bits = 4, group = 128;  // group -1: one a row
  bool symmetric = true;

  // Those keys that are there take the place of `base`'s.
  static Scheme of(const io::JsonFile& keys, const Scheme& base) {
    return {.bits = keys.integer_or("bits", base.bits, 1, 32),
            .group = keys.integer_or("group_size", base.group, -1, int64_t{1} << 30),
            .symmetric = keys.has("sym") || !keys.has("zero_point") ? keys.boolean_or("sym", base.symmetric)
                                                                    : !keys.boolean_or("zero_point", true)};
  }

  // nullopt: floats.
  std::optional<QuantizedFormat> format(const io::JsonFile& where) const {
    if (bits >= 16) return std::nullopt;
    if (bits == 8 && group == -1 && symmetric) return QuantizedFormat::kInt8;
    if (bits == 8 && symmetric) {
      if (const auto found = kernels::find_format(fmt::format("int8-g{}", group))) return found;
    }
    if (bits <= 4) {
      const auto found = kernels::find_format(
          fmt::format("int{}{}{}", bits, symmetric ? "-sym" : "", group == 128 ? "" : fmt::format("-g{}", group)));
      if (found) return found;
    }
    refuse(where, fmt::format("{} bits, {}, group_size {} are not read: wanted 2 to 4 bits in groups of 32, 64 or 128, "
                              "or 8 bits, symmetric, in such groups or with group_size -1",
                              bits, symmetric ? "symmetric" : "with zero points", group));
  }
};

// Some modules have a scheme of their own, or none.
struct Exception {
  std::shared_ptr<const re2::RE2> modules;  // matched from the beginning of the name
  std::optional<QuantizedFormat> format;    // nullopt: floats
};

class Gptq : public FolderLayout {
 public:
  explicit Gptq(const io::JsonFile& quantization) {
    const std::string method = quantization.string("quant_method");
    read_packing(quantization, method);
    if (quantization.boolean_or("desc_act", false) && quantization.boolean_or("static_groups", false)) {
      refuse(quantization, "static_groups under desc_act reorders columns, and is not read: quantize without desc_act");
    }
    const Scheme scheme = Scheme::of(quantization, {});
    format_ = scheme.format(quantization);
    head_ = quantization.boolean_or("lm_head", false);
    read_exceptions(quantization, method == "auto-round" ? "extra_config" : "dynamic", scheme);
    if (method != "awq" || !quantization.has("modules_to_not_convert")) return;
    for (const auto& part : quantization.value().at("modules_to_not_convert")) {
      if (!part.is_string()) refuse(quantization, "modules_to_not_convert is no list of names");
      floats_.push_back(part.get<std::string>());
    }
  }

  const char* name() const override { return "gptq"; }

  std::optional<QuantizedFormat> format_of(const std::string& weight, Role role) const override {
    if (role == Role::kEmbedding) return std::nullopt;
    const std::string module = module_of(weight);
    const auto is_part = [&](const std::string& part) { return module.find(part) != std::string::npos; };
    if (std::any_of(floats_.begin(), floats_.end(), is_part)) return std::nullopt;
    for (const Exception& exception : exceptions_) {
      if (exception.modules->Match(module, 0, module.size(), re2::RE2::ANCHOR_START, nullptr, 0)) {
        return exception.format;
      }
    }
    // What is not in a numbered block stays in floats, but for a head that is named.
    static const re2::RE2 in_a_block("\\.[0-9]+\\.");
    const bool packed = re2::RE2::PartialMatch(module, in_a_block) || (head_ && module == "lm_head");
    return packed ? format_ : std::nullopt;
  }

  std::vector<std::string> tensors_of(const io::WeightsFolder& folder, const std::string& weight) const override {
    const std::string module = module_of(weight);
    std::vector<std::string> found;
    if (!weight.ends_with(".weight") || folder.find(module + ".qweight") == nullptr) return found;
    for (const char* part : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
      if (folder.find(module + part) != nullptr) found.push_back(module + part);
    }
    return found;
  }

  PackedWeight read(const io::WeightsFolder& folder, const std::string& weight, Role role, int64_t rows,
                    int64_t columns) const override {
    const Stored stored{folder, module_of(weight), packing_ == Packing::kAwq ? "AWQ" : "GPTQ"};
    const auto format = format_of(weight, role);
    if (!format) stored.refuse("it is packed, and config.json's quantization_config has its module in floats");
    const bool int8 = format->kind == CodeKind::kInt8;
    const int bits = format->bits;
    if (bits != 4 && packing_ == Packing::kAwq) stored.refuse(fmt::format("AWQ in {} bits is not read", bits));
    const int64_t group = format->has_groups() ? format->group() : columns;
    const int64_t groups = kernels::rounded_up_quotient(columns, group);
    const auto words = [bits](int64_t codes) { return kernels::words_of_codes(bits, codes); };
    require_order(stored, columns, group);

    const at::Tensor codes = packing_ == Packing::kAwq
                                 ? along_columns(stored.wanted(".qweight", {at::kInt}, {columns, words(rows)}), rows)
                                 : turned(stored.wanted(".qweight", {at::kInt}, {words(columns), rows}));
    at::Tensor scales = turned(stored.wanted(".scales", {at::kHalf, at::kBFloat16, at::kFloat}, {groups, rows}));
    if (io::first_nonfinite(scales)) stored.refuse(".scales holds NaN or infinity");
    const at::Tensor zeros = turned(raw_zeros(stored.wanted(".qzeros", {at::kInt}, {groups, words(rows)}), bits, rows));
    if (!format->has_zeros) require_middle(stored, zeros, bits, rows);

    kernels::QuantizedMatrix matrix{*format, rows, columns, {}};
    if (int8) {
      matrix.parts = {codes_of_words(codes, columns), format->has_groups() ? scales : scales.view({rows})};
    } else {
      matrix.parts = {codes, scales};
      if (format->has_zeros) matrix.parts.push_back(zeros);
    }
    return PackedWeight(std::move(matrix));
  }

 private:
  // The tensors of one module.
  struct Stored {
    const io::WeightsFolder& folder;
    std::string module;
    const char* layout;

    [[noreturn]] void refuse(const std::string& what) const {
      throw WeightsError(
          fmt::format("{}: {} of {}: {}", folder.file_of(module + ".qweight").string(), module, layout, what));
    }
    at::Tensor wanted(const char* part, at::ArrayRef<at::ScalarType> dtypes, at::IntArrayRef shape) const {
      if (folder.find(module + part) == nullptr) refuse(fmt::format("{} is missing", part));
      at::Tensor tensor = folder.read(module + part);
      if (std::find(dtypes.begin(), dtypes.end(), tensor.scalar_type()) == dtypes.end() || tensor.sizes() != shape) {
        refuse(fmt::format("{} is {} [{}], wanted {} [{}]", part, c10::toString(tensor.scalar_type()),
                           fmt::join(tensor.sizes(), ","), c10::toString(dtypes[0]), fmt::join(shape, ",")));
      }
      return tensor;
    }
  };

  static std::string module_of(const std::string& weight) { return weight.substr(0, weight.rfind('.')); }
  static at::Tensor turned(const at::Tensor& stored) { return stored.t().contiguous(); }

  void read_packing(const io::JsonFile& quantization, const std::string& method) {
    static const std::map<std::string, std::map<std::string, Packing>> kPackings = {
        {"gptq", {{"gptq", Packing::kGptqLessOne}, {"gptq_v2", Packing::kGptq}}},
        {"awq", {{"gemm", Packing::kAwq}}},
        {"auto-round",
         {{"auto_round:auto_gptq", Packing::kGptqLessOne},
          {"auto_round", Packing::kGptq},
          {"auto_round:gptqmodel", Packing::kGptq},
          {"auto_round:auto_awq", Packing::kAwq}}}};
    const auto& known = kPackings.at(method);
    const char* key = method == "gptq" ? "checkpoint_format" : method == "awq" ? "version" : "packing_format";
    std::string packing = quantization.string_or(key, method == "gptq" ? "gptq" : method == "awq" ? "gemm" : "");
    if (method == "awq") std::transform(packing.begin(), packing.end(), packing.begin(), ::tolower);
    const auto found = known.find(packing);
    if (found == known.end()) {
      std::vector<std::string> names;
      for (const auto& [name, value] : known) names.push_back(name);
      refuse(quantization, fmt::format("{} \"{}\" is not read: wanted {}", key, packing, fmt::join(names, ", ")));
    }
    packing_ = found->second;
    if (quantization.string_or("data_type", "int") != "int") refuse(quantization, "data_type is not int");
    if (quantization.integer_or("act_bits", 16, 1, 32) < 16) {
      refuse(quantization, "act_bits: activations in fewer than 16 bits are not computed");
    }
  }

  // GPTQ: {"-:EXPRESSION": {}, "+:EXPRESSION": {keys}}, auto-round: {"NAME or EXPRESSION": {keys}}; the first counts.
  void read_exceptions(const io::JsonFile& quantization, const char* key, const Scheme& scheme) {
    if (!quantization.has(key)) return;
    const io::JsonFile listed = quantization.child(key);
    for (const auto& [name, keys] : listed.value().items()) {
      const bool plain = name.starts_with("-:");
      const std::string text = plain || name.starts_with("+:") ? name.substr(2) : name;
      auto expression = std::make_shared<const re2::RE2>(text, re2::RE2::Quiet);
      if (!expression->ok()) refuse(listed, fmt::format("\"{}\": {}", text, expression->error()));
      const io::JsonFile own = listed.child(name);
      exceptions_.push_back({std::move(expression), plain ? std::nullopt : Scheme::of(own, scheme).format(own)});
    }
  }

  static void require_order(const Stored& stored, int64_t columns, int64_t group) {
    if (stored.folder.find(stored.module + ".g_idx") == nullptr) return;
    const at::Tensor groups = stored.wanted(".g_idx", {at::kInt}, {columns});
    const auto* of = groups.const_data_ptr<int32_t>();
    for (int64_t column = 0; column < columns; ++column) {
      if (of[column] == column / group) continue;
      stored.refuse(
          fmt::format(".g_idx has column {} in group {}, wanted {}: groups of reordered columns are not read; quantize "
                      "without activation order by group (desc_act = false)",
                      column, of[column], column / group));
    }
  }

  // As they count, in the order of the rows. GPTQ's are each one more, without a carry into its neighbour.
  at::Tensor raw_zeros(const at::Tensor& stored, int bits, int64_t rows) const {
    if (packing_ == Packing::kGptq) return stored;
    const auto* from = reinterpret_cast<const uint32_t*>(stored.const_data_ptr<int32_t>());
    at::Tensor raw = at::zeros_like(stored);
    auto* words = reinterpret_cast<uint32_t*>(raw.mutable_data_ptr<int32_t>());
    if (packing_ == Packing::kAwq) {
      std::transform(from, from + stored.numel(), words, in_order);
      return raw;
    }
    for (int64_t group = 0; group < stored.size(0); ++group, from += stored.size(1), words += stored.size(1)) {
      for (int64_t row = 0; row < rows; ++row) {
        const uint32_t one_more = kernels::code_in_words(from, 1, bits, row) + 1;
        kernels::put_in_words(words, 1, bits, row, one_more & ((1U << bits) - 1));
      }
    }
    return raw;
  }

  static uint32_t in_order(uint32_t word) {
    uint32_t ordered = 0;
    for (size_t i = 0; i < kRowOfBits.size(); ++i) ordered |= (word >> 4 * i & 15U) << 4 * kRowOfBits[i];
    return ordered;
  }

  // AWQ's codes [columns, words of rows] as words of columns [rows, words].
  static at::Tensor along_columns(const at::Tensor& stored, int64_t rows) {
    const int64_t columns = stored.size(0), row_words = stored.size(1);
    const int64_t column_words = kernels::rounded_up_quotient(columns, kernels::kWordCodes);
    at::Tensor packed = at::zeros({rows, column_words}, at::kInt);
    const auto* from = reinterpret_cast<const uint32_t*>(stored.const_data_ptr<int32_t>());
    auto* to = reinterpret_cast<uint32_t*>(packed.mutable_data_ptr<int32_t>());
    for (int64_t column = 0; column < columns; ++column) {
      for (int64_t word = 0; word < row_words; ++word) {
        const uint32_t codes = in_order(from[column * row_words + word]);
        for (int64_t i = 0; i < std::min(kernels::kWordCodes, rows - word * kernels::kWordCodes); ++i) {
          to[(word * kernels::kWordCodes + i) * column_words + column / kernels::kWordCodes] |=
              (codes >> 4 * i & 15U) << 4 * (column % kernels::kWordCodes);
        }
      }
    }
    return packed;
  }

  static void require_middle(const Stored& stored, const at::Tensor& zeros, int bits, int64_t rows) {
    const int64_t groups = zeros.size(1);
    const auto* words = reinterpret_cast<const uint32_t*>(zeros.const_data_ptr<int32_t>());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t group = 0; group < groups; ++group) {
        const uint32_t zero = kernels::code_in_words(words + group, groups, bits, row);
        if (zero == 1U << (bits - 1)) continue;
        stored.refuse(fmt::format(".qzeros: in row {} code {} stands for 0, and config.json says sym, which wants {}",
                                  row, zero, 1U << (bits - 1)));
      }
    }
  }

  std::optional<QuantizedFormat> format_;
  bool head_ = false;
  Packing packing_ = Packing::kGptqLessOne;
  std::vector<std::string> floats_;  // parts of names
  std::vector<Exception> exceptions_;
};

}  // namespace

std::shared_ptr<const FolderLayout> gptq_layout(const io::JsonFile& quantization) {
  return std::make_shared<Gptq>(quantization);
}

}  // namespace limbeck::quantization
