// What one rank gives to a save: the pieces of tensors that it holds, and what all ranks say alike about the step.
// Each element of a logical tensor is given by exactly one rank, at most one piece of a tensor by a rank.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace limbeck::checkpoint {

struct Piece {
  std::string name;
  std::vector<int64_t> shape;  // of the whole logical tensor
  int64_t begin = 0;           // its first element in the whole, row-major
  at::Tensor data;             // contiguous, elements [begin, begin + numel); its own shape does not matter
};

inline Piece whole_tensor(std::string name, const at::Tensor& data) {
  return {std::move(name), data.sizes().vec(), 0, data};
}

inline constexpr const char* kStepPrefix = "step";
inline constexpr const char* kDivergedPrefix = "diverged";

struct SaveRequest {
  int64_t step = 0;
  std::string run_id;  // letters, digits, . _ -
  std::string config_digest;
  std::vector<Piece> model, optimizer;
  nlohmann::json state;              // of rank 0: an object; JSON has no NaN, so a non-finite number becomes null
  std::string prefix = kStepPrefix;  // "diverged" is saved aside: never `latest`, never resumed from, never retired
};

struct SaveReport {
  std::filesystem::path path;
  uint64_t bytes = 0;                                                                  // of all ranks
  double stage_seconds = 0, write_seconds = 0, fsync_seconds = 0, commit_seconds = 0;  // of this rank
  std::vector<std::string> warnings;  // the save is committed; what failed after that (rank 0)
};

}  // namespace limbeck::checkpoint
