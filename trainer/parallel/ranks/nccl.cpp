#include "trainer/parallel/ranks/nccl.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <mutex>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "trainer/parallel/ranks/collective_watch.h"
#include "trainer/parallel/ranks/line_names.h"
#include "trainer/parallel/ranks/same_call.h"
#include "trainer/parallel/sums/tree_sum.h"

namespace limbeck::parallel {
namespace {

using Works = std::vector<c10::intrusive_ptr<c10d::Work>>;
using at::cuda::CUDAEvent;

constexpr auto kLastOperations = std::chrono::seconds(5);

std::string line_of(const std::string& text) { return text.substr(0, text.find('\n')); }

// Called after Gloo's first operations, which fix what Gloo records (leave_operations_unrecorded() in gloo.cpp).
// c10d's own threads must not end the process before ours has said which rank is to blame. What a user sets stays.
void leave_errors_to_us() {
  for (const auto& [name, value] : {std::pair{"TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"},
                                    {"TORCH_NCCL_ENABLE_MONITORING", "0"},
                                    {"TORCH_NCCL_DUMP_ON_TIMEOUT", "0"},
                                    {"TORCH_NCCL_RETHROW_CUDA_ERRORS", "0"},
                                    {"TORCH_FR_BUFFER_SIZE", "2000"}}) {
    ::setenv(name, value, /*overwrite=*/0);
  }
}

namespace fs = std::filesystem;

fs::path trace_in(const fs::path& folder, int rank) { return folder / fmt::format("nccl-trace-rank{}.json", rank); }

bool written(const fs::path& path, const std::string& text) {
  try {
    io::write_atomically(path, text);
    return true;
  } catch (const IoError&) {
    return false;  // what it would help to explain is told all the same
  }
}

// Where the last operations of this process, as c10d's flight recorder saw them, are written; "": nowhere.
std::string dumped_trace(const fs::path& folder, int rank) {
  const std::string trace = c10d::dump_nccl_trace_json(/*includeCollectives=*/true, /*onlyActive=*/false);
  const fs::path own = trace_in(folder, rank);
  if (!folder.empty() && written(own, trace)) return own.string();
  // Others may write into the folder for temporary files, and names that they can guess are theirs to take first.
  std::string made = (fs::temp_directory_path() / "limbeck-XXXXXX").string();
  if (::mkdtemp(made.data()) == nullptr) return "";
  const fs::path path = trace_in(made, rank);
  return written(path, trace) ? path.string() : "";
}

std::string gpu_name(int device) {
  char host[256] = "unknown", bus[32] = "";
  ::gethostname(host, sizeof(host) - 1);
  if (const cudaError_t code = cudaDeviceGetPCIBusId(bus, sizeof(bus), device); code != cudaSuccess) {
    throw DistributedError(fmt::format("cuda:{}: {}: check CUDA_VISIBLE_DEVICES and the number of processes a node",
                                       device, cudaGetErrorString(code)));
  }
  return fmt::format("host {}, GPU {}", host, bus);
}

// Of the operations of one line.
struct Times {
  std::mutex mutex;
  CommunicationTime sum;
};

// One line. Tensor operations are queued on a stream of the line's own, which waits for the caller's; the stream of who
// waits for an operation waits for that, and the host for none: the watch finds what never ends.
class Nccl : public Communicator {
 public:
  Nccl(std::unique_ptr<Communicator> control, std::shared_ptr<CollectiveWatch> watch, const Meeting& meeting,
       const NcclOptions& options, const std::string& name)
      : control_(std::move(control)),
        watch_(std::move(watch)),
        meeting_(meeting),
        options_(options),
        name_(name),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device())) {
    watch_->joins(board_name(), [this] {
      const std::lock_guard lock(making_);
      if (backend_) backend_->abort();  // kernels that wait for the other ranks would keep the process from ending
    });
  }

  ~Nccl() override {
    // An orderly end waits for the other ranks; after a failure, of control too, they may never come.
    const bool orderly = std::uncaught_exceptions() == 0 && watch_->ended_well(board_name(), kLastOperations);
    watch_->leaves(board_name());
    if (!backend_) return;
    std::error_code ignored;
    if (orderly && !options_.folder.empty()) fs::remove(trace_in(options_.folder, rank()), ignored);
    try {
      orderly ? backend_->shutdown() : backend_->abort();
    } catch (const std::exception&) {
      // The process is at its end, and what went wrong has been said.
    }
  }

