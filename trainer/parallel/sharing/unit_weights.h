// The weights of a unit that ranks divide among them: the part of this rank, and the whole, which is gathered when it
// is needed and, where it does not stay, freed after use. The parameters are views of the whole all the time.
#pragma once
#include <memory>

#include "modules/models/network/weight_keeper.h"
#include "trainer/parallel/communicator.h"
#include "trainer/parallel/sharing/buffer_pool.h"
#include "trainer/parallel/sharing/unit_layout.h"

namespace limbeck::parallel {

class UnitWeights {
 public:
  // Takes the parameters over: their values stay, their memory is that of the unit. `stays`: the whole is kept; else it
  // is borrowed from the pool, which outlives this.
  UnitWeights(Communicator& ranks, BufferPool& pool, const UnitLayout& layout,
              const std::vector<NamedParameter>& parameters, bool stays);

  const UnitLayout& layout() const { return layout_; }
  const at::Tensor& shard() const { return shard_; }  // [length / ranks]
  bool holds(const at::Tensor& view) const { return view.storage().is_alias_of(whole_.storage()); }
  void gather();   // begins to fetch, unless the whole is there or on its way
  void wait();     // until it is there
  void settle();   // until what is on its way is there
  void free();     // unless it stays
  void changed();  // the shards were updated: what is there is old

 private:
  Communicator* ranks_;
  BufferPool* pool_;
  UnitLayout layout_;
  bool stays_, there_ = true;
  at::Tensor whole_, shard_;
  std::shared_ptr<Pending> pending_;
};

// The units of one model: everything outside of its layers stays from the first use to the next change; a layer is
// fetched one ahead, and freed after use.
class LayerWeights : public models::WeightKeeper {
 public:
  void add(UnitWeights* unit, bool freed_after_use);
  void before_forward(int64_t layer) override;
  void after_forward(int64_t layer) override;
  bool follows_backward() const override { return frees_; }
  void before_backward(int64_t layer) override;
  void after_backward(int64_t layer) override;
  void free_layers();  // after a backward that ended early

 private:
  using Units = std::vector<UnitWeights*>;
  Units& of(int64_t layer) { return by_layer_[static_cast<size_t>(layer + 1)]; }
  bool has(int64_t layer) const { return layer >= 0 && layer + 1 < static_cast<int64_t>(by_layer_.size()); }

  std::vector<Units> by_layer_ = std::vector<Units>(1);  // [0]: outside
  bool frees_ = false;
};

}  // namespace limbeck::parallel
