// Which part of each trained parameter this rank updates, and how the gradients of micro-batches and of ranks become
// one sum. The optimizer knows shares alone: whether there is one rank or many, and who holds what, is decided here.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "modules/models/network/weight_keeper.h"
#include "trainer/parallel/sharing/unit_layout.h"
#include "trainer/parallel/sums/exact_sum.h"

namespace limbeck::parallel {

struct Share {
  at::Tensor weight;  // the parameter, or the 1-D part of it that this rank updates; no elements: none of it
  int64_t begin = 0;  // its first element, counted in the parameter
};

class ParameterShares {
 public:
  virtual ~ParameterShares() = default;

  const std::vector<Share>& shares() const { return shares_; }  // by parameter

  // After each backward: the .grad of every parameter joins the sum and is freed.
  virtual void accumulate(int64_t micro_batch, int64_t micro_batches) = 0;
  // After the last one: the sums are complete, over ranks too.
  virtual void finish() = 0;
  // Of the share, in the shape of its weight; undefined: no rank had one. Valid from finish() to drop().
  virtual at::Tensor gradient(size_t parameter) const = 0;
  virtual void drop() = 0;
  // The weights of the shares have changed: every rank gets what it computes with.
  virtual void publish() {}
  // What publish() began is done: until then the shares may be part of what an operation fills, and nobody may read
  // them.
  virtual void settle() {}
  // Whole weights on every rank, until release(): to save, to compare, to follow.
  virtual void gather_all() {}
  virtual void release() {}
  // Runs `use` on the first rank while all others serve it: whole weights for one reader, without a rank that holds all
  // of them. A parameter's memory, or a view of it, is there from fetch() of it to the next fetch().
  using Fetch = std::function<void(const at::Tensor& parameter)>;
  virtual void lend(const std::function<void(const Fetch&)>& use) {
    use([](const at::Tensor&) {});
  }

  // A sum over the shares of this rank becomes that over all parameters.
  virtual void complete(ExactSum& sum) { (void)sum; }
  // The smallest of the ranks' numbers; -1: none.
  virtual int64_t first_of_all(int64_t index) { return index; }
  // Whether this rank saves the share of a parameter (each is saved by one rank).
  virtual bool saves(size_t parameter) const { return shares_[parameter].weight.numel() > 0; }
  // Fetches layers before they compute and frees them after, or null: they are there all the time.
  virtual models::WeightKeeper* keeper() { return nullptr; }

 protected:
  std::vector<Share> shares_;
};

// One rank that holds everything, sums in the order in which gradients come.
std::unique_ptr<ParameterShares> make_whole(const std::vector<NamedParameter>& parameters);

struct SharingOptions {
  int zero = 0;  // 0: every rank holds everything; 1: updates its part; 2: keeps gradients of its part; 3: and weights
  Order order = Order::kFast;
  int64_t micro_batches = 1;  // of an update on this rank; with kTree a power of two, as the number of ranks
};

std::unique_ptr<ParameterShares> make_shared_out(Communicator& ranks, const SharingOptions& options,
                                                 const std::vector<NamedParameter>& parameters);

}  // namespace limbeck::parallel
