#include "trainer/checkpoint/checkpoint.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"
#include "modules/io/json_text.h"
#include "modules/io/tensor_dtype.h"
#include "modules/io/tensor_name.h"
#include "modules/nearest_name.h"
#include "trainer/checkpoint/checked_blocks.h"

namespace limbeck::checkpoint {

namespace fs = std::filesystem;

Checkpoint Checkpoint::open(const fs::path& path) { return Checkpoint(path); }

Checkpoint::Checkpoint(const fs::path& path) : path_(path), manifest_(read_manifest(path)) {
  tensors_ = manifest_.tensors((path_ / kManifestName).string());
  for (size_t i = 0; i < tensors_.size(); ++i) by_name_[{tensors_[i].kind, tensors_[i].name}] = i;
  for (const FileRecord& record : manifest_.files) files_.push_back(open_recorded(path_, record));
  for (size_t i = 0; i < files_.size(); ++i) {
    const std::string head = read_head(files_[i], manifest_.files[i]);
    if (manifest_.files[i].name == kStateName) state_ = io::parse_json(head, files_[i].path().string());
  }
}

const LogicalTensor& Checkpoint::find(Kind kind, const std::string& name) const {
  const auto found = by_name_.find({kind, name});
  if (found != by_name_.end()) return tensors_[found->second];
  std::vector<std::string> names;
  for (const LogicalTensor& tensor : tensors_) {
    if (tensor.kind == kind) names.push_back(tensor.name);
  }
  const auto nearest = nearest_names(name, names, 1);
  throw WeightsError(fmt::format("{}: {} tensor {} is not in this checkpoint{}", path_.string(),
                                 kind == Kind::kModel ? "model" : "optimizer", io::in_quotes(name),
                                 nearest.empty() ? "" : "; the nearest is " + io::in_quotes(nearest.front())));
}

void Checkpoint::read(Kind kind, const std::string& name, int64_t begin, at::Tensor& destination) const {
  const LogicalTensor& tensor = find(kind, name);
  const std::string where = fmt::format("{}: tensor {}: ", path_.string(), io::in_quotes(name));
  if (!destination.is_cpu() || !destination.is_contiguous()) {
    throw ContractError(where + "wanted contiguous memory on cpu to read into");
  }
  if (destination.scalar_type() != io::scalar_type(tensor.dtype)) {
    throw WeightsError(fmt::format("{}was saved as {}, wanted {}", where, io::stored_name(tensor.dtype),
                                   c10::toString(destination.scalar_type())));
  }
  const int64_t count = destination.numel();
  if (begin < 0 || begin > tensor.elements || count > tensor.elements - begin) {
    throw WeightsError(fmt::format("{}has {} elements, wanted {} from {} on", where, tensor.elements, count, begin));
  }
  if (count == 0) return;
  auto* to = static_cast<char*>(destination.mutable_data_ptr());
  const uint64_t size = io::stored_bytes(tensor.dtype);
  for (const LogicalTensor::Part& part : tensor.parts) {
    const ChunkRecord& chunk = manifest_.files[part.file].chunks[part.chunk];
    const int64_t first = std::max(begin, chunk.begin), last = std::min(begin + count, chunk.begin + chunk.count);
    if (first >= last) continue;
    read_chunk(files_[part.file], chunk, static_cast<uint64_t>(first - chunk.begin) * size,
               static_cast<uint64_t>(last - first) * size, to + static_cast<uint64_t>(first - begin) * size);
  }
}

at::Tensor Checkpoint::read(Kind kind, const std::string& name) const {
  const LogicalTensor& tensor = find(kind, name);
  at::Tensor out = at::empty(tensor.shape, at::TensorOptions(at::kCPU).dtype(io::scalar_type(tensor.dtype)));
  read(kind, name, 0, out);
  return out;
}

}  // namespace limbeck::checkpoint
