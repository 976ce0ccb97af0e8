// The ranks of one run, as the rest of the program sees them: who I am, and the few things ranks do together.
// Bodies: one process alone (solo), Gloo between processes, NCCL between GPUs; the loop knows none of them.
// Every rank makes the same calls in the same order. A rank that is late, gone or asks for another shape ends in
// DistributedError, which names the rank and the operation, and never in a hang.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace limbeck::parallel {

enum class Reduce { kSum, kMin, kMax };

// How gradients of ranks are added. kFast: as the backend does it, in an order that depends on the number of ranks.
// kTree: a fixed binary tree over the ranks (adjacent ranks first), so that 1, 2, 4 and 8 ranks give the same bits.
enum class Order { kFast, kTree };

// An operation under way. After wait() its tensors may be used: by the host, or on a GPU by what the current stream is
// given from here on; it throws what is known to have gone wrong.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;
};

// Of tensor operations since the start: how long they ran, and how long somebody stood still for them.
struct CommunicationTime {
  double running_s = 0, waited_s = 0;
  double hidden_share() const { return running_s > waited_s ? 1 - waited_s / running_s : 0; }
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Control: a few numbers or a text of each rank, on the CPU. Blocks.
  virtual void all_reduce(std::vector<int64_t>& values, Reduce how) = 0;
  virtual std::vector<std::string> all_gather(const std::string& mine) = 0;  // by rank

  // Tensors, contiguous, 1-D, on the device of the run. `what` names the operation in messages ("student.layers.3").
  // whole: size() * shard elements. all_gather fills `whole` from each rank's `shard`, which may be its own part of it.
  // reduce_scatter leaves in `shard` this rank's part of the sum; `whole` is scratch afterwards.
  virtual std::shared_ptr<Pending> all_gather(const at::Tensor& whole, const at::Tensor& shard,
                                              const std::string& what) = 0;
  virtual std::shared_ptr<Pending> reduce_scatter(const at::Tensor& shard, const at::Tensor& whole, Order order,
                                                  const std::string& what) = 0;
  // The sum over ranks in place; with kTree the size must be a multiple of size().
  virtual std::shared_ptr<Pending> all_reduce(const at::Tensor& whole, Order order, const std::string& what) = 0;

  // Throws what went wrong with operations that streams wait for, and not the host: what it has read from the device
  // counts after this.
  virtual void confirm() {}
  virtual CommunicationTime time() const { return {}; }
  // Says to the other ranks why this one ends, so that they name the cause and not its silence.
  virtual void farewell(const std::string& reason) { (void)reason; }
  // The steady state has begun: from here on a late rank is waited for as long as parallel.timeout says.
  virtual void settle() {}

  // Another line to the same ranks, for a thread of its own; every rank asks for the same names in the same order.
  virtual std::unique_ptr<Communicator> line(const std::string& name) = 0;
};

// One process alone: every operation is done at once.
std::unique_ptr<Communicator> make_solo();

// The first of so many ranks that are only planned: tensors are on meta, and no operation has anything to do.
std::unique_ptr<Communicator> make_planned(int size);

}  // namespace limbeck::parallel
