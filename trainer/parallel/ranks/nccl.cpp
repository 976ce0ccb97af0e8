#include "trainer/parallel/ranks/nccl.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "trainer/parallel/ranks/line_names.h"
#include "trainer/parallel/ranks/same_call.h"
#include "trainer/parallel/sums/tree_sum.h"

namespace limbeck::parallel {
namespace {

using Clock = std::chrono::steady_clock;
using Works = std::vector<c10::intrusive_ptr<c10d::Work>>;
using at::cuda::CUDAEvent;

constexpr auto kSpin = std::chrono::microseconds(200), kNap = std::chrono::microseconds(50);

double seconds_from(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

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

// The last operations of this process as c10d's flight recorder saw them.
std::string dumped_trace(int rank) {
  const auto path = std::filesystem::temp_directory_path() /
                    fmt::format("limbeck-nccl-trace-rank{}-process{}.json", rank, ::getpid());
  try {
    io::write_atomically(path, c10d::dump_nccl_trace_json(/*includeCollectives=*/true, /*onlyActive=*/false));
  } catch (const IoError&) {
    return "";  // what it would help to explain is told all the same
  }
  return path.string();
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

// One line. Tensor operations are queued on a stream of the line's own, which waits for the caller's; the stream of who
// waits for an operation waits for that.
class Nccl : public Communicator {
 public:
  Nccl(std::unique_ptr<Communicator> control, const Meeting& meeting, const NcclOptions& options,
       const std::string& name)
      : control_(std::move(control)),
        meeting_(meeting),
        options_(options),
        name_(name),
        timeout_s_(options.first_timeout_s),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device())) {}

  ~Nccl() override {
    if (!backend_) return;
    try {
      // An orderly end waits for the other ranks; after a failure they may never come.
      open_ > 0 ? backend_->abort() : backend_->shutdown();
    } catch (const std::exception&) {
      // The process is at its end, and what went wrong has been said.
    }
  }

  int rank() const override { return control_->rank(); }
  int size() const override { return control_->size(); }
  CommunicationTime time() const override { return time_; }
  void farewell(const std::string& reason) override { control_->farewell(reason); }
  void settle() override {
    control_->settle();
    timeout_s_ = options_.timeout_s;
  }
  void all_reduce(std::vector<int64_t>& values, Reduce how) override { control_->all_reduce(values, how); }
  std::vector<std::string> all_gather(const std::string& mine) override { return control_->all_gather(mine); }
  std::unique_ptr<Communicator> line(const std::string& name) override {
    const std::string own = lines_.fresh(name);
    return std::make_unique<Nccl>(control_->line(own), meeting_, options_, own);
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

  // Made at the first tensor: most lines carry control alone.
  c10d::ProcessGroupNCCL& backend() {
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
    works.push_back(work);
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
  void finish(Operation& operation);
  [[noreturn]] void fail(const Operation& operation, const std::string& symptom);

  std::unique_ptr<Communicator> control_;
  Meeting meeting_;
  NcclOptions options_;
  std::string name_;
  LineNames lines_;
  double timeout_s_;
  c10::cuda::CUDAStream stream_;
  c10::intrusive_ptr<c10d::ProcessGroupNCCL> backend_;
  CommunicationTime time_;
  int64_t number_ = 0, open_ = 0;  // operations begun; not waited for, or failed
};

struct Nccl::Operation : Pending {
  Operation(Nccl& line, std::string name, std::vector<at::Tensor> used)
      : owner(line), what(std::move(name)), number(++line.number_), tensors(std::move(used)) {}
  void wait() override {
    if (!done) owner.finish(*this);
  }

  Nccl& owner;
  std::string what;
  int64_t number;
  std::vector<at::Tensor> tensors;  // kept until they are done with
  Works works;
  CUDAEvent before{cudaEventDefault}, after{cudaEventDefault};  // with times
  bool done = false;
};

std::shared_ptr<Pending> Nccl::run(const std::string& what, const at::Tensor& counted, std::vector<at::Tensor> tensors,
                                   const std::function<void(Works&)>& queue) {
  if (options_.verify_calls) {
    const std::string call = fmt::format("{} of {} {}", what, counted.numel(), c10::toString(counted.scalar_type()));
    require_same_call(control_->all_gather(call), rank());
  }
  auto operation = std::make_shared<Operation>(*this, what, std::move(tensors));
  ++open_;
  meeting_.board->begins(name_ + " (NCCL)", operation->number, what);
  try {
    CUDAEvent ready;
    ready.record(c10::cuda::getCurrentCUDAStream(device()));
    const c10::cuda::CUDAStreamGuard guard(stream_);
    ready.block(stream_);
    operation->before.record(stream_);
    queue(operation->works);
    operation->after.record(stream_);
  } catch (const std::exception& error) {
    fail(*operation, line_of(error.what()));
  }
  return operation;
}

// Waits on the CPU too: a GPU cannot be given a deadline, and a rank that is gone is seen by polling alone.
void Nccl::finish(Operation& operation) {
  const auto begin = Clock::now();
  try {
    operation.after.block(c10::cuda::getCurrentCUDAStream(device()));
    while (!operation.after.query()) {
      for (const auto& work : operation.works) {
        if (!work->isCompleted() || !work->exception()) continue;
        std::rethrow_exception(work->exception());
      }
      const double waited = seconds_from(begin);
      if (waited > timeout_s_) {
        fail(operation, fmt::format("not done within {:.0f} s (parallel.{})", timeout_s_,
                                    timeout_s_ == options_.timeout_s ? "timeout" : "first_timeout"));
      }
      if (Clock::now() - begin > kSpin) std::this_thread::sleep_for(kNap);
    }
    time_.running_s += operation.before.elapsed_time(operation.after) / 1000.0;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail(operation, line_of(error.what()));
  }
  time_.waited_s += seconds_from(begin);
  operation.done = true;
  operation.works.clear();
  operation.tensors.clear();
  --open_;
  meeting_.board->ended(name_ + " (NCCL)", operation.number, operation.what);
}

void Nccl::fail(const Operation& operation, const std::string& symptom) {
  const std::string blame = meeting_.board->blame(name_ + " (NCCL)", operation.number, operation.what, symptom);
  std::string trace;
  try {
    trace = dumped_trace(rank());
    if (backend_) backend_->abort();  // kernels that wait for the other ranks would keep the process from ending
  } catch (const std::exception&) {
    // The message matters more.
  }
  throw DistributedError(blame + (trace.empty() ? "" : fmt::format("; the last operations are in {}", trace)));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) Communicator* limbeck_make_nccl(Communicator* control,
                                                                                  const Meeting* meeting,
                                                                                  const NcclOptions* options) {
  std::unique_ptr<Communicator> line(control);
  refuse_shared_gpu(*line, gpu_name(options->device));
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(options->device));
  leave_errors_to_us();
  return std::make_unique<Nccl>(std::move(line), *meeting, *options, "main").release();
}

}  // namespace limbeck::parallel
