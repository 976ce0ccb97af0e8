// Who am I: every launcher's environment, and which one wins.
#include "trainer/parallel/launch/topology.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "launcher_environments.h"
#include "support/recipe_settings.h"

namespace limbeck::parallel {
namespace {

using test::recipe_settings;

TEST(Topology, NobodysWordIsOneProcessAlone) {
  const Topology alone = detect_topology({}, environment_of({}));
  EXPECT_EQ(alone.rank, 0);
  EXPECT_EQ(alone.size, 1);
  EXPECT_EQ(alone.launcher, Launcher::kNone);
  EXPECT_EQ(alone.described(), "one process alone");
  EXPECT_EQ(described({{"HOSTNAME", "box"}, {"MASTER_ADDR", "x"}, {"RANK", ""}}), "one process alone (host box)");
}

TEST(Topology, OfTorchrun) {
  EXPECT_EQ(described(kTorchrun),
            "rank 5 of 8, local rank 1 of 4 on node 1 of 2 (host nodeB), store at nodeA:29500, launched by torchrun");
  const Topology again = detect_topology(
      {}, environment_of(changed(
              kTorchrun, {{"TORCHELASTIC_RESTART_COUNT", "2"}, {"MASTER_ADDR", "fe80::1"}, {"HOSTNAME", "-"}})));
  EXPECT_EQ(again.described(),
            "rank 5 of 8, local rank 1 of 4 on node 1 of 2, store at [fe80::1]:29500, launched by torchrun, restart 2");
  EXPECT_EQ(again.restart, 2);
  EXPECT_EQ(again.run_id, "run7");
  EXPECT_EQ(again.launcher, Launcher::kTorchrun);
  EXPECT_TRUE(again.agent_store);
  EXPECT_FALSE(
      detect_topology({}, environment_of(changed(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}}))).agent_store);
}

TEST(Topology, OfTorchrunWithUnequalNodesTakesItsNodeCount) {
  const Topology uneven =
      detect_topology({}, environment_of(changed(kTorchrun, {{"WORLD_SIZE", "6"}, {"LOCAL_WORLD_SIZE", "2"}})));
  EXPECT_EQ(uneven.nodes, 2);
  EXPECT_EQ(uneven.node, 1);
}

TEST(Topology, OfTorchrunsVariablesByHandNeedsNoElasticOnes) {
  const Variables by_hand = {{"RANK", "5"},        {"LOCAL_RANK", "1"}, {"WORLD_SIZE", "8"}, {"LOCAL_WORLD_SIZE", "4"},
                             {"MASTER_ADDR", "n"}, {"MASTER_PORT", "1"}};
  const Topology found = detect_topology({}, environment_of(by_hand));
  EXPECT_EQ(found.node, 1);
  EXPECT_EQ(found.nodes, 2);
  EXPECT_FALSE(found.agent_store);
  const Variables short_of_one = changed(by_hand, {{"LOCAL_WORLD_SIZE", "-"}});
  EXPECT_EQ(described(short_of_one, {.processes_per_node = 4}), described(by_hand));
}

