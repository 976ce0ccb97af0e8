// How parameters are laid end to end in units (a layer, an embedding, a projector) and cut among shards. Pure
// arithmetic, the same on every rank. A cut falls on whole runs of a parameter's elements, so that sums of squares are
// those of the uncut parameter.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace limbeck::parallel {

struct NamedParameter {
  std::string name;  // "student.layers.3.mlp.up_proj.weight"
  at::Tensor tensor;
};

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

struct UnitLayout {
  struct Member {
    size_t parameter;  // index in the list that was laid out
    int64_t offset, count;
  };
  std::string name;    // "student.layers.3"
  int64_t layer = -1;  // 3; -1 outside of a model's layers
  at::ScalarType dtype = at::kFloat;
  std::vector<Member> members;
  int64_t length = 0;  // with padding; a multiple of the number of shards

  Range shard(int rank, int shards) const;
  // The part of a member that lies in a range, counted from the member's first element; empty where they do not meet.
  static Range part(const Member& member, const Range& range);
};

// One unit for each place and dtype, in the order of their first parameters.
std::vector<UnitLayout> lay_out(const std::vector<NamedParameter>& parameters, int shards);

}  // namespace limbeck::parallel
