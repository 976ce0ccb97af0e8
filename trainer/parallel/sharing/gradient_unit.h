// The gradients of one unit on their way from backward to the optimizer: gathered in one wide tensor, added over
// micro-batches, added over ranks. Where every rank keeps its part alone, each micro-batch is added over the ranks
// first and the parts afterwards; else the other way round, with one operation an update. In a tree of sums both are
// the same.
#pragma once
#include <memory>

#include "trainer/parallel/communicator.h"
#include "trainer/parallel/sharing/buffer_pool.h"
#include "trainer/parallel/sharing/unit_layout.h"
#include "trainer/parallel/sums/wide_sum.h"

namespace limbeck::parallel {

struct GradientPlan {
  int zero = 0;
  Order order = Order::kFast;
  bool parts_first() const { return zero >= 2; }
  bool divided() const { return zero >= 1; }
};

class GradientUnit {
 public:
  GradientUnit(Communicator& ranks, BufferPool& pool, const UnitLayout& layout, const GradientPlan& plan,
               const at::Tensor& like);

  // The gradient of the member-th parameter in this micro-batch, in its own dtype.
  void put(size_t member, const at::Tensor& gradient);
  bool all_came() const { return missing_ == 0; }
  // The micro-batch is over for this unit; after the last one, or for parts, the ranks' sum begins.
  void close(bool last);
  // The micro-batch is over, and the next one is added to the same tensor.
  void go_on() { missing_ = layout_.members.size(); }
  void collect();  // waits for the part under way, and adds it to the sum of parts
  void finish();   // waits for the sum
  void drop();

  const UnitLayout& layout() const { return layout_; }
  // The sum: of the whole unit, or of this rank's shard.
  const at::Tensor& sum() const { return sum_; }

 private:
  at::Tensor fresh_leaf() const;

  Communicator* ranks_;
  BufferPool* pool_;
  UnitLayout layout_;
  GradientPlan plan_;
  c10::TensorOptions wide_;
  std::vector<bool> filled_;  // members of leaf_
  size_t missing_;            // gradients of this micro-batch
  at::Tensor leaf_;
  WideSum before_, parts_;  // over micro-batches: of wholes, of parts
  std::shared_ptr<Pending> pending_;
  at::Tensor part_;  // under way
  at::Tensor sum_;
};

}  // namespace limbeck::parallel