TEST(Topology, TorchrunWinsInsideASlurmStepOfOneTaskANode) {
  const Variables both = changed(kTorchrun, {{"SLURM_JOB_ID", "9"},
                                             {"SLURM_STEP_ID", "0"},
                                             {"SLURM_PROCID", "1"},
                                             {"SLURM_NTASKS", "2"},
                                             {"SLURM_NNODES", "2"}});
  EXPECT_EQ(described(both),
            "rank 5 of 8, local rank 1 of 4 on node 1 of 2 (host nodeB), store at nodeA:29500, launched by torchrun "
            "(inside a Slurm step of 2 tasks, torchrun's word counts)");
  const char* wanted =
      "by torchrun's variables, within a Slurm step of 8 tasks on 2 node(s): wanted one task, that is one torchrun, a";
  const Variables one_world_a_task = {{"SLURM_NTASKS", "8"}, {"GROUP_WORLD_SIZE", "1"}, {"GROUP_RANK", "0"}};
  EXPECT_NE(refusal(changed(both, one_world_a_task)).find(wanted), std::string::npos);
  // After an elastic restart 3 of 4 nodes are left; srun may also start each torchrun in a step of its own.
  EXPECT_NO_THROW(described(changed(both, {{"SLURM_NTASKS", "4"}, {"SLURM_NNODES", "4"}})));
  EXPECT_NO_THROW(described(changed(both, {{"SLURM_NTASKS", "1"}, {"SLURM_NNODES", "1"}, {"SLURM_PROCID", "0"}})));
  // Two torchruns of two processes each look like a world of two tasks.
  const Variables two_lone_ones = {
      {"WORLD_SIZE", "2"}, {"RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}, {"GROUP_WORLD_SIZE", "1"}, {"GROUP_RANK", "0"}};
  EXPECT_NE(refusal(changed(both, two_lone_ones)).find("WORLD_SIZE=2 on 1 node(s), by torchrun's variables"),
            std::string::npos);
}

TEST(Topology, OfSlurm) {
  const Topology found = detect_topology({}, environment_of(kSlurm));
  EXPECT_EQ(found.described(),
            "rank 5 of 8, local rank 1 of 4 on node 1 of 2 (host gpu08), store at gpu07:30734, launched by Slurm");
  EXPECT_EQ(found.run_id, "1234.0");
  EXPECT_EQ(found.launcher, Launcher::kSlurm);
  EXPECT_FALSE(found.agent_store);
  EXPECT_EQ(described(changed(kSlurm, {{"MASTER_PORT", "4000"},
                                       {"MASTER_ADDR", "gpu07-ib"},
                                       {"SLURMD_NODENAME", "here"},
                                       {"SLURM_RESTART_COUNT", "1"},
                                       {"WORLD_SIZE", "8"},
                                       {"RANK", "5"}})),
            "rank 5 of 8, local rank 1 of 4 on node 1 of 2 (host here), store at gpu07-ib:4000, launched by Slurm, "
            "restart 1");
}

TEST(Topology, OfSlurmTakesTheStepsNumbersOverTheJobs) {
  const Topology found = detect_topology({}, environment_of(changed(kSlurm, {{"SLURM_NTASKS", "64"},
                                                                             {"SLURM_NTASKS_PER_NODE", "8"},
                                                                             {"SLURM_NNODES", "8"},
                                                                             {"SLURM_STEP_NUM_TASKS", "7"},
                                                                             {"SLURM_STEP_NUM_NODES", "2"},
                                                                             {"SLURM_STEP_TASKS_PER_NODE", "4,3"}})));
  EXPECT_EQ(found.size, 7);
  EXPECT_EQ(found.nodes, 2);
  EXPECT_EQ(found.local_size, 3);  // on the second node
  const Variables older = {{"SLURM_STEP_TASKS_PER_NODE", "-"}, {"SLURM_NTASKS_PER_NODE", "-"}};
  EXPECT_EQ(detect_topology({}, environment_of(changed(kSlurm, older))).local_size, 4);
}

TEST(Topology, SlurmPortsStayBelowThoseOfOutgoingConnections) {
  for (const char* job : {"0", "2999", "4294967295"}) {
    const Topology found = detect_topology({}, environment_of(changed(kSlurm, {{"SLURM_JOB_ID", job}})));
    EXPECT_GE(found.master_port, 29500) << job;
    EXPECT_LT(found.master_port, 32768) << job;
  }
  const auto port_of = [](const char* step) {
    return detect_topology({}, environment_of(changed(kSlurm, {{"SLURM_STEP_ID", step}}))).master_port;
  };
  EXPECT_NE(port_of("0"), port_of("1"));  // two steps on one node have two stores
}

TEST(Topology, ABatchScriptIsNoRank) {
  const std::string message =
      "2: environment: SLURM_JOB_ID=1234 for 8 tasks, but this process runs in the batch script itself (no "
      "SLURM_STEP_ID), not under srun: wanted one process a task, or for one alone --parallel.rank=0 "
      "--parallel.world_size=1 --parallel.master=localhost:29500; type `srun limbeck train RECIPE` "
      "(tools/launch/slurm.sbatch)";
  EXPECT_EQ(refusal(kBatchScript), message);
  // salloc's own shell has a step of a number that no srun gives; older sbatch gives no SLURM_NTASKS.
  EXPECT_EQ(refusal(changed(kBatchScript, {{"SLURM_STEP_ID", "4294967290"}})), message);
  EXPECT_EQ(refusal(changed(kBatchScript, {{"SLURM_NTASKS", "-"}, {"SLURM_NTASKS_PER_NODE", "4"}})), message);
  // What it advises works, as does one task, and torchrun within the script.
  EXPECT_EQ(described(kBatchScript, {.rank = 0, .world_size = 1, .master = "localhost:29500"}),
            "rank 0 of 1, local rank 0 of 1 on node 0 of 1, store at localhost:29500, told by --parallel flags");
  EXPECT_EQ(described(changed(kBatchScript, {{"SLURM_NTASKS", "1"}})), "one process alone");
  Variables torchrun = kTorchrun;
  torchrun.insert(kBatchScript.begin(), kBatchScript.end());
  EXPECT_EQ(described(torchrun), described(kTorchrun));
}

TEST(Topology, OfAPod) {
  const std::string one_a_pod =
      "rank 1 of 2, local rank 0 of 1 on node 1 of 2, store at job-master-0:23456, launched by Kubeflow";
  EXPECT_EQ(described(kPod, {.processes_per_node = 1}), one_a_pod);
  // A newer operator says how many processes torchrun shall start.
  EXPECT_EQ(described(changed(kPod, {{"PET_NPROC_PER_NODE", "1"}, {"PET_NNODES", "2"}}), {.processes_per_node = 1}),
            one_a_pod);
  EXPECT_EQ(described(changed(kPod, {{"RANK", "5"}, {"WORLD_SIZE", "8"}}), {.local_rank = 1, .processes_per_node = 4}),
            "rank 5 of 8, local rank 1 of 4 on node 1 of 2, store at job-master-0:23456, launched by Kubeflow");
  EXPECT_EQ(described({{"RANK", "0"}, {"WORLD_SIZE", "1"}}),
            "rank 0 of 1, local rank 0 of 1 on node 0 of 1, launched by Kubeflow");
  EXPECT_EQ(described({{"PET_NNODES", "1"}, {"PET_NODE_RANK", "0"}}), "one process alone");
}

TEST(Topology, FlagsWinOverEveryEnvironment) {
  const TopologyRequest flags = {.rank = 3, .world_size = 4, .processes_per_node = 2, .master = "[::1]:77"};
  for (const Variables& variables : {kTorchrun, kSlurm, kBatchScript, kPod, Variables{}}) {
    const Topology found = detect_topology(flags, environment_of(changed(variables, {{"HOSTNAME", "-"}})));
    EXPECT_EQ(found.described(),
              "rank 3 of 4, local rank 1 of 2 on node 1 of 2, store at [::1]:77, told by --parallel flags");
    EXPECT_EQ(found.launcher, Launcher::kFlags);
    EXPECT_FALSE(found.agent_store);  // the store of these flags is rank 0's
  }
}

TEST(Topology, RequestIsReadFromSettings) {
  const auto settings = recipe_settings({{"parallel.rank", "3"},
                                         {"parallel.world_size", "4"},
                                         {"parallel.local_rank", "1"},
                                         {"parallel.processes_per_node", "2"},
                                         {"parallel.master", "nodeA:29500"}});
  const Topology found = detect_topology(topology_request(settings, 2), environment_of({}));
  EXPECT_EQ(found.described(),
            "rank 3 of 4, local rank 1 of 2 on node 1 of 2, store at nodeA:29500, told by --parallel flags");
  EXPECT_EQ(topology_request(settings, 2).devices, 2);
  const TopologyRequest none = topology_request(recipe_settings({}), std::nullopt);
  EXPECT_FALSE(none.rank || none.world_size || none.local_rank || none.processes_per_node || none.devices);
  EXPECT_EQ(none.master, "");
}

TEST(Topology, ProcessEnvironmentIsGetenvAndTheHost) {
  const Environment environment = process_environment();
  ASSERT_EQ(::setenv("LIMBECK_TOPOLOGY_TEST", "here", 1), 0);
  EXPECT_EQ(environment("LIMBECK_TOPOLOGY_TEST"), "here");
  ASSERT_EQ(::unsetenv("LIMBECK_TOPOLOGY_TEST"), 0);
  EXPECT_EQ(environment("LIMBECK_TOPOLOGY_TEST"), std::nullopt);
  EXPECT_NE(environment("HOSTNAME").value_or(""), "");
}

}  // namespace
}  // namespace limbeck::parallel
