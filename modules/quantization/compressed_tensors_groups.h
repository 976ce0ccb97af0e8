// Which modules of a compressed-tensors folder are packed, and how: config_groups and ignore of its config.json.
#pragma once
#include <re2/re2.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/quantized/quantized_matrix.h"
#include "modules/io/json_file.h"
#include "modules/precision/precision.h"

namespace limbeck::quantization {

inline constexpr const char *kInWords = "pack-quantized", *kInBytes = "int-quantized";

// What names modules: a name, "re:" and an expression for its beginning, or a class. Of several that fit a module, the
// name counts most, then the expression.
class CompressedTarget {
 public:
  CompressedTarget(const io::JsonFile& where, std::string text);
  // 0 where it does not fit. All modules whose weights we pack are of the classes Linear and Embedding.
  int fits(const std::string& module, precision::Role role) const;

 private:
  std::string text_;
  std::shared_ptr<const re2::RE2> expression_;
};

struct CompressedGroup {
  std::vector<CompressedTarget> targets;
  kernels::QuantizedFormat format;
  bool in_words;  // pack-quantized
};

class CompressedGroups {
 public:
  CompressedGroups() = default;  // of a folder that is to be written
  explicit CompressedGroups(const io::JsonFile& quantization);
  // Of a weight by the checkpoint's name, whose module has this role; null: it is stored plainly.
  const CompressedGroup* find(const std::string& weight, precision::Role role) const;

 private:
  std::vector<CompressedTarget> ignored_;
  std::vector<CompressedGroup> groups_;
};

}  // namespace limbeck::quantization
