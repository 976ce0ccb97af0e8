#include "trainer/cli/worker_threads.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <future>
#include <system_error>
#include <thread>
#include <vector>

#include "modules/errors.h"

namespace limbeck::cli {
namespace {

constexpr int kBeside = 4;  // reading data, writing checkpoints, ranks that speak

// All alive at once, then gone again: what they took is what the runtime's own will take.
void try_threads(int count) {
  std::promise<void> end;
  const std::shared_future<void> ended = end.get_future().share();
  std::vector<std::thread> threads;
  std::string fault;
  try {
    threads.reserve(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) threads.emplace_back([ended] { ended.wait(); });
  } catch (const std::system_error& error) {
    fault = fmt::format("thread {} of {} cannot be started ({})", threads.size() + 1, count, error.code().message());
  }
  end.set_value();
  for (std::thread& thread : threads) thread.join();
  if (!fault.empty()) throw NumericError(fault + ": raise the limits (ulimit -v, ulimit -u), or lower --threads");
}

}  // namespace

void set_worker_threads(int count) {
  try_threads(count);
  at::set_num_threads(count);
}

void start_worker_threads() {
  const int count = at::get_num_threads();
  try_threads(count + kBeside);
  at::parallel_for(0, count, 1, [](int64_t, int64_t) {});
}

}  // namespace limbeck::cli
