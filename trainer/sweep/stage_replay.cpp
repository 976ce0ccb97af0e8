#include "trainer/sweep/stage_replay.h"

#include <algorithm>

namespace limbeck::sweep {

namespace {

// What is kept lives on, so its memory is nobody else's.
bool same_memory(const at::Tensor& one, const at::Tensor& other) {
  return one.defined() && other.defined() && one.const_data_ptr() == other.const_data_ptr() &&
         one.sizes() == other.sizes() && one.strides() == other.strides() && one.scalar_type() == other.scalar_type();
}

}  // namespace

void StageReplay::record() {
  recording_ = true;
  kept_.clear();
  inputs_.clear();
}

void StageReplay::replay(const std::vector<std::string>& changed) {
  recording_ = false;
  changed_ = changed;
  first_changed_ = kept_.size();
  for (const std::string& path : changed) {
    const auto found = kept_.find(path);
    // What was not heard of may have run anywhere.
    first_changed_ = std::min(first_changed_, found == kept_.end() ? 0 : found->second.place);
  }
}

bool StageReplay::holds_changed(const std::string& path) const {
  return std::any_of(changed_.begin(), changed_.end(),
                     [&](const std::string& changed) { return changed == path || changed.starts_with(path + "."); });
}

at::Tensor StageReplay::known(const std::string& path, const at::Tensor& x) {
  if (recording_) return {};
  const auto found = kept_.find(path);
  if (found == kept_.end() || found->second.again || holds_changed(path)) return {};
  return found->second.place < first_changed_ || same_memory(x, found->second.x) ? found->second.y : at::Tensor();
}

void StageReplay::computed(const std::string& path, const at::Tensor& x, const at::Tensor& y) {
  if (!recording_) return;
  const auto [found, is_new] = kept_.emplace(path, Kept{kept_.size(), x, y});
  if (!is_new) found->second.again = true;
}

void StageReplay::input(const precision::ContractModule& module, const at::Tensor& x) {
  if (recording_) inputs_[module.path()].x = x;
}

void StageReplay::routing(const precision::ContractModule& module, const at::Tensor& experts_nk,
                          const at::Tensor& weights_nk) {
  if (!recording_) return;
  inputs_[module.path()].experts_nk = experts_nk;
  inputs_[module.path()].weights_nk = weights_nk;
}

const KeptInput* StageReplay::input_of(const std::string& path) const {
  const auto found = inputs_.find(path);
  return found == inputs_.end() ? nullptr : &found->second;
}

}  // namespace limbeck::sweep
