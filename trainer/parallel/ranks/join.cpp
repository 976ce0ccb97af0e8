#include "trainer/parallel/ranks/join.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "modules/failure.h"
#include "trainer/parallel/parallel_options.h"
#include "trainer/parallel/ranks/gloo.h"
#include "trainer/parallel/ranks/meeting.h"
#include "trainer/parallel/ranks/nccl.h"
#include "trainer/parallel/ranks/together.h"

namespace limbeck::parallel {
namespace {

// Where the student trains, when that is a GPU and one can be used; what cannot is refused where models are loaded.
std::optional<c10::Device> training_gpu(const recipe::Settings& settings) {
  const c10::Device device = settings.device_of("student");
  return device.is_cuda() && kernels::cuda_available() ? std::optional(device) : std::nullopt;
}

// "cuda" gives each rank the GPU of its local rank; then there must be enough of them.
std::optional<int> gpus_to_divide(const std::optional<c10::Device>& gpu) {
  if (!gpu || gpu->has_index()) return std::nullopt;
  return c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount();
}

GlooOptions gloo_options(const Topology& t) {
  GlooOptions options;
  options.rank = t.rank;
  options.size = t.size;
  options.host = t.master_host;
  options.port = t.master_port;
  options.agent_store = t.agent_store;
  options.run_id = t.run_id;
  return options;
}

GlooOptions gloo_options(const ParallelOptions& asked, const Topology& t) {
  GlooOptions options = gloo_options(t);
  options.first_timeout_s = asked.first_timeout_s;
  options.timeout_s = asked.timeout_s;
  options.verify_calls = asked.verify_calls;
  return options;
}

}  // namespace

void refuse_together(const std::exception_ptr& refused) {
  // Long enough for ranks that were started together, short enough for who waits for the message.
  constexpr double kPatience = 3;
  Topology topology;
  try {
    topology = detect_topology({}, process_environment());
  } catch (const Error&) {
    return;
  }
  if (topology.size == 1) return;
  GlooOptions options = gloo_options(topology);
  options.first_timeout_s = kPatience;
  try {
    meet(options, refused);
  } catch (const DistributedError&) {  // nobody else is there to say it
    Failure failure = describe_failure(refused);
    failure.message = fmt::format("rank {}: {}", topology.rank, failure.message);
    throw_failure(failure);
  }
}

Joined join_ranks(const recipe::Settings& settings) {
  Joined joined;
  const Environment environment = process_environment();
  joined.topology = detect_topology(topology_request(settings, std::nullopt), environment);
  if (joined.topology.size == 1) {
    joined.ranks = make_solo();
    return joined;
  }
  const std::optional<c10::Device> gpu = training_gpu(settings);
  joined.topology = detect_topology(topology_request(settings, gpus_to_divide(gpu)), environment);
  const GlooOptions options = gloo_options(read_parallel_options(settings), joined.topology);
  const Meeting meeting = meet(options);
  joined.ranks = make_gloo(options, meeting);
  require_equal(*joined.ranks, {{"ranks on GPUs (device, student.device)", gpu ? "yes" : "no"}});
  if (!gpu) return joined;
  joined.ranks = make_nccl(std::move(joined.ranks), meeting,
                           {.device = gpu->has_index() ? gpu->index() : joined.topology.local_rank,
                            .first_timeout_s = options.first_timeout_s,
                            .timeout_s = options.timeout_s,
                            .verify_calls = options.verify_calls,
                            .folder = settings.given("run") ? settings.path("run") : std::filesystem::path()});
  return joined;
}

}  // namespace limbeck::parallel
