#include "modules/models/network/layer_input.h"

namespace limbeck::models {

Taps Taps::asking_the_same() const {
  Taps fresh;
  fresh.keep_attention = keep_attention, fresh.keep_router = keep_router, fresh.keep_adapted = keep_adapted;
  fresh.keep_mixed = keep_mixed;
  return fresh;
}

std::vector<at::Tensor*> Taps::kept() {
  std::vector<at::Tensor*> all;
  for (Operands& operands : attention) all.insert(all.end(), {&operands.query_bthd, &operands.key_bshd});
  for (at::Tensor& one : mixed) all.push_back(&one);
  for (at::Tensor& logits : router_logits) all.push_back(&logits);
  for (Adapted& one : adapted) {
    all.push_back(&one.low_btr);
    for (auto& [name, penalty] : one.penalties) all.push_back(&penalty);
  }
  return all;
}

void Taps::take_over(const Taps& later) {
  attention.insert(attention.end(), later.attention.begin(), later.attention.end());
  mixed.insert(mixed.end(), later.mixed.begin(), later.mixed.end());
  router_logits.insert(router_logits.end(), later.router_logits.begin(), later.router_logits.end());
  adapted.insert(adapted.end(), later.adapted.begin(), later.adapted.end());
}

}  // namespace limbeck::models
