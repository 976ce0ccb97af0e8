// The recipe alone decides what an update is; ranks divide its micro-batches.
#pragma once
#include <cstdint>

#include "trainer/recipe/settings.h"

namespace limbeck::session {

// How the micro-batches of an update are dealt among the ranks.
struct Deal {
  int64_t micro_batches = 1, own = 1;  // of an update; of this rank
  int64_t ranks = 1, rank = 0;
  bool interleaved = false;  // ranks take turns; else each has a run of its own

  // Of the i-th micro-batch that this rank runs since training began: its number among all.
  int64_t number_of(int64_t i) const {
    const int64_t step = i / own, mine = i % own;
    return step * micro_batches + (interleaved ? mine * ranks + rank : rank * own + mine);
  }
};

// UsageError when the micro-batches cannot be divided among so many.
Deal deal_of(const recipe::Settings& settings, int64_t ranks, int64_t rank);

}  // namespace limbeck::session
