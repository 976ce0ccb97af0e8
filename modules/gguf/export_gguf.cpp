#include "modules/gguf/export_gguf.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <set>

#include "modules/errors.h"
#include "modules/gguf/weight_place.h"
#include "modules/precision/casts.h"
#include "modules/quantization/gguf_blocks.h"

namespace limbeck::gguf {
namespace {

using io::GgufTensor;
using io::GgufType;
using models::BuiltModel;
using models::WeightBinding;
using precision::Role;

constexpr size_t kMostNamed = 12;  // modules in a message

std::string joined(const std::vector<std::string>& modules) {
  const size_t shown = std::min(modules.size(), kMostNamed);
  const std::vector<std::string> first(modules.begin(), modules.begin() + static_cast<std::ptrdiff_t>(shown));
  const size_t more = modules.size() - shown;
  return fmt::format("{}{}", fmt::join(first, ", "), more == 0 ? "" : fmt::format(" and {} more", more));
}

void refuse_without_twin(const BuiltModel& built, const std::vector<WeightBinding>& bindings) {
  std::vector<std::string> nf4, ragged;
  for (const WeightBinding& binding : bindings) {
    const auto packed = binding.packed();
    if (!packed || binding.expert > 0) continue;
    const auto type = quantization::gguf_type_of(packed->format());
    const std::string& module = binding.owner->path();
    if (!type) nf4.push_back(module);
    if (type && packed->matrix().columns % io::traits_of(*type).values != 0) ragged.push_back(module);
  }
  const std::string where = built.config.folder.string();
  if (!nf4.empty()) {
    throw UsageError(fmt::format(
        "{}: GGUF has no type for the codes of nf4, which {} weights are in: {}: have codes made anew from what these "
        "stand for, --rule='{}.layers.** int8' or int4-sym-g32, or export the float model",
        where, nf4.size(), joined(nf4), built.model->path()));
  }
  if (!ragged.empty()) {
    throw UsageError(fmt::format(
        "{}: GGUF packs 32 columns at a time, and the columns of {} packed weights are no multiple of 32: {}: keep "
        "these in floats, such as --rule='{} float16'",
        where, ragged.size(), joined(ragged), ragged.front()));
  }
}

// llama.cpp adds vectors, and what it looks up by position, to float32 numbers; routers and norms are its float32 too.
bool always_float32(const WeightBinding& binding) {
  return binding.parameter.dim() == 1 || binding.owner->role() == Role::kRouter ||
         binding.path.ends_with("embed_positions.weight");
}

GgufType float_type(const WeightBinding& binding) {
  const at::ScalarType dtype = binding.parameter.scalar_type();
  if (dtype == at::kDouble) {
    throw UsageError(fmt::format("[{}] is in float64, which llama.cpp does not compute in: add --dtype=float32",
                                 binding.owner->path()));
  }
  if (always_float32(binding) || dtype == at::kFloat) return GgufType::kFloat32;
  return dtype == at::kHalf ? GgufType::kFloat16 : GgufType::kBFloat16;
}

bool in_order(const std::vector<int64_t>& rows) { return std::is_sorted(rows.begin(), rows.end()); }

at::Tensor float_values(const WeightBinding& binding, GgufType type, const std::vector<int64_t>& rows, bool add_one) {
  at::Tensor values = precision::move(part_in_file(binding), c10::kCPU);
  if (type == GgufType::kFloat32 && values.scalar_type() != at::kFloat) {
    at::Tensor wide = at::empty(values.sizes(), values.options().dtype(at::kFloat));
    precision::cast_into(wide, values);
    values = wide;
  }
  if (add_one) values = values + 1.0;
  if (!in_order(rows)) {
    const at::Tensor order = at::from_blob(const_cast<int64_t*>(rows.data()), {values.size(0)}, at::kLong);
    values = values.index_select(0, order);
  }
  return values.contiguous();
}

void take_larger(double change, const std::string& name, double& largest, std::string& of) {
  if (change > largest) largest = change, of = name;
}

class FileTensors {
 public:
  // Keeps references until the last tensor is written.
  FileTensors(const BuiltModel& built, ExportReport& report)
      : built_(built),
        bindings_(models::bind_weights(*built.model, *built.config.family)),
        words_(built.config.architecture, built.config.folder.string()),
        report_(report) {
    refuse_without_twin(built, bindings_);
    if (const auto factors = words_.rope_factors()) {
      all_.push_back({"rope_freqs.weight", GgufType::kFloat32, factors->sizes().vec(),
                      [kept = factors->contiguous()] { return kept; }});
    }
    for (const WeightBinding& binding : bindings_) {
      if (binding.expert <= 0) add(binding);
    }
  }

  const LlamaCppModel& words() const { return words_; }
  const std::vector<GgufTensor>& all() const { return all_; }

 private:
  void add(const WeightBinding& binding) {
    const WeightPlace place = place_of(built_, words_, binding);
    if (binding.is_packed()) return add_packed(binding, place);
    std::vector<int64_t> rows = words_.row_order(place.module, place.shape[0]);
    const GgufType type = float_type(binding);
    all_.push_back(
        {place.tensor, type, place.shape, [&binding, type, with_one = place.with_one, rows = std::move(rows)] {
           return float_values(binding, type, rows, with_one);
         }});
  }

