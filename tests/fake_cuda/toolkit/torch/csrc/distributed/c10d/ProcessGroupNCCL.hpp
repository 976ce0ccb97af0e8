// In the place of libtorch_cuda's header: collectives between processes of one machine with fake devices, through the
// store. What our code leans on is as NCCL has it: the group has a stream of its own, which waits for the one that
// calls; an operation ends later, on a thread; one whose partner is gone never ends, until the group is aborted; the
// memory of its tensors is the caller's to keep.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAEvent.h>

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

namespace c10d {

class ProcessGroupNCCL : public c10::intrusive_ptr_target {
 public:
  struct Options : c10::intrusive_ptr_target {
    static c10::intrusive_ptr<Options> create(bool is_high_priority_stream = false);
    std::chrono::milliseconds timeout{};  // nothing here ends by it
    bool is_high_priority_stream = false;
  };

  // Keeps what the operation writes for as long as it lives; a copy of it does not.
  class WorkNCCL : public Work {
   public:
    WorkNCCL(limbeck::fake_cuda::Moment end, c10::DeviceIndex device, bool broken, std::vector<at::Tensor> outputs);
    WorkNCCL(const WorkNCCL& other);
    bool isCompleted() override;
    std::exception_ptr exception() const override;
    void synchronize() override;
    bool wait(std::chrono::milliseconds timeout) override;

   private:
    limbeck::fake_cuda::Moment end_;
    c10::DeviceIndex device_;
    bool broken_;  // NCCL says so by ncclCommGetAsyncError; the operation itself never ends
    std::vector<at::Tensor> outputs_;
  };

  ProcessGroupNCCL(c10::intrusive_ptr<Store> store, int rank, int size, c10::intrusive_ptr<Options> options);
  ~ProcessGroupNCCL() override;

  c10::intrusive_ptr<Work> _allgather_base(at::Tensor& whole, at::Tensor& shard);
  c10::intrusive_ptr<Work> _reduce_scatter_base(at::Tensor& shard, at::Tensor& whole);
  c10::intrusive_ptr<Work> allreduce(std::vector<at::Tensor>& tensors);
  c10::intrusive_ptr<Work> send(std::vector<at::Tensor>& tensors, int to, int tag);
  c10::intrusive_ptr<Work> recv(std::vector<at::Tensor>& tensors, int from, int tag);
  void startCoalescing();
  c10::intrusive_ptr<Work> endCoalescing();
  void abort();
  void shutdown();  // after the operations that are under way

 private:
  class Exchange;
  struct Message {
    int partner;
    at::Tensor tensor;
  };
  using Tensors = std::vector<at::Tensor>;
  using Body = std::function<void(Exchange&, const Tensors& read, Tensors& written)>;

  // `body` gets the tensors' memory as the host has it.
  c10::intrusive_ptr<Work> queue(const char* name, Tensors read, Tensors written, Body body);
  c10::intrusive_ptr<Work> point_to_point();
  limbeck::fake_cuda::Stream stream_for(const at::Tensor& tensor);

  std::shared_ptr<Exchange> exchange_;  // the thread's too
  int rank_, size_;
  std::optional<limbeck::fake_cuda::Stream> stream_;
  bool grouped_ = false;
  std::vector<Message> sends_, receives_;  // of the group that is open
};

// The operations of this process that are begun, oldest first.
std::string dump_nccl_trace_json(bool includeCollectives, bool onlyActive);

}  // namespace c10d
