#include "trainer/parallel/join.h"

#include "trainer/parallel/gloo.h"

namespace limbeck::parallel {

Joined join_ranks(const recipe::Settings& settings) {
  Joined joined;
  joined.topology = detect_topology(topology_request(settings, std::nullopt), process_environment());
  const Topology& t = joined.topology;
  if (t.size == 1) {
    joined.ranks = make_solo();
    return joined;
  }
  GlooOptions options;
  options.rank = t.rank;
  options.size = t.size;
  options.host = t.master_host;
  options.port = t.master_port;
  options.agent_store = t.agent_store;
  options.run_id = t.run_id;
  options.first_timeout_s = settings.number("parallel.first_timeout");
  options.timeout_s = settings.number("parallel.timeout");
  options.verify_calls = settings.enabled("parallel.verify_calls");
  joined.ranks = make_gloo(options);
  return joined;
}

}  // namespace limbeck::parallel
