#include "modules/gguf/import_gguf.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "modules/errors.h"
#include "modules/gguf/llama_cpp_config.h"
#include "modules/gguf/rebuilt_tokenizer.h"
#include "modules/io/atomic_file.h"
#include "modules/io/finite_check.h"
#include "modules/io/tensor_name.h"
#include "modules/precision/casts.h"
#include "modules/quantization/gguf_blocks.h"
#include "modules/quantization/gguf_values.h"

namespace limbeck::gguf {
namespace {

using io::GgufType;
using models::WeightBinding;

constexpr int64_t kPieceValues = int64_t{1} << 20;  // that are made of blocks at a time

std::filesystem::path named_folder(const std::filesystem::path& folder) {
  return folder.has_filename() ? folder : folder.parent_path();  // "out/" is "out"
}

bool is_float(GgufType type) { return io::traits_of(type).values == 1; }

// Rows of the file, each where ours is.
at::Tensor in_our_order(const at::Tensor& values, const std::vector<int64_t>& order, int64_t dim) {
  std::vector<int64_t> inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  const at::Tensor index = at::from_blob(inverse.data(), {static_cast<int64_t>(inverse.size())}, at::kLong);
  return values.index_select(dim, index);
}

at::Tensor narrowed(const at::Tensor& values, at::ScalarType dtype) {
  if (values.scalar_type() == dtype) return values;
  at::Tensor cast = at::empty(values.sizes(), values.options().dtype(dtype));
  precision::cast_into(cast, values);
  return cast;
}

}  // namespace

GgufImport::GgufImport(ImportRequest request)
    : request_(std::move(request)),
      where_(request_.file.string()),
      file_(request_.file),
      scratch_(named_folder(request_.folder)) {
  write_scratch();
  build();
  require_all_tensors();
  choose_codes();
  choose_dtype();
  build();  // in that dtype, with these codes
  tabulate();
}

void GgufImport::write_scratch() {
  FileConfig config = read_file_config(file_);
  warnings_ = std::move(config.warnings);
  const RebuiltTokenizer tokens =
      rebuild_tokenizer(file_, config.config.at("vocab_size").get<int64_t>(), request_.words);
  warnings_.insert(warnings_.end(), tokens.warnings.begin(), tokens.warnings.end());
  has_tokenizer_ = !tokens.tokenizer.is_null();
  const auto put = [this](const char* name, const nlohmann::json& value, int indent) {
    if (!value.is_null()) io::write_atomically(scratch_.path() / name, value.dump(indent) + "\n");
  };
  put("config.json", config.config, 2);
  put("generation_config.json", config.generation, 2);
  put("tokenizer.json", tokens.tokenizer, -1);
  put("tokenizer_config.json", tokens.config, 2);
}

void GgufImport::build() {
  models::ModelRequest request;
  request.folder = scratch_.path();
  request.dtype = dtype_;
  if (!codes_.empty()) {
    request.packing = {[this](const std::string& path, precision::Role) {
                         const bool of_embedding = path == "lm_head" && built_.config.architecture.tied;
                         const auto found = codes_.find(of_embedding ? "embed_tokens" : path);
                         return found == codes_.end() ? std::nullopt : std::optional(found->second);
                       },
                       where_};
  }
  try {
    models::BuiltModel built = models::build_on_meta(request);
    built_ = std::move(built);
  } catch (const WeightsError& error) {
    throw WeightsError(where_ + ": its numbers make no model: " + error.what());
  }
  words_ = std::make_unique<LlamaCppModel>(built_.config.architecture, where_);
}

GgufImport::Part GgufImport::part_of(const WeightBinding& binding) const {
  const WeightPlace place = place_of(built_, *words_, binding);
  const io::StoredGgufTensor* tensor = file_.find(place.tensor);
  const std::string what = fmt::format("{}: tensor {}", where_, io::in_quotes(place.tensor));
  if (tensor == nullptr) {
    throw WeightsError(fmt::format("{} is missing, which a model of {} of {} layers has", what, family(),
                                   built_.config.architecture.layers));
  }
  if (tensor->shape != place.shape) {
    throw WeightsError(fmt::format("{} is [{}], wanted [{}] by the numbers of the file", what,
                                   fmt::join(tensor->shape, ","), fmt::join(place.shape, ",")));
  }
  Part part{tensor};
  part.with_one = place.with_one;
  part.columns = place.shape.back();
  part.rows = tensor->values() / part.columns;
  const io::GgufTypeTraits& traits = io::traits_of(tensor->type);
  part.row_bytes = part.columns / traits.values * traits.bytes;
  if (binding.expert >= 0) {
    part.rows /= place.shape[0];
    part.begin = static_cast<uint64_t>(binding.expert * part.rows * part.row_bytes);
  }
  std::vector<int64_t> order = words_->row_order(place.module, place.shape[0]);
  if (!std::is_sorted(order.begin(), order.end())) part.order = std::move(order);
  return part;
}

void GgufImport::require_all_tensors() const {
  std::set<std::string> needed = {"rope_freqs.weight"};  // part of config.json
  for (const WeightBinding& binding : built_.report.bindings) needed.insert(part_of(binding).tensor->name);
  std::vector<std::string> left;
  for (const io::StoredGgufTensor& tensor : file_.tensors()) {
    if (!needed.contains(tensor.name)) left.push_back(io::in_quotes(tensor.name));
  }
  if (left.empty()) return;
  const size_t all = left.size();
  left.resize(std::min<size_t>(all, 8));
  throw WeightsError(
      fmt::format("{}: {} tensors belong to no weight of a {} model: {}{}: it computes something that is not read",
                  where_, all, family(), fmt::join(left, ", "), all > left.size() ? " and others" : ""));
}

// The format of ours that has the codes of a weight, if folders hold them: of linear modules and of token embeddings.
std::optional<kernels::QuantizedFormat> GgufImport::codes_for(const WeightBinding& binding) const {
  const precision::Role role = binding.owner->role();
  const bool tokens = binding.path == built_.model->path() + ".embed_tokens.weight";
  const bool linear = dynamic_cast<const models::Linear*>(binding.owner) != nullptr;
  if (binding.expert >= 0 || binding.transposed || binding.leaf != "weight" || !precision::packable(role)) return {};
  if (!linear && !tokens) return {};
  const Part part = part_of(binding);
  auto format = quantization::BlockFormat::of(part.tensor->type, part.columns);
  if (!format) return {};
  const int64_t piece = std::max<int64_t>(kPieceValues / part.columns, 1);
  std::vector<uint8_t> blocks(static_cast<size_t>(std::min(piece, part.rows) * part.row_bytes));
  for (int64_t row = 0; row < part.rows; row += piece) {
    const int64_t count = std::min(piece, part.rows - row);
    file_.read(*part.tensor, static_cast<uint64_t>(row * part.row_bytes), blocks.data(),
               static_cast<size_t>(count * part.row_bytes));
    if (!format->take(blocks.data(), count)) break;
  }
  // transformers loads packed embeddings in int8 with a scale for each row, and no others.
  if (tokens && format->format() != kernels::QuantizedFormat::kInt8) return {};
  return format->format();
}

void GgufImport::choose_codes() {
  if (!request_.keep_codes) return;
  for (const WeightBinding& binding : built_.report.bindings) {
    if (const auto format = codes_for(binding)) codes_[place_of(built_, *words_, binding).module] = *format;
  }
  if (codes_.empty() || !request_.dtype || *request_.dtype != at::kBFloat16) return;
  throw UsageError(fmt::format(
      "{}: the scales of its codes are numbers of float16, which bfloat16 does not hold: take --dtype=float16 or "
      "float32, or --codes=floats, which makes {} weights floats",
      where_, codes_.size()));
}

void GgufImport::choose_dtype() {
  if (request_.dtype) {
    dtype_ = *request_.dtype;
    return;
  }
  std::set<GgufType> matrices;
  std::vector<Part> wide;
  for (const WeightBinding& binding : built_.report.bindings) {
    if (codes_.contains(place_of(built_, *words_, binding).module) && binding.leaf == "weight") continue;
    Part part = part_of(binding);
    if (!is_float(part.tensor->type)) return;  // float32 has all values of blocks exactly
    if (part.tensor->type != GgufType::kFloat32) matrices.insert(part.tensor->type);
    if (part.tensor->type == GgufType::kFloat32) wide.push_back(std::move(part));
  }
  if (matrices.size() > 1 || (matrices.empty() && codes_.empty())) return;
  const bool half = matrices.empty() || *matrices.begin() == GgufType::kFloat16;
  if (!half && !codes_.empty()) return;
  const at::ScalarType narrow = half ? at::kHalf : at::kBFloat16;
  if (std::all_of(wide.begin(), wide.end(), [&](const Part& part) { return exact_in(narrow, part); })) dtype_ = narrow;
}

bool GgufImport::exact_in(at::ScalarType dtype, const Part& part) const {
  const int64_t piece = std::max<int64_t>(kPieceValues / part.columns, 1);
  for (int64_t row = 0; row < part.rows; row += piece) {
    const at::Tensor values = rows_of(part, row, std::min(piece, part.rows - row));
    if (!narrowed(narrowed(values, dtype), at::kFloat).equal(values)) return false;
  }
  return true;
}

void GgufImport::tabulate() {
  std::map<std::string, int64_t> packed_bytes;
  if (!codes_.empty()) {
    for (const auto& tensor : models::plan_packed(built_).tensors) packed_bytes[tensor.name] = tensor.bytes;
  }
  std::map<std::pair<std::string, std::string>, ImportedType> rows;
  for (const WeightBinding& binding : built_.report.bindings) {
    const Part part = part_of(binding);
    const auto packed = binding.packed();
    const std::string type = io::traits_of(part.tensor->type).name;
    const std::string becomes = packed ? kernels::format_name(packed->format()) : precision::dtype_name(dtype_);
    ImportedType& row = rows[{type, becomes}];
    row.type = type, row.becomes = becomes;
    if (binding.expert <= 0) {
      ++row.tensors;
      row.values += part.tensor->values();
      row.stored_bytes += static_cast<int64_t>(part.tensor->bytes);
    }
    row.bytes += packed ? packed_bytes.at(binding.name)
                        : part.rows * part.columns * static_cast<int64_t>(c10::elementSize(dtype_));
  }
  for (auto& [key, row] : rows) types_.push_back(std::move(row));
}

at::Tensor GgufImport::rows_of(const Part& part, int64_t row, int64_t count) const {
  const at::Tensor blocks = at::empty({count, part.row_bytes}, at::kByte);
  file_.read(*part.tensor, part.begin + static_cast<uint64_t>(row * part.row_bytes), blocks.mutable_data_ptr(),
             blocks.nbytes());
  at::Tensor values = at::empty({count, part.columns}, at::kFloat);
  const auto* from = blocks.const_data_ptr<uint8_t>();
  auto* out = values.mutable_data_ptr<float>();
  const int64_t in_row = part.columns / io::traits_of(part.tensor->type).values;
  at::parallel_for(0, count, /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    quantization::gguf_values(part.tensor->type, from + begin * part.row_bytes, (end - begin) * in_row,
                              out + begin * part.columns);
  });
  return part.with_one ? values - 1.0 : values;
}

