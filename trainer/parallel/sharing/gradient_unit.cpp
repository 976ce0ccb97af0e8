#include "trainer/parallel/sharing/gradient_unit.h"

#include <algorithm>

#include "kernels/adamw/adamw.h"
#include "kernels/operator/wide_type.h"
#include "modules/precision/casts.h"

namespace limbeck::parallel {

GradientUnit::GradientUnit(Communicator& ranks, BufferPool& pool, const UnitLayout& layout, const GradientPlan& plan,
                           const at::Tensor& like)
    : ranks_(&ranks),
      pool_(&pool),
      layout_(layout),
      plan_(plan),
      wide_(like.options().dtype(kernels::wide_type(like)).requires_grad(false)),
      filled_(layout.members.size(), false),
      missing_(layout.members.size()),
      before_(plan.order),
      parts_(plan.order) {}

at::Tensor GradientUnit::fresh_leaf() const { return pool_->tensor(layout_.length, wide_).zero_(); }

void GradientUnit::put(size_t member, const at::Tensor& gradient) {
  if (!leaf_.defined()) leaf_ = fresh_leaf();
  const UnitLayout::Member& place = layout_.members[member];
  at::Tensor slot = leaf_.narrow(0, place.offset, place.count).view(gradient.sizes());
  --missing_;
  if (filled_[member]) {
    kernels::accumulate_(slot, gradient);
    return;
  }
  precision::cast_into(slot, gradient, "update (sum of gradients)");
  filled_[member] = true;
}

void GradientUnit::close(bool last) {
  if (!leaf_.defined()) leaf_ = fresh_leaf();
  for (size_t i = 0; i < filled_.size(); ++i) {
    if (!filled_[i]) leaf_.narrow(0, layout_.members[i].offset, layout_.members[i].count).zero_();
  }
  filled_.assign(filled_.size(), false);
  missing_ = filled_.size();
  if (plan_.parts_first()) {
    collect();
    part_ = pool_->tensor(layout_.length / ranks_->size(), wide_);
    pending_ = ranks_->reduce_scatter(part_, leaf_, plan_.order, layout_.name);
    leaf_.reset();  // lives until it was sent
    return;
  }
  before_.add(std::move(leaf_));
  leaf_.reset();
  if (!last) return;
  const at::Tensor total = before_.take();
  if (plan_.divided()) {
    sum_ = pool_->tensor(layout_.length / ranks_->size(), wide_);
    pending_ = ranks_->reduce_scatter(sum_, total, plan_.order, layout_.name);
  } else {
    sum_ = total;
    pending_ = ranks_->all_reduce(sum_, plan_.order, layout_.name);
  }
}

void GradientUnit::collect() {
  if (!part_.defined()) return;
  pending_->wait();
  pending_.reset();
  parts_.add(std::move(part_));
  part_.reset();
}

void GradientUnit::finish() {
  collect();
  if (plan_.parts_first()) sum_ = parts_.take();
  if (pending_ != nullptr) pending_->wait();
  pending_.reset();
}

void GradientUnit::drop() { sum_.reset(); }

}  // namespace limbeck::parallel
