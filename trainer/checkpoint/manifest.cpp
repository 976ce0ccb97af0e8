#include "trainer/checkpoint/manifest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <utility>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"

namespace limbeck::checkpoint {
namespace {

using Part = LogicalTensor::Part;

std::string described(const std::vector<int64_t>& shape, io::StoredType dtype) {
  return fmt::format("{} [{}]", io::stored_name(dtype), fmt::join(shape, ","));
}

void check_parts(const LogicalTensor& tensor, const std::vector<FileRecord>& files, const std::string& where) {
  int64_t covered = 0;
  const FileRecord* before = nullptr;
  for (const Part& part : tensor.parts) {
    const FileRecord& file = files[part.file];
    const ChunkRecord& chunk = file.chunks[part.chunk];
    const std::string what = fmt::format("{}: {}: tensor {}", where, file.name, io::in_quotes(tensor.name));
    if (chunk.shape != tensor.shape || chunk.dtype != tensor.dtype) {
      throw WeightsError(fmt::format("{}: is a part of {}, and {} has one of {}", what,
                                     described(chunk.shape, chunk.dtype), files[tensor.parts[0].file].name,
                                     described(tensor.shape, tensor.dtype)));
    }
    if (chunk.begin < covered) {
      throw WeightsError(
          fmt::format("{}: elements {} to {} are in {} as well", what, chunk.begin, covered, before->name));
    }
    if (chunk.begin > covered) {
      throw WeightsError(fmt::format("{}: elements {} to {} are in no file", what, covered, chunk.begin));
    }
    covered += chunk.count;
    before = &file;
  }
  if (covered == tensor.elements) return;
  throw WeightsError(fmt::format("{}: {}: tensor {}: elements {} to {} are in no file", where, before->name,
                                 io::in_quotes(tensor.name), covered, tensor.elements));
}

}  // namespace

uint64_t block_count(uint64_t bytes) { return bytes / kBlockBytes + (bytes % kBlockBytes != 0 ? 1 : 0); }

std::string weights_file_name(Kind kind, int rank) {
  return fmt::format("{}-{:05}.safetensors", kind == Kind::kModel ? "model" : "optim", rank);
}

Kind kind_of_file(const std::string& name) { return name.starts_with("optim") ? Kind::kOptimizer : Kind::kModel; }

std::vector<LogicalTensor> Manifest::tensors(const std::string& where) const {
  std::map<std::pair<Kind, std::string>, LogicalTensor> found;
  for (size_t f = 0; f < files.size(); ++f) {
    for (size_t c = 0; c < files[f].chunks.size(); ++c) {
      const ChunkRecord& chunk = files[f].chunks[c];
      const Kind kind = kind_of_file(files[f].name);
      LogicalTensor& tensor = found[{kind, chunk.name}];
      if (tensor.parts.empty()) {
        tensor = {kind, chunk.name, chunk.shape, chunk.dtype, 1, {}};
        for (const int64_t size : chunk.shape) tensor.elements *= size;
      }
      tensor.parts.push_back({f, c});
    }
  }
  std::vector<LogicalTensor> out;
  for (auto& [key, tensor] : found) {
    const auto extent = [&](const Part& part) {
      const ChunkRecord& chunk = files[part.file].chunks[part.chunk];
      return std::pair(chunk.begin, chunk.count);
    };
    std::stable_sort(tensor.parts.begin(), tensor.parts.end(),
                     [&](const Part& a, const Part& b) { return extent(a) < extent(b); });
    check_parts(tensor, files, where);
    out.push_back(std::move(tensor));
  }
  return out;
}

}  // namespace limbeck::checkpoint
