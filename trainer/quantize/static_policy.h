// A format for each module by what it declares to be for (its role), whatever it is called: experts in int4, attention
// and MLP in int8, everything else in floats; each of these can be said otherwise.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "trainer/quantize/format_table.h"

namespace limbeck::quantize {

class StaticQuantizationPolicy {
 public:
  // `expert`: what experts are stored in.
  explicit StaticQuantizationPolicy(const std::string& expert = "int4");
  // "mlp int4-g32": of all modules of this role; UsageError, which begins with `source`, for an unknown role or format,
  // and for a role whose weights cannot be packed.
  void set(const std::string& tag, const std::string& source);

  // Every format that it gives.
  std::vector<StoredFormat> formats() const;
  // UsageError where a tag that was set is that of no module.
  Mix mix(const FormatTable& table) const;

 private:
  std::map<precision::Role, std::string> format_of_;
  std::map<precision::Role, std::string> said_;  // by whom
};

}  // namespace limbeck::quantize
