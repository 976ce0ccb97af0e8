// model.safetensors.index.json: which shard holds which tensor. Shards are bare file names, so that an index cannot
// lead out of its folder. Needs no torch.
//
// metadata.total_size is kept as information only: the index and the shards are held against each other tensor by
// tensor, which says more, and published indexes exist whose total counts tied weights twice or is a float.
#pragma once
#include <map>
#include <optional>
#include <string>

#include "modules/io/json_file.h"

namespace limbeck::io {

struct WeightsIndex {
  std::map<std::string, std::string> shard_of;  // tensor -> file name
  std::optional<double> total_bytes;
};

WeightsIndex parse_weights_index(const JsonFile& file);

}  // namespace limbeck::io
