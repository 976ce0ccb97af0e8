// Resolves the Precision of every module of one model (teacher, student, …) from the recipe.
// Base dtype, device and packing first, then the pattern rules in order, the last match winning. A rule that matches no
// module is an error: a typo there would silently train in the wrong dtype.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "modules/precision/precision.h"

namespace limbeck::precision {

using Storage = std::variant<at::ScalarType, kernels::QuantizedFormat>;

struct Rule {
  // Of module paths; * stands for one path segment or a part of one, ** for any number of segments.
  std::string pattern;
  // A dtype is for every module that matches; a format for those whose weight can be packed, in the base dtype.
  Storage storage;
  std::string source;
};

// "student.layers.*.mlp.* float16", "student.layers.0.** int8" -> Rule; throws UsageError naming the source.
Rule parse_rule(const std::string& text, const std::string& source);
bool matches(const std::string& pattern, const std::string& path);
// UsageError for a rule whose first part is none of these: no module would ever be asked for it.
void require_roots(const std::vector<Rule>& rules, const std::vector<std::string>& roots);

// Whether modules of this role can have their weights in few bits: linear ones of attention, MLP and BK-Core, experts,
// heads, embeddings.
bool packable(Role role);
// And in this format: one that quantizes the inputs of a product too is for linear modules of attention and MLP alone.
bool packable_in(Role role, kernels::QuantizedFormat format);
// Those that are packed where a format is asked for the whole model: heads and embeddings stay floats unless a rule
// says otherwise.
bool packed_by_default(Role role);

// Which weights are packed before rules are asked, by the module's path below the model's root; empty: none.
struct Packing {
  std::function<std::optional<kernels::QuantizedFormat>(const std::string& path, Role role)> format_of = {};
  std::string source = {};
};
// Every one that is packed by default in this format.
Packing pack_all(kernels::QuantizedFormat format, std::string source);

class PrecisionPolicy {
 public:
  PrecisionPolicy(at::ScalarType dtype, c10::Device device, std::string source, std::vector<Rule> rules = {},
                  Packing packing = {});

  // The same with rules that come after its own.
  PrecisionPolicy with(const std::vector<Rule>& more) const;

  // `host`: what to start from instead of the model's dtype, for a module that belongs to another one. Beside a
  // quantized host it is stored and computed in float32 and speaks the host's activation dtype at its doors.
  Precision resolve(const std::string& path, Role role, const Precision* host = nullptr) const;
  // Dtype of the activations that flow between modules: what each of them accepts and returns.
  at::ScalarType stream_dtype() const { return dtype_; }
  c10::Device device() const { return device_; }
  const std::string& source() const { return source_; }  // of dtype and device
  // Throws for the first rule about `root` that was for none of the paths resolved so far.
  void require_all_rules_used(const std::string& root) const;

 private:
  at::ScalarType dtype_;
  c10::Device device_;
  std::string source_;
  std::vector<Rule> rules_;
  Packing packing_;
  mutable std::vector<bool> used_;
  mutable std::vector<bool> unpackable_;  // rules of a format that met only modules which have none
  mutable std::vector<std::string> resolved_paths_;
};

}  // namespace limbeck::precision
