#include "tests/support/thread_ranks.h"

#include <algorithm>
#include <stdexcept>
#include <thread>

namespace limbeck::test {
namespace {

struct Meeting {
  explicit Meeting(int size) : everyone(size), texts(static_cast<size_t>(size)), numbers(static_cast<size_t>(size)) {}
  std::barrier<> everyone;
  std::vector<std::string> texts;
  std::vector<std::vector<int64_t>> numbers;
};

class ThreadRank : public parallel::Communicator {
 public:
  ThreadRank(Meeting& meeting, int rank) : meeting_(meeting), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(meeting_.texts.size()); }

  std::vector<std::string> all_gather(const std::string& mine) override {
    meeting_.texts[static_cast<size_t>(rank_)] = mine;
    meeting_.everyone.arrive_and_wait();
    std::vector<std::string> all = meeting_.texts;
    meeting_.everyone.arrive_and_wait();  // nobody writes the next text before all have read this one
    return all;
  }
  void all_reduce(std::vector<int64_t>& values, parallel::Reduce how) override {
    meeting_.numbers[static_cast<size_t>(rank_)] = values;
    meeting_.everyone.arrive_and_wait();
    std::vector<int64_t> out = meeting_.numbers[0];
    for (size_t rank = 1; rank < meeting_.numbers.size(); ++rank) {
      for (size_t i = 0; i < out.size(); ++i) {
        const int64_t other = meeting_.numbers[rank][i];
        out[i] = how == parallel::Reduce::kSum   ? out[i] + other
                 : how == parallel::Reduce::kMin ? std::min(out[i], other)
                                                 : std::max(out[i], other);
      }
    }
    meeting_.everyone.arrive_and_wait();
    values = out;
  }

  std::shared_ptr<parallel::Pending> all_gather(const at::Tensor&, const at::Tensor&, const std::string&) override {
    no_tensors();
  }
  std::shared_ptr<parallel::Pending> reduce_scatter(const at::Tensor&, const at::Tensor&, parallel::Order,
                                                    const std::string&) override {
    no_tensors();
  }
  std::shared_ptr<parallel::Pending> all_reduce(const at::Tensor&, parallel::Order, const std::string&) override {
    no_tensors();
  }
  std::unique_ptr<Communicator> line(const std::string&) override { no_tensors(); }

 private:
  [[noreturn]] void no_tensors() const { throw std::logic_error("ranks that are threads send texts alone"); }

  Meeting& meeting_;
  int rank_;
};

}  // namespace

std::vector<std::string> run_ranks(int size, const std::function<void(parallel::Communicator&)>& body) {
  Meeting meeting(size);
  std::vector<std::string> thrown(static_cast<size_t>(size));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        ThreadRank self(meeting, rank);
        try {
          body(self);
        } catch (const std::exception& error) {
          thrown[static_cast<size_t>(rank)] = error.what();
        }
        meeting.everyone.arrive_and_drop();  // a rank that left early keeps nobody waiting
      });
    }
  }
  return thrown;
}

}  // namespace limbeck::test
