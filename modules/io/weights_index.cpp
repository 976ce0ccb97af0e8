#include "modules/io/weights_index.h"

#include <string_view>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"

namespace limbeck::io {
namespace {

constexpr size_t kMaxFileName = 255;

std::string file_name_fault(std::string_view name) {
  if (name.find('/') != name.npos || name.find('\\') != name.npos) return "is a path, wanted a bare file name";
  if (name == "." || name == "..") return "is a folder, wanted a file name";
  if (name.size() > kMaxFileName) return "has more than 255 bytes";
  const std::string fault = name_fault(name);
  if (!fault.empty()) return fault;
  constexpr std::string_view kSuffix = ".safetensors";
  if (name.size() <= kSuffix.size() || name.substr(name.size() - kSuffix.size()) != kSuffix) {
    return "does not end in .safetensors";
  }
  return {};
}

}  // namespace

WeightsIndex parse_weights_index(const JsonFile& file) {
  WeightsIndex index;
  const JsonFile map = file.child("weight_map");
  for (const auto& [name, shard] : map.value().items()) {
    std::string fault = name_fault(name);
    if (!fault.empty()) throw WeightsError(map.where() + ": tensor name " + in_quotes(name) + " " + fault);
    if (!shard.is_string()) {
      throw WeightsError(map.where() + ": tensor " + in_quotes(name) + " is " + shard.type_name() +
                         ", wanted a file name");
    }
    const auto& shard_name = shard.get_ref<const std::string&>();
    fault = file_name_fault(shard_name);
    if (!fault.empty()) {
      throw WeightsError(map.where() + ": tensor " + in_quotes(name) + ": shard " + in_quotes(shard_name) + " " +
                         fault);
    }
    index.shard_of.emplace(name, shard_name);
  }
  if (index.shard_of.empty()) throw WeightsError(map.where() + ": names no tensor");
  if (file.has("metadata")) {
    const JsonFile metadata = file.child("metadata");
    if (metadata.has("total_size")) index.total_bytes = metadata.number("total_size", 0, 1e18);
  }
  return index;
}

}  // namespace limbeck::io
