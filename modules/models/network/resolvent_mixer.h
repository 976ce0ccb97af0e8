// The token mixer of ResNet-BK: the diagonal of the resolvent of a tridiagonal matrix that the tokens themselves make.
//   y = W_o scale [Re G, Im G],  G = diag (T - z)^-1,  T = tridiag(1; v - 2; 1),  z = i height
//   v = clamp(W_v n + b, +-potential)
// Causal: G_t is that of the leading matrix, which sees positions up to t alone; its next value follows from the last
// one, so a generation keeps one complex number a head, however long the text. Else G_tt of the whole matrix.
#pragma once
#include <memory>
#include <string>

#include "modules/models/network/parameter_modules.h"
#include "modules/models/network/token_mixer.h"

namespace limbeck::models {

// Where the resolvent is said to see 8-bit codes (Resolvent::int8), v of a token is a row of codes with a scale of its
// own, and so are the real and the imaginary parts of its G, apart (kernels/quantized/row_codes.h). A single matrix's
// number would be that scale itself: its codes are of what bounds it, |v| <= potential and |G| <= 1 / Im z.
//
// What is between the two products, with the scale, which starts at 1. The resolvent wants float32 or wider: of a half
// type the potential is widened before it and the features are narrowed behind it, by named casts.
class ResolventCore : public ContractModule {
 public:
  ResolventCore(const Scope& scope, const Architecture& architecture, int64_t layer);
  // v [B, T, H] -> [B, T, 2 H]: of each head the real part, then the imaginary one.
  at::Tensor forward(const at::Tensor& v_bth, const LayerInput& input) const;

 private:
  at::Tensor potential(const at::Tensor& v_bth, at::ScalarType wide) const;             // of the same shape
  at::Tensor features(const at::Tensor& green_bht2) const;                              // [B, T, 2 H]
  at::Tensor seen(const at::Tensor& x, double bound) const;                             // as codes, over its heads
  at::Tensor resolvent(const at::Tensor& diagonal_bht, const LayerInput& input) const;  // [B, H, T, 2]
  at::Tensor continued(const at::Tensor& diagonal_bht, const LayerInput& input) const;  // from the cache
  at::Tensor point(const at::Tensor& like) const;                                       // z
  const Resolvent options_;
  const bool causal_;
  const int64_t layer_;
  const std::string potential_place_, features_place_, inner_place_, codes_place_;
};

class ResolventMixer : public TokenMixer {
 public:
  ResolventMixer(const Scope& scope, const Architecture& architecture, int64_t layer);
  at::Tensor forward(const at::Tensor& x, const LayerInput& input) const override;

 private:
  const std::string path_;
  std::shared_ptr<Linear> potential_, output_;
  std::shared_ptr<ResolventCore> core_;
};

}  // namespace limbeck::models
