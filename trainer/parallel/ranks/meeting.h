// How ranks find each other at a store. A store that torchrun keeps outlives a restart, with all that the dead have
// written, and nothing in torchrun's environment tells one round of ranks from another (its restart counts differ
// between nodes): so the first rank names those it has seen, by a word that each makes up, and a round has begun when
// all of them have answered to their word.
#pragma once
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <exception>
#include <memory>

#include "trainer/parallel/ranks/gloo.h"
#include "trainer/parallel/ranks/rank_board.h"

namespace limbeck::parallel {

struct Meeting {
  c10::intrusive_ptr<c10d::Store> store;  // of this round alone
  std::shared_ptr<Board> board;           // of it, over a connection of its own
};

// DistributedError names what cannot be reached, who is missing and who came twice. `refused`: why this rank cannot go
// on; then all who have met end by it, instead of waiting for a rank that is gone.
Meeting meet(const GlooOptions& options, const std::exception_ptr& refused = nullptr);

}  // namespace limbeck::parallel
