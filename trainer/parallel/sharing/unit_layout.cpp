#include "trainer/parallel/sharing/unit_layout.h"

#include <algorithm>
#include <charconv>

#include "kernels/adamw/square_sums_run.h"

namespace limbeck::parallel {
namespace {

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// "student.layers.3.mlp.up_proj.weight" -> "student.layers.3", 3; "student.lm_head.weight" -> "student.lm_head", -1.
std::pair<std::string, int64_t> unit_of(const std::string& name) {
  const size_t first = name.find('.');
  const size_t second = first == std::string::npos ? first : name.find('.', first + 1);
  if (second == std::string::npos) return {name, -1};
  if (name.substr(first + 1, second - first - 1) != "layers") return {name.substr(0, second), -1};
  const size_t third = name.find('.', second + 1);
  const std::string index = name.substr(second + 1, third - second - 1);
  int64_t layer = -1;
  std::from_chars(index.data(), index.data() + index.size(), layer);
  return {name.substr(0, third), layer};
}

}  // namespace

Range UnitLayout::shard(int rank, int shards) const {
  const int64_t each = length / shards;
  return {rank * each, (rank + 1) * each};
}

Range UnitLayout::part(const Member& member, const Range& range) {
  const int64_t begin = std::clamp<int64_t>(range.begin - member.offset, 0, member.count);
  return {begin, std::clamp<int64_t>(range.end - member.offset, begin, member.count)};
}

std::vector<UnitLayout> lay_out(const std::vector<NamedParameter>& parameters, int shards) {
  std::vector<UnitLayout> units;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto [name, layer] = unit_of(parameters[i].name);
    const at::ScalarType dtype = parameters[i].tensor.scalar_type();
    auto unit = std::find_if(units.begin(), units.end(),
                             [&, &wanted = name](const UnitLayout& u) { return u.name == wanted && u.dtype == dtype; });
    if (unit == units.end()) {
      UnitLayout fresh;
      fresh.name = name;
      fresh.layer = layer;
      fresh.dtype = dtype;
      unit = units.insert(units.end(), std::move(fresh));
    }
    const int64_t count = parameters[i].tensor.numel();
    unit->members.push_back({i, unit->length, count});
    unit->length = rounded_up(unit->length + count, kernels::kSquareRun);
  }
  for (UnitLayout& unit : units) unit.length = rounded_up(unit.length, kernels::kSquareRun * shards);
  return units;
}

}  // namespace limbeck::parallel
