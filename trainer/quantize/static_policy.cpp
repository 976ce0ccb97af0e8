#include "trainer/quantize/static_policy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "modules/errors.h"

namespace limbeck::quantize {

namespace {

using precision::Role;

constexpr Role kRoles[] = {Role::kEmbedding, Role::kNorm,   Role::kAttention, Role::kMixer, Role::kBkCore,
                           Role::kMlp,       Role::kRouter, Role::kExpert,    Role::kHead};

const Role* role_named(const std::string& name) {
  const auto* const found =
      std::find_if(std::begin(kRoles), std::end(kRoles), [&](Role role) { return precision::role_name(role) == name; });
  return found == std::end(kRoles) ? nullptr : found;
}

}  // namespace

StaticQuantizationPolicy::StaticQuantizationPolicy(const std::string& expert) {
  for (const Role role : kRoles) format_of_[role] = kFloatFormat;
  format_of_[Role::kExpert] = expert;
  format_of_[Role::kAttention] = format_of_[Role::kBkCore] = format_of_[Role::kMlp] = "int8";
}

void StaticQuantizationPolicy::set(const std::string& tag, const std::string& source) {
  std::istringstream words(tag);
  std::string name, format, extra;
  const bool two = (words >> name >> format) && !(words >> extra);
  const Role* role = two ? role_named(name) : nullptr;
  if (role == nullptr || (format != kFloatFormat && !kernels::find_format(format))) {
    std::vector<std::string> roles;
    for (const Role one : kRoles) roles.emplace_back(precision::role_name(one));
    throw UsageError(
        fmt::format("{}=\"{}\": wanted ROLE FORMAT, such as \"mlp int4-g32\"; roles are {}; formats {}, {}", source,
                    tag, fmt::join(roles, ", "), kFloatFormat, fmt::join(kernels::format_names(), ", ")));
  }
  if (format != kFloatFormat && !precision::packable(*role)) {
    throw UsageError(
        fmt::format("{}=\"{}\": weights of role {} cannot be packed: they stay {}", source, tag, name, kFloatFormat));
  }
  format_of_[*role] = format;
  said_[*role] = fmt::format("{}=\"{}\"", source, tag);
}

std::vector<StoredFormat> StaticQuantizationPolicy::formats() const {
  std::set<std::string> names;
  for (const auto& [role, format] : format_of_) {
    if (precision::packable(role)) names.insert(format);
  }
  return parse_formats(fmt::format("{}", fmt::join(names, ",")), "--tag");
}

Mix StaticQuantizationPolicy::mix(const FormatTable& table) const {
  Mix mix;
  std::set<Role> met;
  for (const Candidate& module : table.modules()) {
    mix[module.path] = format_of_.at(module.role);
    met.insert(module.role);
  }
  for (const auto& [role, source] : said_) {
    if (met.contains(role) || !precision::packable(role)) continue;
    throw UsageError(fmt::format("{} is for no module: the model has none of role {} that could be packed", source,
                                 precision::role_name(role)));
  }
  return mix;
}

}  // namespace limbeck::quantize