  int rank() const override { return control_->rank(); }
  int size() const override { return control_->size(); }
  CommunicationTime time() const override {
    const std::lock_guard lock(times_->mutex);
    return times_->sum;
  }
  void confirm() override { watch_->confirm(); }
  void farewell(const std::string& reason) override { control_->farewell(reason); }
  void settle() override {
    control_->settle();
    watch_->settle();
  }
  // The numbers may come from the device.
  void all_reduce(std::vector<int64_t>& values, Reduce how) override {
    watch_->confirm();
    control_->all_reduce(values, how);
  }
  std::vector<std::string> all_gather(const std::string& mine) override {
    watch_->confirm();
    return control_->all_gather(mine);
  }
  std::unique_ptr<Communicator> line(const std::string& name) override {
    const std::string own = lines_.fresh(name);
    return std::make_unique<Nccl>(control_->line(own), watch_, meeting_, options_, own);
  }

  std::shared_ptr<Pending> all_gather(const at::Tensor& whole, const at::Tensor& shard,
                                      const std::string& what) override {
    return run("all_gather of " + what, shard, {whole, shard}, [&](Works& works) {
      at::Tensor out = whole, in = shard;
      follow(backend()._allgather_base(out, in), works);
    });
  }

  std::shared_ptr<Pending> reduce_scatter(const at::Tensor& shard, const at::Tensor& whole, Order order,
                                          const std::string& what) override {
    return run("reduce_scatter of " + what, whole, {whole, shard}, [&](Works& works) {
      if (order == Order::kTree) return tree(shard, whole, works);
      at::Tensor out = shard, in = whole;
      follow(backend()._reduce_scatter_base(out, in), works);
    });
  }

  std::shared_ptr<Pending> all_reduce(const at::Tensor& whole, Order order, const std::string& what) override {
    return run("all_reduce of " + what, whole, {whole}, [&](Works& works) {
      if (order == Order::kFast) {
        std::vector<at::Tensor> tensors{whole};
        return follow(backend().allreduce(tensors), works);
      }
      at::Tensor own = at::empty({whole.numel() / size()}, whole.options()), out = whole;
      tree(own, whole, works);
      follow(backend()._allgather_base(out, own), works);
    });
  }

 private:
  struct Operation;

  c10::DeviceIndex device() const { return static_cast<c10::DeviceIndex>(options_.device); }
  std::string board_name() const { return name_ + " (NCCL)"; }

  // Made at the first tensor: most lines carry control alone.
  c10d::ProcessGroupNCCL& backend() {
    const std::lock_guard lock(making_);
    if (!backend_) {
      auto opts = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
      opts->timeout = std::chrono::hours(24 * 365);  // the deadline is ours
      backend_ = c10::make_intrusive<c10d::ProcessGroupNCCL>(
          c10::make_intrusive<c10d::PrefixStore>("nccl/" + name_, meeting_.store), rank(), size(), opts);
    }
    return *backend_;
  }

  // Our stream, which is the current one here, goes on after `work`.
  static void follow(const c10::intrusive_ptr<c10d::Work>& work, Works& works) {
    if (!work) return;
    work->synchronize();
    // To be asked later. A copy does not keep the tensors, whose memory the next operation is to have.
    using Own = c10d::ProcessGroupNCCL::WorkNCCL;
    const auto* own = dynamic_cast<const Own*>(work.get());
    if (own != nullptr) works.emplace_back(c10::make_intrusive<Own>(*own));
  }

  void tree(const at::Tensor& shard, const at::Tensor& whole, Works& works) {
    tree_reduce_scatter(shard, whole, rank(), size(),
                        [&](const at::Tensor& send, const at::Tensor& receive, int partner) {
                          std::vector<at::Tensor> out{send}, in{receive};
                          // One group: both of a pair send first, which alone would wait for a receiver.
                          backend().startCoalescing();
                          backend().send(out, partner, /*tag=*/0);
                          backend().recv(in, partner, /*tag=*/0);
                          follow(backend().endCoalescing(), works);
                        });
  }

