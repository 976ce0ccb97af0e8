#include "trainer/parallel/launch/slurm_lists.h"

#include <gtest/gtest.h>

#include "message_of.h"

namespace limbeck::parallel {
namespace {

TEST(SlurmLists, HostsAreWrittenOut) {
  using Names = std::vector<std::string>;
  const std::pair<std::string, Names> table[] = {
      {"node1", {"node1"}},
      {"node[01-03,7],b2", {"node01", "node02", "node03", "node7", "b2"}},
      {"n[8-11]", {"n8", "n9", "n10", "n11"}},
      {"n[008-010]", {"n008", "n009", "n010"}},
      {"n[098-101]-ib", {"n098-ib", "n099-ib", "n100-ib", "n101-ib"}},
      {"rack[1-2]n[01,03]", {"rack1n01", "rack1n03", "rack2n01", "rack2n03"}},
      {"a[1],b-[2-3].x,c", {"a1", "b-2.x", "b-3.x", "c"}},
  };
  for (const auto& [text, hosts] : table) EXPECT_EQ(expanded_hosts("L", text), hosts) << text;
}

TEST(SlurmLists, MalformedHostsAreRefused) {
  const std::pair<std::string, std::string> table[] = {
      {"n[1-3", "brackets in pairs"},         {"n1-3]", "brackets in pairs"},
      {"n[[1]]", "brackets in pairs"},        {"a,,b", "a name between commas"},
      {"a,", "a name between commas"},        {"", "a name between commas"},
      {"n[]", "numbers or rising ranges"},    {"n[1,]", "numbers or rising"},
      {"n[3-1]", "numbers or rising ranges"}, {"n[1-]", "numbers or rising ranges"},
      {"n[x]", "numbers or rising"},          {"n[1-2-3]", "numbers or rising ranges"},
      {"n[1-999999999]", "at most 65536"},    {"n[1-9999999999]", "numbers"},
      {"n[1-999]m[1-999]", "at most 65536"},  {"a[1-65536],b", "at most 65536 hosts"},
  };
  for (const auto& [text, message] : table) {
    const std::string came = test::message_of([&] { expanded_hosts("SLURM_STEP_NODELIST", text); });
    EXPECT_EQ(came.find("2: environment: SLURM_STEP_NODELIST=" + text + ": wanted " + message), 0U) << came;
  }
  EXPECT_EQ(expanded_hosts("L", "a[1-65536]").size(), 65536U);
}

TEST(SlurmLists, TasksPerNodeAreWrittenOut) {
  EXPECT_EQ(expanded_tasks_per_node("L", "4(x2),3"), (std::vector<int>{4, 4, 3}));
  EXPECT_EQ(expanded_tasks_per_node("L", "12"), (std::vector<int>{12}));
  for (const char* text : {"4(x2", "4(x)", "4x2", "(x2)", "0", "4(x0)", "-1", "4(x2)3"}) {
    const std::string came = test::message_of([&] { expanded_tasks_per_node("L", text); });
    EXPECT_NE(came.find(": wanted counts such as 4(x2),3"), std::string::npos) << text << ": " << came;
  }
  EXPECT_NE(test::message_of([] { expanded_tasks_per_node("L", "1(x65537)"); }).find("at most 65536 nodes"),
            std::string::npos);
}

}  // namespace
}  // namespace limbeck::parallel
