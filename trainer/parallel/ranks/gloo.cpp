#include "trainer/parallel/ranks/gloo.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "modules/errors.h"
#include "trainer/parallel/ranks/job_thread.h"
#include "trainer/parallel/ranks/line_names.h"
#include "trainer/parallel/ranks/meeting.h"
#include "trainer/parallel/ranks/rank_board.h"
#include "trainer/parallel/ranks/same_call.h"
#include "trainer/parallel/sums/tree_sum.h"

namespace limbeck::parallel {
namespace {

using Milliseconds = std::chrono::milliseconds;
Milliseconds milliseconds(double seconds) { return Milliseconds(static_cast<int64_t>(seconds * 1000)); }

constexpr int kTag = 0;

// The address by which this machine reaches the store: the one that the other ranks can reach too.
std::string own_address(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return "";
  std::string address;
  for (const addrinfo* one = found; one != nullptr && address.empty(); one = one->ai_next) {
    const int socket = ::socket(one->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (socket < 0) continue;
    sockaddr_storage own{};
    socklen_t length = sizeof(own);
    char text[NI_MAXHOST];
    if (::connect(socket, one->ai_addr, one->ai_addrlen) == 0 &&
        ::getsockname(socket, reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
        ::getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0) {
      address = text;
    }
    ::close(socket);
  }
  ::freeaddrinfo(found);
  return address;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Operations of one line; all of them run on its thread.
class Gloo : public Communicator {
 public:
  Gloo(const GlooOptions& options, const Meeting& meeting, std::shared_ptr<std::atomic<double>> timeout_s,
       const std::string& name)
      : options_(options),
        meeting_(meeting),
        board_(meeting.board),
        timeout_s_(std::move(timeout_s)),
        name_(name),
        patience_s_(*timeout_s_) {
    auto opts = c10d::ProcessGroupGloo::Options::create(milliseconds(patience_s_));
    const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
    const std::string address = interface != nullptr ? "" : own_address(options.host, options.port);
    opts->devices.push_back(interface != nullptr ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                            : address.empty()    ? c10d::ProcessGroupGloo::createDefaultDevice()
                                                 : c10d::ProcessGroupGloo::createDeviceForHostname(address));
    opts->threads = 1;
    backend_ = c10::make_intrusive<c10d::ProcessGroupGloo>(
        c10::make_intrusive<c10d::PrefixStore>("line/" + name, meeting.store), options.rank, options.size, opts);
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  CommunicationTime time() const override {
    CommunicationTime sum = jobs_.time();
    if (!control_) return sum;
    const CommunicationTime control = control_->time();
    return {sum.running_s + control.running_s, sum.waited_s + control.waited_s};
  }
  void farewell(const std::string& reason) override { board_->farewell(reason); }
  void settle() override { *timeout_s_ = options_.timeout_s; }

  void all_reduce(std::vector<int64_t>& values, Reduce how) override {
    if (control_) return control_->all_reduce(values, how);
    at::Tensor tensor = at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kLong);
    run("control all_reduce", tensor.numel(), at::kLong, [&] { reduce(tensor, how); })->wait();
  }

  std::vector<std::string> all_gather(const std::string& mine) override {
    if (control_) return control_->all_gather(mine);
    std::vector<std::string> all(static_cast<size_t>(size()));
    run("control all_gather", 0, at::kByte, [&] { gather_texts(mine, all); })->wait();
    return all;
  }

  std::shared_ptr<Pending> all_gather(const at::Tensor& whole, const at::Tensor& shard,
                                      const std::string& what) override {
    return run("all_gather of " + what, shard.numel(), shard.scalar_type(),
               [this, whole, shard] { gather_parts(whole, shard); });
  }

  std::shared_ptr<Pending> reduce_scatter(const at::Tensor& shard, const at::Tensor& whole, Order order,
                                          const std::string& what) override {
    return run("reduce_scatter of " + what, whole.numel(), whole.scalar_type(), [this, shard, whole, order] {
      if (order == Order::kTree) return tree(shard, whole);
      fast_reduce_scatter(shard, whole);
    });
  }

  std::shared_ptr<Pending> all_reduce(const at::Tensor& whole, Order order, const std::string& what) override {
    return run("all_reduce of " + what, whole.numel(), whole.scalar_type(), [this, whole, order] {
      if (order == Order::kFast) return reduce(whole, Reduce::kSum);
      const int64_t length = whole.numel() / size();
      const at::Tensor own = at::empty({length}, whole.options());
      tree(own, whole);
      gather_parts(whole, own);
    });
  }

  std::unique_ptr<Communicator> line(const std::string& name) override {
    return std::make_unique<Gloo>(options_, meeting_, timeout_s_, lines_.fresh(name));
  }

  // A few numbers that somebody waits for do not queue behind the tensors of the next forward.
  void part_control_from_tensors() { control_ = line(name_ + "/control"); }

 private:
  std::shared_ptr<Pending> run(const std::string& what, int64_t length, at::ScalarType dtype,
                               std::function<void()> body) {
    return jobs_.add([this, what, length, dtype, body = std::move(body)] {
      const int64_t number = ++number_;
      board_->begins(name_, number, what);
      try {
        if (patience_s_ != *timeout_s_) backend_->setTimeout(milliseconds(patience_s_ = *timeout_s_));
        if (options_.verify_calls) verify(fmt::format("{} of {} {}", what, length, c10::toString(dtype)));
        body();
      } catch (const Error&) {
        throw;
      } catch (const std::exception& error) {
        throw DistributedError(board_->blame(name_, number, what, first_line(error.what())));
      }
      board_->ended(name_, number, what);
    });
  }

  void reduce(const at::Tensor& tensor, Reduce how) {
    c10d::AllreduceOptions opts;
    opts.reduceOp = how == Reduce::kSum   ? c10d::ReduceOp::SUM
                    : how == Reduce::kMin ? c10d::ReduceOp::MIN
                                          : c10d::ReduceOp::MAX;
    std::vector<at::Tensor> tensors{tensor};
    backend_->allreduce(tensors, opts)->wait();
  }

  void gather_texts(const std::string& mine, std::vector<std::string>& all) {
    const int64_t ranks = size();
    at::Tensor lengths = at::empty({ranks}, at::kLong), length = at::empty({1}, at::kLong);
    length.data_ptr<int64_t>()[0] = static_cast<int64_t>(mine.size());
    backend_->_allgather_base(lengths, length)->wait();
    const auto* each = lengths.const_data_ptr<int64_t>();
    const int64_t longest = std::max<int64_t>(1, *std::max_element(each, each + ranks));
    at::Tensor texts = at::empty({ranks * longest}, at::kByte), text = at::empty({longest}, at::kByte);
    std::memset(text.data_ptr(), 0, static_cast<size_t>(longest));
    std::memcpy(text.data_ptr(), mine.data(), mine.size());
    backend_->_allgather_base(texts, text)->wait();
    const char* bytes = static_cast<const char*>(texts.const_data_ptr());
    for (int64_t i = 0; i < ranks; ++i) {
      all[static_cast<size_t>(i)].assign(bytes + i * longest, static_cast<size_t>(each[i]));
    }
  }

  // A call that differs between ranks ends the process inside Gloo, or mixes two tensors in silence.
  void verify(const std::string& call) {
    std::vector<std::string> calls(static_cast<size_t>(size()));
    gather_texts(call, calls);
    require_same_call(calls, rank());
  }

  void tree(const at::Tensor& shard, const at::Tensor& whole) {
    tree_reduce_scatter(shard, whole, rank(), size(),
                        [this](const at::Tensor& send, const at::Tensor& receive, int partner) {
                          exchange(send, partner, receive, partner);
                        });
  }

  // Straight into place: the backend's own gathers into a second whole first.
  void gather_parts(const at::Tensor& whole, const at::Tensor& shard) {
    const int ranks = size();
    const at::Tensor parts = whole.view({ranks, shard.numel()});
    if (parts[rank()].const_data_ptr() != shard.const_data_ptr()) parts[rank()].copy_(shard);
    for (int distance = 1; distance < ranks; ++distance) {
      const int to = (rank() + distance) % ranks, from = (rank() + ranks - distance) % ranks;
      exchange(shard, to, parts[from], from);
    }
  }

  // Each rank gets its part of every other's whole and adds them up, neighbours first: half the bytes of the backend's
  // own, which sums a copy of the whole on every rank and keeps a part.
  void fast_reduce_scatter(const at::Tensor& shard, const at::Tensor& whole) {
    const int ranks = size();
    const at::Tensor parts = whole.view({ranks, shard.numel()});
    const at::Tensor arrived = at::empty_like(shard);
    shard.copy_(parts[rank()]);
    for (int distance = 1; distance < ranks; ++distance) {
      const int to = (rank() + distance) % ranks, from = (rank() + ranks - distance) % ranks;
      exchange(parts[to], to, arrived, from);
      shard.add_(arrived);
    }
  }

  void exchange(const at::Tensor& send, int to, const at::Tensor& receive, int from) {
    std::vector<at::Tensor> out{send}, in{receive};
    const auto sending = backend_->send(out, to, kTag);
    backend_->recv(in, from, kTag)->wait();
    sending->wait();
  }

  GlooOptions options_;
  Meeting meeting_;
  std::shared_ptr<Board> board_;
  std::shared_ptr<std::atomic<double>> timeout_s_;  // of all lines
  std::string name_;
  LineNames lines_;
  double patience_s_;  // of backend_
  int64_t number_ = 0;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> backend_;
  std::unique_ptr<Communicator> control_;
  JobThread jobs_;  // last: its thread uses all of the above
};

// c10d records every operation in a list of the process that it fills without a lock, which ends the process when two
// lines begin at once. Off for Gloo unless a user asks for it; NCCL's own list is turned on by the variable's other
// name.
void leave_operations_unrecorded() {
  static std::once_flag once;
  std::call_once(once, [] { ::setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "0", /*overwrite=*/0); });
}

}  // namespace

std::unique_ptr<Communicator> make_gloo(const GlooOptions& options, const Meeting& meeting) {
  leave_operations_unrecorded();
  try {
    auto main = std::make_unique<Gloo>(options, meeting, std::make_shared<std::atomic<double>>(options.first_timeout_s),
                                       "main");
    main->part_control_from_tensors();
    return main;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw DistributedError(fmt::format("rank {} of {}: the ranks cannot be joined: {}", options.rank, options.size,
                                       first_line(error.what())));
  }
}

}  // namespace limbeck::parallel
