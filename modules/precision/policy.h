// Resolves the Precision of every module of one model (teacher, student, …) from the recipe.
// Base dtype and device first, then the pattern rules in order, the last match winning. A rule that matches no module
// is an error: a typo there would silently train in the wrong dtype.
#pragma once
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

class PrecisionPolicy {
 public:
  PrecisionPolicy(at::ScalarType dtype, c10::Device device, std::string source, std::vector<Rule> rules = {});

  // `host`: what to start from instead of the model's dtype, for a module that belongs to another one.
  Precision resolve(const std::string& path, Role role, const Precision* host = nullptr) const;
  // Dtype of the activations that flow between modules: what each of them accepts and returns.
  at::ScalarType stream_dtype() const { return dtype_; }
  c10::Device device() const { return device_; }
  // Throws for the first rule about `root` that matched none of the paths resolved so far.
  void require_all_rules_used(const std::string& root) const;

 private:
  at::ScalarType dtype_;
  c10::Device device_;
  std::string source_;
  std::vector<Rule> rules_;
  mutable std::vector<bool> used_;
  mutable std::vector<std::string> resolved_paths_;
};

}  // namespace limbeck::precision
