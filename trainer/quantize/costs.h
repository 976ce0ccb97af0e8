// What each module costs in each format, in what a budget counts: bytes of the folder, or nanoseconds of a forward, as
// `limbeck profile` measured them.
#pragma once
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "trainer/quantize/budget.h"
#include "trainer/quantize/format_table.h"

namespace limbeck::quantize {

class Costs {
 public:
  explicit Costs(const FormatTable& table);  // bytes
  // Of the profile.json of the same model, whose rows have what is not packed in `floats`. InputDataError for a file
  // that is none, UsageError for a module that it says no time of.
  Costs(const FormatTable& table, const std::filesystem::path& profile, at::ScalarType floats);

  bool counts(const Budget& budget) const { return budget.is_time() == times_; }
  // Of a module by its place; none: it cannot be stored so, or nobody measured it.
  std::optional<int64_t> of(size_t module, size_t format) const { return modules_.at(module).at(format); }
  int64_t rest() const { return rest_; }  // of what is no candidate
  // "1234 bytes", "2.345 ms"
  std::string said(int64_t cost) const;

 private:
  bool times_ = false;
  std::vector<std::vector<std::optional<int64_t>>> modules_;
  int64_t rest_ = 0;
};

}  // namespace limbeck::quantize
