#include "trainer/parallel/ranks/meeting.h"

#include <c10/util/Logging.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <vector>

#include "modules/errors.h"
#include "trainer/parallel/launch/topology.h"
#include "trainer/parallel/ranks/together.h"

namespace limbeck::parallel {
namespace {

using Milliseconds = std::chrono::milliseconds;
constexpr auto kBetweenLooks = Milliseconds(20);
constexpr auto kFarewell = std::chrono::seconds(2);
constexpr const char *kRound = "round", *kOver = "over", *kHere = "here", *kTold = "told";

std::string first_line_of(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

// LibTorch prints a stack trace for each connection that breaks; what is to be said about it is our message.
void quieten_libtorch() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") != nullptr || std::getenv("LIMBECK_TRACE") != nullptr) return;
  FLAGS_caffe2_log_level = c10::GLOG_FATAL;
}

c10::intrusive_ptr<c10d::TCPStore> connect(const GlooOptions& options) {
  c10d::TCPStoreOptions opts;
  opts.port = options.port;
  opts.isServer = options.rank == 0 && !options.agent_store;
  if (!options.agent_store) opts.numWorkers = static_cast<std::size_t>(options.size);
  opts.waitWorkers = false;
  opts.timeout = Milliseconds(static_cast<int64_t>(options.first_timeout_s * 1000));
  try {
    return c10::make_intrusive<c10d::TCPStore>(options.host, opts);
  } catch (const std::exception& error) {
    throw DistributedError(
        fmt::format("rank {} of {}: the store at {}:{} cannot be {}: {}: look whether {}", options.rank, options.size,
                    options.host, options.port, opts.isServer ? "opened" : "reached", first_line_of(error),
                    opts.isServer ? "the port is free, and whether another process says that it is rank 0"
                                  : "rank 0 started, and whether the port is open to this machine"));
  }
}

std::string fresh_word() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

class Gathering {
 public:
  Gathering(c10d::Store& store, const GlooOptions& options, const std::string& me)
      : store_(store), options_(options), me_(me), word_(fresh_word()) {}

  // The name of the round.
  std::string wait() {
    const auto deadline =
        std::chrono::steady_clock::now() + Milliseconds(static_cast<int64_t>(options_.first_timeout_s * 1000));
    come();
    while (!begun()) {
      if (std::chrono::steady_clock::now() > deadline) give_up(who_is_missing());
      std::this_thread::sleep_for(kBetweenLooks);
    }
    return round_;
  }

  std::string first_rank() { return read(came(0)); }

 private:
  static std::string word_key(int rank) { return fmt::format("word/{}", rank); }
  std::string came(int rank) const { return fmt::format("{}/came/{}", round_, rank); }

  std::string read(const std::string& key) {
    const auto bytes = store_.get(key);
    return {bytes.begin(), bytes.end()};
  }
  void write(const std::string& key, const std::string& text) {
    store_.set(key, std::vector<uint8_t>(text.begin(), text.end()));
  }
  bool all_there(const std::function<std::string(int)>& key) {
    std::vector<std::string> keys;
    for (int rank = 0; rank < options_.size; ++rank) keys.push_back(key(rank));
    return store_.check(keys);
  }

  void come() {
    // Of a store that rank 0 opened for this run; in torchrun's, a second time is a restart.
    if (!options_.agent_store) {
      store_.add(kHere, 1);
      if (store_.add(fmt::format("times/{}", options_.rank), 1) > 1) {
        write(kOver, fmt::format("two processes say that they are rank {}: start each rank once", options_.rank));
      }
    }
    write(word_key(options_.rank), word_);
  }

  // All who are here end with the same reason, and the one who keeps the store as the last.
  [[noreturn]] void give_up(const std::string& reason) {
    if (!options_.agent_store) {
      write(kOver, reason);
      const auto deadline = std::chrono::steady_clock::now() + kFarewell;
      store_.add(kTold, 1);
      while (options_.rank == 0 && store_.add(kTold, 0) < store_.add(kHere, 0) &&
             std::chrono::steady_clock::now() < deadline) {
        std::this_thread::sleep_for(kBetweenLooks);
      }
    }
    throw DistributedError(fmt::format("rank {} of {}: {}", options_.rank, options_.size, reason));
  }

