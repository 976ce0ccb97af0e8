// Resolves the Precision of every module of one model (teacher, student, …) from the recipe.
// Base dtype and device first, then the pattern rules in order, the last match winning. A rule that matches no module
// is an error: a typo there would silently train in the wrong dtype.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "modules/precision/precision.h"

namespace limbeck::precision {

struct Rule {
  std::string
      pattern;  // of module paths; * stands for one path segment or a part of one, ** for any number of segments
  at::ScalarType dtype;
  std::string source;
};

// "student.layers.*.mlp.* float16" -> Rule; throws UsageError naming the source.
Rule parse_rule(const std::string& text, const std::string& source);
bool matches(const std::string& pattern, const std::string& path);

// Weights of the linear modules of attention and MLP in few bits; a rule that names a module keeps it in its dtype.
struct Quantization {
  kernels::QuantizedFormat format;
  std::string source;
};

class PrecisionPolicy {
 public:
  PrecisionPolicy(at::ScalarType dtype, c10::Device device, std::string source, std::vector<Rule> rules = {},
                  std::optional<Quantization> quantization = std::nullopt);

  // `host`: what to start from instead of the model's dtype, for a module that belongs to another one. Beside a
  // quantized host it is stored and computed in float32 and speaks the host's activation dtype at its doors.
  Precision resolve(const std::string& path, Role role, const Precision* host = nullptr) const;
  // Dtype of the activations that flow between modules: what each of them accepts and returns.
  at::ScalarType stream_dtype() const { return dtype_; }
  c10::Device device() const { return device_; }
  const std::optional<Quantization>& quantization() const { return quantization_; }
  // Throws for the first rule about `root` that matched none of the paths resolved so far.
  void require_all_rules_used(const std::string& root) const;

 private:
  at::ScalarType dtype_;
  c10::Device device_;
  std::string source_;
  std::vector<Rule> rules_;
  std::optional<Quantization> quantization_;
  mutable std::vector<bool> used_;
  mutable std::vector<std::string> resolved_paths_;
};

}  // namespace limbeck::precision
