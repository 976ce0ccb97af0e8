// Ranks as processes on CPUs, joined by Gloo over TCP; the addresses meet in a TCPStore.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "trainer/parallel/communicator.h"

namespace limbeck::parallel {

struct GlooOptions {
  int rank = 0, size = 1;
  std::string host;  // of the store
  uint16_t port = 0;
  bool agent_store = false;  // torchrun keeps the store: every rank is a client
  std::string run_id = {};   // of those runs that share a store
  double first_timeout_s = 1800, timeout_s = 600;
  bool verify_calls = false;  // hold operation, length and dtype of all ranks against each other before each call
};

struct Meeting;

// Joins the ranks that have met; DistributedError says what keeps them apart.
std::unique_ptr<Communicator> make_gloo(const GlooOptions& options, const Meeting& meeting);

}  // namespace limbeck::parallel
