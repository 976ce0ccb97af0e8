#include "tests/trainer/textbook_divergences.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/trainer/tiny_distillation.h"
#include "trainer/build/builtins.h"

namespace limbeck::test {
namespace {

at::Tensor log_p(const at::Tensor& z) { return z.log_softmax(-1); }

}  // namespace

objective::Divergence divergence_named(const std::string& name, const std::string& recipe) {
  Registries registries;
  build::register_builtins(registries);
  return registries.of<objective::DivergenceFactory>("objectives")
      .find(name)(objective::read_divergence_options(settings_of(recipe)));
}

at::Tensor textbook_divergence(const std::string& name, const at::Tensor& zs, const at::Tensor& zt, int64_t top_k) {
  const at::Tensor ls = log_p(zs), lt = log_p(zt), ps = ls.exp(), pt = lt.exp();
  const auto kl = [](const at::Tensor& p, const at::Tensor& q) { return (p * (p.log() - q.log())).sum(-1); };
  if (name == "forward_kl") return kl(pt, ps);
  if (name == "reverse_kl") return kl(ps, pt);
  if (name == "jsd") {
    const at::Tensor m = 0.5 * pt + 0.5 * ps;
    return 0.5 * kl(pt, m) + 0.5 * kl(ps, m);
  }
  if (name == "skew_forward_kl") return kl(pt, 0.1 * pt + 0.9 * ps);
  if (name == "skew_reverse_kl") return kl(ps, 0.1 * ps + 0.9 * pt);
  if (name == "total_variation") return 0.5 * (pt - ps).abs().sum(-1);
  if (name == "uld") return (std::get<0>(pt.sort(-1, true)) - std::get<0>(ps.sort(-1, true))).abs().sum(-1);
  if (name == "logit_mse") return (zs - zt).square().mean(-1);
  if (name == "topk_union") {
    at::Tensor keep = at::zeros(zs.sizes(), at::kBool);
    for (const at::Tensor& z : {zs, zt}) keep.scatter_(-1, std::get<1>(z.detach().topk(top_k, -1)), true);
    const at::Tensor a = zt.masked_fill(~keep, -1e9).softmax(-1), b = zs.masked_fill(~keep, -1e9).softmax(-1);
    return at::where(keep, a * (a.clamp_min(1e-300).log() - b.clamp_min(1e-300).log()), at::zeros_like(a)).sum(-1);
  }
  ADD_FAILURE() << "no textbook formula for " << name;
  return {};
}

}  // namespace limbeck::test
