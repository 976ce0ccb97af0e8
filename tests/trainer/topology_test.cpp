// Who am I: every launcher's environment as it really looks, every contradiction with its message.
#include "trainer/parallel/topology.h"

#include <gtest/gtest.h>

#include <map>

#include "message_of.h"
#include "support/recipe_settings.h"
#include "trainer/parallel/slurm_lists.h"

namespace limbeck::parallel {
namespace {

using Variables = std::map<std::string, std::string>;
using testing::recipe_settings;

Environment environment_of(const Variables& variables) {
  return [variables](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  };
}

// `base` with some variables changed; "-" takes one away.
Variables changed(Variables base, const Variables& by) {
  for (const auto& [name, value] : by) {
    base[name] = value;
    if (value == "-") base.erase(name);
  }
  return base;
}

std::string described(const Variables& variables, const TopologyRequest& request = {}) {
  return detect_topology(request, environment_of(variables)).described();
}

std::string refusal(const Variables& variables, const TopologyRequest& request = {}) {
  return test::message_of([&] { detect_topology(request, environment_of(variables)); });
}

// The last of 2 nodes with 4 processes each.
const Variables kTorchrun = {{"RANK", "5"},
                             {"LOCAL_RANK", "1"},
                             {"WORLD_SIZE", "8"},
                             {"LOCAL_WORLD_SIZE", "4"},
                             {"GROUP_RANK", "1"},
                             {"GROUP_WORLD_SIZE", "2"},
                             {"MASTER_ADDR", "nodeA"},
                             {"MASTER_PORT", "29500"},
                             {"TORCHELASTIC_RUN_ID", "run7"},
                             {"TORCHELASTIC_RESTART_COUNT", "0"},
                             {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                             {"HOSTNAME", "nodeB"}};
const Variables kSlurm = {{"SLURM_JOB_ID", "1234"},
                          {"SLURM_STEP_ID", "0"},
                          {"SLURM_PROCID", "5"},
                          {"SLURM_NTASKS", "8"},
                          {"SLURM_LOCALID", "1"},
                          {"SLURM_NTASKS_PER_NODE", "4"},
                          {"SLURM_STEP_TASKS_PER_NODE", "4(x2)"},
                          {"SLURM_NODEID", "1"},
                          {"SLURM_NNODES", "2"},
                          {"SLURM_STEP_NODELIST", "gpu[07-08]"},
                          {"SLURM_JOB_NODELIST", "gpu[01-08]"}};
// What sbatch gives its script on the first node.
const Variables kBatchScript = {{"SLURM_JOB_ID", "1234"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"},
                                {"SLURM_NODEID", "0"},    {"SLURM_NTASKS", "8"}, {"SLURM_JOB_NODELIST", "a,b"},
                                {"SLURM_NNODES", "2"}};
// A worker pod of an operator: RANK is the pod's number.
const Variables kPod = {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "job-master-0"}, {"MASTER_PORT", "23456"}};

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

struct Refused {
  Variables change;
  std::string message;  // a part of it
};

TEST(Topology, TorchrunContradictionsAreRefused) {
  const std::string type = "; start it with `torchrun --no-python --nproc-per-node=N limbeck train RECIPE`";
  const Refused table[] = {
      {{{"RANK", "8"}}, "2: environment: RANK=8 with WORLD_SIZE=8: wanted RANK from 0 to 7" + type},
      {{{"LOCAL_RANK", "4"}},
       "environment: LOCAL_RANK=4 with LOCAL_WORLD_SIZE=4: wanted LOCAL_RANK from 0 to 3" + type},
      {{{"GROUP_RANK", "2"}},
       "environment: GROUP_RANK=2 with GROUP_WORLD_SIZE=2: wanted GROUP_RANK from 0 to 1" + type},
      {{{"RANK", "one"}}, "environment: RANK=one: wanted a whole number from 0 to 1048575" + type},
      {{{"RANK", "-1"}}, "environment: RANK=-1: wanted a whole number from 0 to"},
      {{{"WORLD_SIZE", "8.0"}}, "environment: WORLD_SIZE=8.0: wanted a whole number from 1 to"},
      {{{"WORLD_SIZE", "99999999999999999999"}}, "WORLD_SIZE=99999999999999999999: wanted a whole number from 1 to"},
      {{{"MASTER_PORT", "65536"}}, "environment: MASTER_PORT=65536: wanted a whole number from 1 to 65535"},
      {{{"TORCHELASTIC_USE_AGENT_STORE", "maybe"}}, "TORCHELASTIC_USE_AGENT_STORE=maybe: wanted True or False"},
      {{{"WORLD_SIZE", "-"}},
       "environment: RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT set without WORLD_SIZE: wanted all"},
      {{{"MASTER_ADDR", ""}, {"MASTER_PORT", "-"}},
       "RANK, LOCAL_RANK, WORLD_SIZE set without MASTER_ADDR, MASTER_PORT"},
      {{{"LOCAL_WORLD_SIZE", "-"}}, "environment: LOCAL_RANK set without LOCAL_WORLD_SIZE: wanted all of"},
      {{{"LOCAL_RANK", "-"}}, "set without LOCAL_RANK: wanted all of"},
      {{{"LOCAL_WORLD_SIZE", "9"}}, "LOCAL_WORLD_SIZE=9 is more than WORLD_SIZE=8"},
      {{{"GROUP_WORLD_SIZE", "-"}, {"LOCAL_WORLD_SIZE", "3"}},
       "WORLD_SIZE=8 is no multiple of LOCAL_WORLD_SIZE=3, and"},
  };
  for (const auto& [change, message] : table) {
    const std::string came = refusal(changed(kTorchrun, change));
    EXPECT_NE(came.find(message), std::string::npos) << came << "\nwanted " << message;
    EXPECT_EQ(came.find('\n'), std::string::npos);
  }
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

TEST(Topology, TorchrunsVariablesSetFromSlurmsMustAgree) {
  Variables by_hand = kSlurm;
  by_hand.insert({{"RANK", "5"},
                  {"LOCAL_RANK", "1"},
                  {"WORLD_SIZE", "8"},
                  {"LOCAL_WORLD_SIZE", "4"},
                  {"MASTER_ADDR", "a"},
                  {"MASTER_PORT", "29501"}});
  EXPECT_EQ(described(by_hand),
            "rank 5 of 8, local rank 1 of 4 on node 1 of 2, store at a:29501, launched by torchrun");
  EXPECT_NE(refusal(changed(by_hand, {{"WORLD_SIZE", "16"}}))
                .find("WORLD_SIZE=16 on 4 node(s), by torchrun's variables, within a"),
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

TEST(Topology, SlurmContradictionsAreRefused) {
  const std::string type = "; type `srun limbeck train RECIPE`";
  const Refused table[] = {
      {{{"SLURM_PROCID", "8"}},
       "2: environment: SLURM_PROCID=8 with SLURM_NTASKS=8: wanted SLURM_PROCID from 0 to 7" + type},
      {{{"SLURM_LOCALID", "4"}},
       "SLURM_LOCALID=4 with SLURM_NTASKS_PER_NODE=4: wanted SLURM_LOCALID from 0 to 3" + type},
      {{{"SLURM_NODEID", "2"}},
       "environment: SLURM_NODEID=2 with SLURM_NNODES=2: wanted SLURM_NODEID from 0 to 1" + type},
      {{{"SLURM_PROCID", "x"}}, "environment: SLURM_PROCID=x: wanted a whole number from 0 to"},
      {{{"SLURM_PROCID", "-"}}, "SLURM_STEP_ID, SLURM_LOCALID, SLURM_NODEID set without SLURM_PROCID: wanted all of"},
      {{{"SLURM_NTASKS", "-"}}, "SLURM_STEP_ID set without SLURM_NTASKS"},
      {{{"SLURM_STEP_NODELIST", "-"}, {"SLURM_JOB_NODELIST", "-"}}, "SLURM_JOB_ID set without SLURM_JOB_NODELIST"},
      {{{"SLURM_STEP_NODELIST", "gpu[1-3]"}}, "SLURM_STEP_NODELIST=gpu[1-3] names 3 hosts, but the step has 2 nodes"},
      {{{"SLURM_STEP_TASKS_PER_NODE", "4(x3)"}},
       "SLURM_STEP_TASKS_PER_NODE=4(x3) stands for 12 tasks on 3 nodes, but the step has 8 tasks on 2 nodes"},
      {{{"SLURM_STEP_TASKS_PER_NODE", "-"}, {"SLURM_NTASKS_PER_NODE", "2"}},
       "8 tasks on 2 nodes, SLURM_NTASKS_PER_NODE=2: wanted the same number of tasks on every node"},
      {{{"SLURM_STEP_TASKS_PER_NODE", "-"}, {"SLURM_NTASKS_PER_NODE", "-"}, {"SLURM_NTASKS", "7"}},
       "7 tasks on 2 nodes, SLURM_NTASKS_PER_NODE is not set: wanted the same number of tasks on every node"},
      {{{"WORLD_SIZE", "4"}},
       "WORLD_SIZE=4, but the Slurm step has 8 tasks: wanted the same; unset WORLD_SIZE, or" + type},
      {{{"RANK", "4"}}, "RANK=4, but SLURM_PROCID=5: wanted the same; unset RANK, or" + type},
  };
  for (const auto& [change, message] : table) {
    const std::string came = refusal(changed(kSlurm, change));
    EXPECT_NE(came.find(message), std::string::npos) << came << "\nwanted " << message;
  }
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

TopologyRequest pod_request(int processes_per_node, std::optional<int> local_rank = {}) {
  TopologyRequest request;
  request.processes_per_node = processes_per_node;
  request.local_rank = local_rank;
  return request;
}

TEST(Topology, PodsThatCountWeCannotKnowHowAreRefused) {
  const std::string type = "; run `torchrun --no-python limbeck train RECIPE` in the pod";
  struct Row {
    Variables change;
    TopologyRequest request;
    std::string message;
  };
  const Row table[] = {
      {{},
       {},
       "2: environment: WORLD_SIZE=2 without LOCAL_RANK: older Kubeflow operators count pods there, newer ones "
       "processes: wanted --parallel.processes_per_node=1 for one process a pod; for more of them" +
           type},
      {{{"WORLD_SIZE", "8"}, {"PET_NPROC_PER_NODE", "4"}, {"PET_NNODES", "2"}},
       {},
       "environment: PET_NNODES=2: the PET_ variables are options of torchrun, and this process was started without "
       "it"},
      {{{"WORLD_SIZE", "8"}},
       pod_request(4),
       "RANK=1 and WORLD_SIZE=8 without LOCAL_RANK, and --parallel.processes_per_node=4: RANK is the pod's number, the "
       "same for its 4 processes: wanted LOCAL_RANK or --parallel.local_rank" +
           type},
      {{{"WORLD_SIZE", "8"}},
       pod_request(4, 2),
       "RANK=1 and WORLD_SIZE=8 do not fit --parallel.processes_per_node=4 --parallel.local_rank=2"},
      {{}, pod_request(4, 1), "RANK=1 and WORLD_SIZE=2 do not fit"},
      {{{"PET_NPROC_PER_NODE", "8"}},
       pod_request(1),
       "PET_NPROC_PER_NODE=8 with --parallel.processes_per_node=1: wanted the same" + type},
      {{{"RANK", "2"}}, pod_request(1), "RANK=2 with WORLD_SIZE=2: wanted RANK from 0 to 1" + type},
      {{{"WORLD_SIZE", "-"}}, {}, "RANK set without WORLD_SIZE: wanted all of RANK, WORLD_SIZE" + type},
      {{{"RANK", "-"}}, {}, "WORLD_SIZE set without RANK"},
      {{{"MASTER_ADDR", "-"}}, pod_request(1), "RANK, WORLD_SIZE, MASTER_PORT set without MASTER_ADDR"},
  };
  for (const auto& [change, request, message] : table) {
    const std::string came = refusal(changed(kPod, change), request);
    EXPECT_NE(came.find(message), std::string::npos) << came << "\nwanted " << message;
  }
  EXPECT_NE(refusal({{"PET_NPROC_PER_NODE", "auto"}}).find("PET_NPROC_PER_NODE=auto: the PET_ variables"),
            std::string::npos);
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

TEST(Topology, FlagsHalfGivenOrContradictingAreRefused) {
  const std::pair<TopologyRequest, std::string> table[] = {
      {{.rank = 0},
       "2: --parallel.rank given without --parallel.world_size, --parallel.master: wanted all three or none; "
       "add --parallel.world_size=... --parallel.master=... or leave it to the launcher"},
      {{.world_size = 2, .master = "a:1"}, "--parallel.world_size, --parallel.master given without --parallel.rank"},
      {{.rank = 4, .world_size = 4, .master = "localhost:1"},
       "--parallel.rank=4 with --parallel.world_size=4: wanted a rank from 0 to 3"},
      {{.rank = 0, .world_size = 4, .master = "nodeA:1"},
       "--parallel.world_size=4: nothing says how many of them are on a node: add --parallel.processes_per_node=N"},
      {{.rank = 0, .world_size = 4, .processes_per_node = 3, .master = "a:1"},
       "--parallel.world_size=4 with --parallel.processes_per_node=3: wanted the same number on every node"},
      {{.rank = 1, .world_size = 4, .local_rank = 0, .master = "localhost:1"},
       "--parallel.local_rank=0, but this is rank 1 of 4, local rank 1 of 4 on node 0 of 1, store at localhost:1, told "
       "by "
       "--parallel flags: wanted 1; leave the flag out"},
      {{.local_rank = 1},
       "--parallel.local_rank=1, but no launcher speaks in the environment and this is one process alone: wanted 0; "
       "start "
       "the ranks with torchrun"},
      {{.processes_per_node = 2}, "--parallel.processes_per_node=2, but no launcher speaks"},
  };
  for (const auto& [request, message] : table) {
    const std::string came = refusal({}, request);
    EXPECT_NE(came.find(message), std::string::npos) << came << "\nwanted " << message;
  }
  for (const char* master : {"nodeA", "nodeA:", ":29500", "nodeA:0", "nodeA:65536", "nodeA:x", "::1:29500", "[]:5"}) {
    EXPECT_NE(refusal({}, {.rank = 0, .world_size = 1, .master = master})
                  .find("--parallel.master=" + std::string(master) + ": wanted HOST:PORT, the host of rank 0"),
              std::string::npos);
  }
  EXPECT_NE(refusal(kSlurm, {.processes_per_node = 2}).find("--parallel.processes_per_node=2, but this is rank 5 of 8"),
            std::string::npos);
}

TEST(Topology, ARankWithoutADeviceIsRefused) {
  EXPECT_EQ(
      refusal(kTorchrun, {.devices = 1}),
      "2: local rank 1 of 4 on this node (launched by torchrun), but 1 CUDA device(s) are visible: wanted one for "
      "each rank; start at most 1 processes a node, check CUDA_VISIBLE_DEVICES (with srun: --gpus-per-node instead "
      "of --gpus-per-task), or type --device=cpu");
  EXPECT_EQ(described(kTorchrun, {.devices = 2}), described(kTorchrun));
  EXPECT_NE(refusal({}, {.devices = 0}).find("but 0 CUDA device(s) are visible"), std::string::npos);
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
