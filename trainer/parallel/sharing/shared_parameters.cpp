#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <functional>
#include <limits>
#include <optional>
#include <stdexcept>

#include "trainer/parallel/sharing/gradient_unit.h"
#include "trainer/parallel/sharing/parameter_shares.h"
#include "trainer/parallel/sharing/unit_weights.h"

namespace limbeck::parallel {
namespace {

constexpr size_t kUnitsInFlight = 1;  // and one that backward fills

// Runs in backward as soon as a parameter's .grad is complete.
class WhenGradientIsThere : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit WhenGradientIsThere(std::function<void()> then) : then_(std::move(then)) {}
  void operator()(const torch::autograd::Variable&) override { then_(); }

 private:
  std::function<void()> then_;
};

class SharedParameters : public ParameterShares {
 public:
  SharedParameters(Communicator& ranks, const SharingOptions& options, const std::vector<NamedParameter>& parameters)
      : ranks_(ranks), options_(options), parameters_(parameters), had_gradient_(parameters.size(), 0) {
    const GradientPlan plan{options.zero, options.order};
    const std::vector<UnitLayout> layouts = lay_out(parameters, ranks.size());
    places_.resize(parameters.size());
    shares_.resize(parameters.size());
    for (const UnitLayout& layout : layouts) {
      for (size_t i = 0; i < layout.members.size(); ++i) places_[layout.members[i].parameter] = {units_.size(), i};
      units_.push_back({layout, plan, ranks, pool_, parameters});
      Unit& unit = units_.back();
      if (options.zero > 0) {
        unit.weights = std::make_unique<UnitWeights>(ranks, pool_, layout, parameters, /*stays=*/options.zero < 3);
      }
      make_shares(unit);
    }
    if (options.zero > 0) {
      for (Unit& unit : units_) keeper_.add(unit.weights.get(), options.zero >= 3);
    }
    next_ = units_.size();
    for (size_t i = 0; i < parameters.size(); ++i) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameters[i].tensor,
                                                     std::make_unique<WhenGradientIsThere>([this, i] { came(i); }));
    }
  }

  ~SharedParameters() override {
    for (const NamedParameter& parameter : parameters_) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameter.tensor, nullptr);
    }
  }

  void accumulate(int64_t micro_batch, int64_t micro_batches) override {
    if (micro_batches != options_.micro_batches || micro_batch != micro_batch_) {
      throw std::logic_error("micro-batches came in another number or order than was agreed with the other ranks");
    }
    if (closes()) {
      close_until(0);
    } else {
      for (Unit& unit : units_) unit.gradients.go_on();
    }
    next_ = units_.size();
    micro_batch_ = (micro_batch_ + 1) % options_.micro_batches;
    keeper_.free_layers();
  }

  void finish() override {
    for (size_t i = units_.size(); i-- > 0;) units_[i].gradients.finish();
    ranks_.all_reduce(had_gradient_, Reduce::kMax);
  }

  at::Tensor gradient(size_t parameter) const override {
    const Place& place = places_[parameter];
    const Unit& unit = units_[place.unit];
    const at::Tensor& sum = unit.gradients.sum();
    if (had_gradient_[parameter] == 0 || !sum.defined()) return {};
    const UnitLayout::Member& member = unit.layout().members[place.member];
    if (options_.zero == 0) {
      return sum.narrow(0, member.offset, member.count).view(parameters_[parameter].tensor.sizes());
    }
    return in_shard(unit, member, sum);
  }

  void drop() override {
    for (Unit& unit : units_) unit.gradients.drop();
    had_gradient_.assign(had_gradient_.size(), 0);
  }

  void publish() override {
    for (Unit& unit : units_) {
      if (unit.weights) unit.weights->changed();
    }
    if (options_.zero == 0 || options_.zero >= 3) return;
    for (Unit& unit : units_) unit.weights->gather();  // meets the next forward
  }

  void settle() override {
    for (Unit& unit : units_) {
      if (unit.weights) unit.weights->settle();
    }
  }

  void gather_all() override {
    for (Unit& unit : units_) {
      if (unit.weights) unit.weights->wait();
    }
  }

  void release() override { keeper_.free_layers(); }

  void lend(const std::function<void(const Fetch&)>& use) override {
    const bool reads = ranks_.rank() == 0;
    if (options_.zero < 3) {
      gather_all();
      if (reads) use([](const at::Tensor&) {});
      return;
    }
    if (!reads) return serve();
    try {
      use([this](const at::Tensor& parameter) {
        for (size_t i = 0; i < units_.size(); ++i) {
          if (units_[i].weights->holds(parameter)) return call_for(i);
        }
      });
    } catch (...) {
      call_for(units_.size());
      throw;
    }
    call_for(units_.size());
  }

  void complete(ExactSum& sum) override {
    ranks_.confirm();
    if (options_.zero > 0) all_reduce(ranks_, {&sum});
  }

  int64_t first_of_all(int64_t index) override {
    std::vector<int64_t> numbers{index < 0 ? std::numeric_limits<int64_t>::max() : index};
    ranks_.all_reduce(numbers, Reduce::kMin);
    return numbers[0] == std::numeric_limits<int64_t>::max() ? -1 : numbers[0];
  }

  bool saves(size_t parameter) const override {
    if (options_.zero > 0) return shares_[parameter].weight.numel() > 0;
    return static_cast<int>(parameter % static_cast<size_t>(ranks_.size())) == ranks_.rank();
  }

  models::WeightKeeper* keeper() override { return options_.zero > 0 ? &keeper_ : nullptr; }

 private:
  struct Unit {
    Unit(const UnitLayout& layout, const GradientPlan& plan, Communicator& ranks, BufferPool& pool,
         const std::vector<NamedParameter>& parameters)
        : gradients(ranks, pool, layout, plan, parameters[layout.members.front().parameter].tensor) {}
    const UnitLayout& layout() const { return gradients.layout(); }
    GradientUnit gradients;
    std::unique_ptr<UnitWeights> weights;  // where optimizer states are divided
  };
  struct Place {
    size_t unit = 0, member = 0;
  };

  Range own(const Unit& unit) const { return unit.layout().shard(ranks_.rank(), ranks_.size()); }

  // lend(): the first rank names the unit that it reads next, or their number at the end; all fetch that one.
  void call_for(size_t unit) {
    if (called_ == unit) return;
    std::vector<int64_t> next{static_cast<int64_t>(unit)};
    ranks_.all_reduce(next, Reduce::kMax);
    come(unit);
  }

  void serve() {
    do {
      std::vector<int64_t> next{-1};
      ranks_.all_reduce(next, Reduce::kMax);
      come(static_cast<size_t>(next[0]));
    } while (called_);
  }

  void come(size_t unit) {
    if (called_ && units_[*called_].layout().layer >= 0) units_[*called_].weights->free();
    called_.reset();
    if (unit == units_.size()) return;
    units_[unit].weights->wait();
    called_ = unit;
  }

  // The elements of a member that this rank's shard holds.
  at::Tensor in_shard(const Unit& unit, const UnitLayout::Member& member, const at::Tensor& shard) const {
    const Range range = own(unit), part = UnitLayout::part(member, range);
    if (part.size() == 0) return shard.narrow(0, 0, 0);
    return shard.narrow(0, member.offset + part.begin - range.begin, part.size());
  }

  void make_shares(const Unit& unit) {
    for (const UnitLayout::Member& member : unit.layout().members) {
      Share& share = shares_[member.parameter];
      if (!unit.weights) {
        share = {parameters_[member.parameter].tensor, 0};
      } else {
        share = {in_shard(unit, member, unit.weights->shard()), UnitLayout::part(member, own(unit)).begin};
      }
    }
  }

  void came(size_t parameter) {
    const at::NoGradGuard no_gradient;
    const at::Tensor gradient = taken_gradient(parameters_[parameter].tensor);
    if (!gradient.defined()) return;
    had_gradient_[parameter] = 1;
    const Place& place = places_[parameter];
    units_[place.unit].gradients.put(place.member, gradient);
    // In one order on all ranks: the last unit first, as backward makes them.
    if (!closes()) return;
    size_t ready = next_;
    while (ready > 0 && units_[ready - 1].gradients.all_came()) --ready;
    close_until(ready);
  }

  // Whether units are done with the micro-batch under way: always, but where wholes are added before the ranks meet.
  bool last() const { return micro_batch_ + 1 == options_.micro_batches; }
  bool closes() const { return last() || options_.zero >= 2 || options_.order == Order::kTree; }

  void close_until(size_t first) {
    const at::NoGradGuard no_gradient;
    for (; next_ > first; --next_) {
      units_[next_ - 1].gradients.close(last());
      // While one is sent the next one is filled; more in flight would be memory and no more overlap.
      if (next_ - 1 + kUnitsInFlight < units_.size()) units_[next_ - 1 + kUnitsInFlight].gradients.collect();
    }
  }

  Communicator& ranks_;
  SharingOptions options_;
  std::vector<NamedParameter> parameters_;
  BufferPool pool_;                    // before the units
  std::vector<int64_t> had_gradient_;  // by parameter, in this update; after finish(): on any rank
  std::vector<Unit> units_;
  std::vector<Place> places_;  // by parameter
  LayerWeights keeper_;
  int64_t micro_batch_ = 0;
  size_t next_ = 0;               // units at and above it are closed
  std::optional<size_t> called_;  // by lend(), and there
};

}  // namespace

std::unique_ptr<ParameterShares> make_shared_out(Communicator& ranks, const SharingOptions& options,
                                                 const std::vector<NamedParameter>& parameters) {
  return std::make_unique<SharedParameters>(ranks, options, parameters);
}

}  // namespace limbeck::parallel
