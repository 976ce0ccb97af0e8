#include "trainer/session/micro_batch_division.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/parallel/parallel_options.h"

namespace limbeck::session {
namespace {

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

}  // namespace

Deal deal_of(const recipe::Settings& settings, int64_t ranks, int64_t rank) {
  const parallel::ParallelOptions options = parallel::read_parallel_options(settings);
  Deal deal;
  deal.micro_batches = settings.integer("train.accumulate");
  deal.ranks = ranks;
  deal.rank = rank;
  deal.interleaved = options.zero >= 2;
  const std::string where = settings.where("train.accumulate");
  if (deal.micro_batches % deal.ranks != 0) {
    throw UsageError(fmt::format(
        "train.accumulate = {} {}: the micro-batches of an update are divided among the ranks, and there are {}: set "
        "it to a multiple of {}; an update has train.accumulate x data.batch_size sequences whatever the number of "
        "ranks",
        deal.micro_batches, where, deal.ranks, deal.ranks));
  }
  deal.own = deal.micro_batches / deal.ranks;
  if (options.order == parallel::Order::kTree && !(power_of_two(deal.micro_batches) && power_of_two(deal.ranks))) {
    throw UsageError(fmt::format(
        "parallel.reduce = tree {} adds in pairs: wanted train.accumulate and the number of ranks to be powers of two, "
        "and they are {} {} and {}",
        settings.where("parallel.reduce"), deal.micro_batches, where, deal.ranks));
  }
  return deal;
}

}  // namespace limbeck::session