  bool begun() {
    if (!options_.agent_store && store_.check({kOver})) give_up(read(kOver));
    if (options_.rank == 0) name_round();
    if (!store_.check({kRound})) return false;
    std::istringstream text(read(kRound));
    std::string name, word;
    text >> name;
    for (int rank = 0; rank <= options_.rank; ++rank) text >> word;
    if (word != word_) return false;  // of those who were here before
    if (name != round_) {
      round_ = name;
      write(came(options_.rank), me_);
    }
    return all_there([this](int rank) { return came(rank); });
  }

  // Again when a word has changed: the one before was of a process that is gone.
  void name_round() {
    if (!all_there(word_key)) return;
    std::string words;
    for (int rank = 0; rank < options_.size; ++rank) words += fmt::format(" {}", read(word_key(rank)));
    if (words == named_) return;
    named_ = words;
    write(kRound, fresh_word() + words);
  }

  std::string who_is_missing() {
    std::vector<int> missing;
    for (int rank = 0; rank < options_.size; ++rank) {
      if (!store_.check({round_.empty() ? word_key(rank) : came(rank)})) missing.push_back(rank);
    }
    if (missing.empty()) missing.push_back(0);  // it has named no round
    return fmt::format("rank{} {} did not come within {:.0f} s (parallel.first_timeout)", missing.size() > 1 ? "s" : "",
                       fmt::join(missing, ", "), options_.first_timeout_s);
  }

  c10d::Store& store_;
  const GlooOptions& options_;
  std::string me_, word_, round_, named_;
};

// Whether all of those who met can go on.
void require_ready(c10d::Store& store, const GlooOptions& options, const std::exception_ptr& refused) {
  const auto key = [](int rank) { return fmt::format("ready/{}", rank); };
  const std::string mine = refused ? outcome_text(failed_outcome(refused)) : "{}";
  store.set(key(options.rank), std::vector<uint8_t>(mine.begin(), mine.end()));
  std::vector<nlohmann::json> of_rank;
  bool all = true;
  for (int rank = 0; rank < options.size; ++rank) {
    const std::vector<uint8_t> bytes = store.get(key(rank));
    of_rank.push_back(nlohmann::json::parse(bytes.begin(), bytes.end()));
    all = all && !of_rank.back().contains("error");
  }
  if (all) return;
  store.add(kTold, 1);
  const auto deadline = std::chrono::steady_clock::now() + kFarewell;
  while (options.rank == 0 && !options.agent_store && store.add(kTold, 0) < options.size &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kBetweenLooks);  // who keeps the store leaves as the last
  }
  end_alike(of_rank, options.rank, refused);
}

}  // namespace

Meeting meet(const GlooOptions& options, const std::exception_ptr& refused) {
  quieten_libtorch();
  // Gloo and the store write to whoever may just have died: that is an error to report, and no reason to vanish.
  std::signal(SIGPIPE, SIG_IGN);
  const auto tcp = connect(options);
  const auto within = [](const std::string& prefix, const c10::intrusive_ptr<c10d::Store>& store) {
    return c10::make_intrusive<c10d::PrefixStore>(prefix, store);
  };
  const std::string run = "limbeck/" + options.run_id;
  Meeting met;
  BoardOptions self;
  self.rank = options.rank;
  self.size = options.size;
  self.me = this_process();
  self.with_first = !options.agent_store;
  try {
    const auto hall = within(run, tcp);
    Gathering gathering(*hall, options, self.me);
    const std::string round = run + "/" + gathering.wait();
    met.store = within(round, tcp);
    require_ready(*met.store, options, refused);
    self.keeper = options.agent_store ? fmt::format("torchrun's agent at {}:{}", options.host, options.port)
                                      : fmt::format("rank 0 ({})", gathering.first_rank());
    met.board = std::make_shared<Board>(within(round, tcp->clone()), self);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw DistributedError(fmt::format("rank {} of {}: the store at {}:{} is gone while ranks meet: {}", options.rank,
                                       options.size, options.host, options.port, first_line_of(error)));
  }
  return met;
}

}  // namespace limbeck::parallel