at::Tensor GgufImport::floats(const WeightBinding& binding) const {
  const Part part = part_of(binding);
  at::Tensor all = at::empty({part.rows, part.columns}, at::TensorOptions(dtype_));
  const int64_t piece = std::max<int64_t>(kPieceValues / part.columns, 1);
  for (int64_t row = 0; row < part.rows; row += piece) {
    const int64_t count = std::min(piece, part.rows - row);
    at::Tensor rows = all.narrow(0, row, count);
    precision::cast_into(rows, rows_of(part, row, count));
  }
  if (const auto bad = io::first_nonfinite(all)) {
    throw WeightsError(fmt::format("{}: tensor {} holds NaN or infinity{} (value {} in row order)", where_,
                                   io::in_quotes(part.tensor->name),
                                   dtype_ == at::kHalf ? ", or a number beyond float16" : "", *bad));
  }
  const bool vector = part.tensor->shape.size() == 1;
  if (!part.order.empty()) all = in_our_order(all, part.order, vector ? 1 : 0);
  if (vector) return all.view({part.columns});
  return binding.transposed ? all.t().contiguous() : all;
}

precision::PackedWeight GgufImport::codes(const WeightBinding& binding) const {
  Part part = part_of(binding);
  const at::Tensor blocks = at::empty({part.rows, part.row_bytes}, at::kByte);
  file_.read(*part.tensor, 0, blocks.mutable_data_ptr(), blocks.nbytes());
  if (part.order.empty()) part.order = words_->row_order("", part.rows);
  auto packed = quantization::packed_of_blocks(blocks, binding.packed()->format(), part.columns, part.order);
  if (const auto bad = io::first_nonfinite(packed.part("scales"))) {
    throw WeightsError(
        fmt::format("{}: tensor {} holds NaN or infinity (scale {})", where_, io::in_quotes(part.tensor->name), *bad));
  }
  return packed;
}

void GgufImport::write() const {
  models::SaveOptions options;
  options.packed = !codes_.empty();
  options.source = this;
  models::save_model(built_, request_.folder, options);
}

}  // namespace limbeck::gguf