  void add_packed(const WeightBinding& binding, const WeightPlace& place) {
    const precision::PackedWeight first = *binding.packed();
    const kernels::QuantizedMatrix& matrix = first.matrix();
    const auto rows = words_.row_order(place.module, matrix.rows);
    const io::GgufType type = *quantization::gguf_type_of(matrix.format);
    if (matrix.format.bits < 4) ++report_.widened;
    if (binding.expert < 0) {
      all_.push_back({place.tensor, type, place.shape,
                      [this, &binding, first, rows] { return blocks_of(first, rows, binding.path); }});
      return;
    }
    const precision::PackedWeight stack = *binding.owner->packed_weight(binding.stack);
    all_.push_back({place.tensor, type, place.shape, [this, &binding, stack, rows] {
                      std::vector<at::Tensor> all;
                      for (int64_t i = 0; i < stack.count(); ++i)
                        all.push_back(blocks_of(stack.member(i), rows,
                                                fmt::format("{}.{}.{}", binding.owner->path(), i, binding.stack)));
                      return at::cat(all);
                    }});
  }

  at::Tensor blocks_of(const precision::PackedWeight& packed, const std::vector<int64_t>& rows,
                       const std::string& path) {
    const auto blocks = quantization::gguf_blocks(packed, rows, path);
    take_larger(blocks.scale_change, path, report_.scale_change, report_.scale_of);
    take_larger(blocks.minimum_change, path, report_.minimum_change, report_.minimum_of);
    return blocks.bytes;
  }

  const BuiltModel& built_;
  std::vector<WeightBinding> bindings_;
  LlamaCppModel words_;
  ExportReport& report_;
  std::vector<GgufTensor> all_;
};

int64_t values_of(const GgufTensor& tensor) {
  int64_t values = 1;
  for (const int64_t size : tensor.shape) values *= size;
  return values;
}

// What most values are stored in, by llama.cpp's numbers: shown to users, and read by nothing else.
uint32_t file_type(const std::vector<GgufTensor>& tensors) {
  std::map<GgufType, int64_t> values;
  for (const GgufTensor& tensor : tensors) values[tensor.type] += values_of(tensor);
  const auto most = std::max_element(values.begin(), values.end(),
                                     [](const auto& one, const auto& other) { return one.second < other.second; });
  static const std::map<GgufType, uint32_t> numbers = {{GgufType::kFloat32, 0}, {GgufType::kFloat16, 1},
                                                       {GgufType::kQ4_0, 2},    {GgufType::kQ4_1, 3},
                                                       {GgufType::kQ8_0, 7},    {GgufType::kBFloat16, 32}};
  return numbers.at(most->first);
}

bool has_tokens(const io::GgufMetadata& vocabulary, std::initializer_list<const char*> wanted) {
  for (const auto& [key, value] : vocabulary) {
    const auto* tokens = std::get_if<std::vector<std::string>>(&value);
    if (key != "tokenizer.ggml.tokens" || tokens == nullptr) continue;
    const std::set<std::string> all(tokens->begin(), tokens->end());
    return std::all_of(wanted.begin(), wanted.end(), [&](const char* token) { return all.count(token) > 0; });
  }
  return true;
}

// The folder's. llama.cpp looks for these tokens in a model that is called Phi-3, and does not load it without them:
// such a one gets no name.
std::optional<std::string> name_of(const std::filesystem::path& folder, const io::GgufMetadata& vocabulary) {
  const std::string name = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  std::string small = name;
  std::transform(small.begin(), small.end(), small.begin(), [](unsigned char c) { return std::tolower(c); });
  const bool phi = small.find("phi-3") != small.npos || small.find("phi3") != small.npos;
  if (phi && !has_tokens(vocabulary, {"</s>", "<unk>", "<s>", "<|endoftext|>"})) return std::nullopt;
  return name;
}

}  // namespace

std::vector<PlannedTensor> plan_gguf(const BuiltModel& built) {
  ExportReport unused;
  const FileTensors tensors(built, unused);
  std::vector<PlannedTensor> plan;
  for (const GgufTensor& tensor : tensors.all())
    plan.push_back({tensor.name, tensor.type, values_of(tensor), io::bytes_of(tensor)});
  return plan;
}

ExportReport export_gguf(const BuiltModel& built, const std::filesystem::path& file,
                         const io::GgufMetadata& vocabulary) {
  constexpr uint32_t kBlocksVersion = 2;  // of the blocks' layout
  ExportReport report;
  const FileTensors tensors(built, report);
  io::GgufMetadata metadata = {{"general.architecture", tensors.words().architecture_name()},
                               {"general.file_type", file_type(tensors.all())},
                               {"general.quantization_version", kBlocksVersion}};
  if (auto name = name_of(built.config.folder, vocabulary)) metadata.emplace_back("general.name", std::move(*name));
  for (const auto& pair : tensors.words().hyperparameters()) metadata.push_back(pair);
  metadata.insert(metadata.end(), vocabulary.begin(), vocabulary.end());
  io::write_gguf(file, metadata, tensors.all());
  return report;
}

}  // namespace limbeck::gguf
