#include "trainer/parallel/sharing/unit_weights.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

namespace limbeck::parallel {
namespace {

void empty_storage(const at::Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  storage.set_data_ptr_noswap(storage.allocator()->allocate(0));
  storage.set_nbytes(0);
}

void fill_storage(const at::Tensor& tensor, BufferPool& pool) {
  const c10::Storage& storage = tensor.storage();
  const auto bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
  storage.set_data_ptr_noswap(pool.lend(storage.allocator(), bytes));
  storage.set_nbytes(bytes);
}

}  // namespace

UnitWeights::UnitWeights(Communicator& ranks, BufferPool& pool, const UnitLayout& layout,
                         const std::vector<NamedParameter>& parameters, bool stays)
    : ranks_(&ranks), pool_(&pool), layout_(layout), stays_(stays) {
  const at::NoGradGuard no_gradient;
  const auto options = parameters[layout.members.front().parameter].tensor.options().requires_grad(false);
  whole_ = stays ? at::zeros({layout.length}, options) : pool.tensor(layout.length, options).zero_();
  for (const UnitLayout::Member& member : layout.members) {
    const at::Tensor& parameter = parameters[member.parameter].tensor;
    const at::Tensor place = whole_.narrow(0, member.offset, member.count).view(parameter.sizes());
    place.copy_(parameter.detach());
    // The parameter keeps its own count of versions: filling the whole anew is no change of a saved weight.
    parameter.set_data(place);
  }
  const Range own = layout.shard(ranks.rank(), ranks.size());
  shard_ = whole_.narrow(0, own.begin, own.size());
  if (stays) return;
  shard_ = shard_.clone();
  free();
}

void UnitWeights::gather() {
  if (there_) return;
  there_ = true;
  if (!stays_) fill_storage(whole_, *pool_);
  pending_ = ranks_->all_gather(whole_, shard_, layout_.name);
}

void UnitWeights::wait() {
  gather();
  settle();
}

void UnitWeights::settle() {
  if (pending_ == nullptr) return;
  pending_->wait();
  pending_.reset();
}

void UnitWeights::free() {
  if (stays_ || !there_) return;
  wait();
  empty_storage(whole_);
  there_ = false;
}

void UnitWeights::changed() {
  wait();
  free();
  there_ = false;
}

void LayerWeights::add(UnitWeights* unit, bool freed_after_use) {
  frees_ = frees_ || freed_after_use;
  const auto place = static_cast<size_t>(unit->layout().layer + 1);
  if (by_layer_.size() <= place) by_layer_.resize(place + 1);
  by_layer_[place].push_back(unit);
}

void LayerWeights::before_forward(int64_t layer) {
  for (UnitWeights* unit : of(layer)) unit->gather();
  if (has(layer + 1)) {
    for (UnitWeights* unit : of(layer + 1)) unit->gather();
  }
  for (UnitWeights* unit : of(layer)) unit->wait();
}

void LayerWeights::after_forward(int64_t layer) {
  // The backward begins with the last layer.
  if (!frees_ || !has(layer) || (at::GradMode::is_enabled() && !has(layer + 1))) return;
  for (UnitWeights* unit : of(layer)) unit->free();
}

void LayerWeights::before_backward(int64_t layer) {
  for (UnitWeights* unit : of(layer)) unit->gather();
  if (has(layer - 1)) {
    for (UnitWeights* unit : of(layer - 1)) unit->gather();
  }
  for (UnitWeights* unit : of(layer)) unit->wait();
}

void LayerWeights::after_backward(int64_t layer) {
  if (!frees_ || !has(layer)) return;
  for (UnitWeights* unit : of(layer)) unit->free();
}

void LayerWeights::free_layers() {
  if (!frees_) return;
  for (size_t place = 1; place < by_layer_.size(); ++place) {
    for (UnitWeights* unit : by_layer_[place]) unit->free();
  }
}

}  // namespace limbeck::parallel
