// How parameters are laid out in units and cut among shards: nothing lost, nothing twice, cuts on whole runs.
#include "trainer/parallel/sharing/unit_layout.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include "kernels/adamw/square_sums_run.h"

namespace limbeck::parallel {
namespace {

NamedParameter parameter(const std::string& name, int64_t count, at::ScalarType dtype = at::kFloat) {
  return {name, at::empty({count}, at::TensorOptions().dtype(dtype))};
}

// A model with sizes around whole runs, and one of a single element.
std::vector<NamedParameter> model() {
  const int64_t run = kernels::kSquareRun;
  return {parameter("student.embedding.weight", 5 * run + 1),
          parameter("student.layers.0.attention.weight", 3 * run),
          parameter("student.layers.0.norm.weight", 1),
          parameter("student.layers.1.attention.weight", 7 * run - 1),
          parameter("student.layers.1.norm.weight", run),
          parameter("student.layers.1.norm.bias", 17, at::kDouble),
          parameter("student.layers.10.norm.weight", 2),
          parameter("student.lm_head.weight", 20 * run + 5),
          parameter("projector", 40)};
}

TEST(UnitLayout, HasAUnitForEachPlaceAndDtypeInTheOrderOfTheParameters) {
  const auto parameters = model();
  const auto units = lay_out(parameters, 2);
  std::vector<std::tuple<std::string, int64_t, at::ScalarType, std::vector<size_t>>> found;
  for (const UnitLayout& unit : units) {
    std::vector<size_t> members;
    for (const auto& member : unit.members) members.push_back(member.parameter);
    found.emplace_back(unit.name, unit.layer, unit.dtype, members);
  }
  const decltype(found) wanted = {
      {"student.embedding", -1, at::kFloat, {0}},  {"student.layers.0", 0, at::kFloat, {1, 2}},
      {"student.layers.1", 1, at::kFloat, {3, 4}}, {"student.layers.1", 1, at::kDouble, {5}},
      {"student.layers.10", 10, at::kFloat, {6}},  {"student.lm_head", -1, at::kFloat, {7}},
      {"projector", -1, at::kFloat, {8}}};
  EXPECT_EQ(found, wanted);
}

TEST(UnitLayout, CoversEveryElementOnceAndCutsParametersAtWholeRuns) {
  const auto parameters = model();
  for (const int shards : {1, 2, 3, 4, 8}) {
    std::vector<std::vector<int>> owners(parameters.size());
    for (size_t i = 0; i < parameters.size(); ++i)
      owners[i].assign(static_cast<size_t>(parameters[i].tensor.numel()), 0);
    bool cut = false;
    for (const UnitLayout& unit : lay_out(parameters, shards)) {
      ASSERT_EQ(unit.length % (kernels::kSquareRun * shards), 0);
      int64_t end = 0;
      for (const auto& member : unit.members) {
        ASSERT_GE(member.offset, end) << unit.name << ": members overlap";
        ASSERT_EQ(member.count, parameters[member.parameter].tensor.numel());
        end = member.offset + member.count;
      }
      ASSERT_LE(end, unit.length);
      int64_t next = 0;
      for (int rank = 0; rank < shards; ++rank) {
        const Range range = unit.shard(rank, shards);
        ASSERT_EQ(range.begin, next);
        next = range.end;
        for (const auto& member : unit.members) {
          const Range part = UnitLayout::part(member, range);
          if (part.size() == 0) continue;
          ASSERT_EQ(part.begin % kernels::kSquareRun, 0) << unit.name << " of " << shards;
          if (part.end != member.count) {
            cut = true;
            ASSERT_EQ(part.end % kernels::kSquareRun, 0);
          }
          for (int64_t i = part.begin; i < part.end; ++i) ++owners[member.parameter][static_cast<size_t>(i)];
        }
      }
      ASSERT_EQ(next, unit.length);
    }
    EXPECT_EQ(cut, shards > 1) << "a parameter is larger than a shard";
    for (size_t i = 0; i < parameters.size(); ++i) {
      const std::vector<int> once(owners[i].size(), 1);
      EXPECT_EQ(owners[i], once) << parameters[i].name << " of " << shards;
    }
  }
}

}  // namespace
}  // namespace limbeck::parallel