  std::shared_ptr<Pending> run(const std::string& what, const at::Tensor& counted, std::vector<at::Tensor> tensors,
                               const std::function<void(Works&)>& queue);
  void follow(Operation& operation);

  std::unique_ptr<Communicator> control_;
  std::shared_ptr<CollectiveWatch> watch_;  // of all lines
  Meeting meeting_;
  NcclOptions options_;
  std::string name_;
  LineNames lines_;
  c10::cuda::CUDAStream stream_;
  std::mutex making_;  // of backend_, which the watch may abort
  c10::intrusive_ptr<c10d::ProcessGroupNCCL> backend_;
  std::shared_ptr<Times> times_ = std::make_shared<Times>();
  int64_t number_ = 0;  // operations begun
};

struct Nccl::Operation : Pending, CollectiveWatch::Collective {
  Operation(Nccl& of, const std::string& name, std::vector<at::Tensor> used)
      : owner(of), times(of.times_), tensors(std::move(used)) {
    line = of.board_name(), what = name, number = ++of.number_;
  }

  void wait() override { owner.follow(*this); }

  CollectiveWatch::State look() override {
    for (const auto& work : works) {
      if (work->isCompleted() && work->exception()) std::rethrow_exception(work->exception());
    }
    if (!after.query()) {
      return before.query() ? CollectiveWatch::State::kRuns : CollectiveWatch::State::kQueued;
    }
    const std::lock_guard lock(times->mutex);
    times->sum.running_s += before.elapsed_time(after) / 1000.0;
    // Where a stream came to wait for it before it was done.
    if (awaited && asked.query()) times->sum.waited_s += std::max(0.0F, asked.elapsed_time(after)) / 1000.0;
    return CollectiveWatch::State::kEnded;
  }

  Nccl& owner;  // of who waits alone: the watch may look after it is gone
  std::shared_ptr<Times> times;
  std::vector<at::Tensor> tensors;  // kept until a stream waits for it
  Works works;
  // With times: of our stream before and after it, of the first stream that waits when it comes there.
  CUDAEvent before{cudaEventDefault}, after{cudaEventDefault}, asked{cudaEventDefault};
  std::atomic<bool> awaited = false;
};

std::shared_ptr<Pending> Nccl::run(const std::string& what, const at::Tensor& counted, std::vector<at::Tensor> tensors,
                                   const std::function<void(Works&)>& queue) {
  if (options_.verify_calls) {
    const std::string call = fmt::format("{} of {} {}", what, counted.numel(), c10::toString(counted.scalar_type()));
    require_same_call(control_->all_gather(call), rank());
  }
  auto operation = std::make_shared<Operation>(*this, what, std::move(tensors));
  watch_->confirm();
  meeting_.board->begins(operation->line, operation->number, what);
  try {
    CUDAEvent ready;
    ready.record(c10::cuda::getCurrentCUDAStream(device()));
    const c10::cuda::CUDAStreamGuard guard(stream_);
    ready.block(stream_);
    operation->before.record(stream_);
    queue(operation->works);
    operation->after.record(stream_);
  } catch (const std::exception& error) {
    watch_->fail(*operation, line_of(error.what()));
  }
  watch_->add(operation);
  return operation;
}

void Nccl::follow(Operation& operation) {
  watch_->confirm();
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(device());
  if (!operation.awaited) {
    operation.asked.record(stream);
    operation.awaited = true;
  }
  operation.after.block(stream);
  operation.tensors.clear();  // what uses their memory next comes after the wait
}

}  // namespace

extern "C" __attribute__((visibility("default"))) Communicator* limbeck_make_nccl(Communicator* control,
                                                                                  const Meeting* meeting,
                                                                                  const NcclOptions* options) {
  std::unique_ptr<Communicator> line(control);
  refuse_shared_gpu(*line, gpu_name(options->device));
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(options->device));
  leave_errors_to_us();
  auto watch = std::make_shared<CollectiveWatch>(
      line->line("alive"), meeting->board,
      CollectiveWatch::Options{options->first_timeout_s, options->timeout_s,
                               [folder = options->folder, rank = line->rank()] { return dumped_trace(folder, rank); }});
  return std::make_unique<Nccl>(std::move(line), std::move(watch), *meeting, *options, "main").release();
}

}  // namespace limbeck::parallel
