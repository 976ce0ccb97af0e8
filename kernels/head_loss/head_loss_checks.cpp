#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "kernels/head_loss/head_loss_operands.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;
constexpr const char* kOp = "head_loss";

constexpr std::array<std::pair<Divergence, const char*>, 8> kNames = {{{Divergence::kNone, "none"},
                                                                       {Divergence::kForwardKl, "forward_kl"},
                                                                       {Divergence::kReverseKl, "reverse_kl"},
                                                                       {Divergence::kJensenShannon, "jensen_shannon"},
                                                                       {Divergence::kSkewForwardKl, "skew_forward_kl"},
                                                                       {Divergence::kSkewReverseKl, "skew_reverse_kl"},
                                                                       {Divergence::kTotalVariation, "total_variation"},
                                                                       {Divergence::kLogitMse, "logit_mse"}}};

void check_head(const char* hidden_name, const Tensor& hidden, const char* weight_name, const Tensor& weight) {
  check_floating(kOp, hidden_name, hidden);
  check_matches(kOp, weight_name, weight, hidden_name, hidden);
  TORCH_CHECK(hidden.dim() == 2, "[head_loss] ", hidden_name, " is ", described(hidden), ", wanted [tokens, width]");
  TORCH_CHECK(weight.dim() == 2 && weight.sym_size(1) == hidden.sym_size(1), "[head_loss] ", weight_name, " is ",
              described(weight), ", wanted [vocabulary, ", hidden.sym_size(1), "] for ", hidden_name, " ",
              described(hidden));
}

void check_per_token(const char* name, const Tensor& t, at::ScalarType type, const Tensor& hidden) {
  TORCH_CHECK(t.defined() && t.scalar_type() == type && t.device() == hidden.device() && t.dim() == 1 &&
                  t.sym_size(0) == hidden.sym_size(0),
              "[head_loss] ", name, " is ", described(t), ", wanted ", type, " [", hidden.sym_size(0), "] on ",
              hidden.device());
}

void check_option(bool good, const char* name, double value, const char* wanted) {
  TORCH_CHECK(good && std::isfinite(value), "[head_loss] ", name, " is ", value, ", wanted ", wanted);
}

void check_options(const HeadLossOptions& o) {
  check_option(o.temperature > 0, "temperature", o.temperature, "more than 0");
  check_option(o.student_softcap >= 0, "student_softcap", o.student_softcap, "0 (none) or more");
  check_option(o.teacher_softcap >= 0, "teacher_softcap", o.teacher_softcap, "0 (none) or more");
  check_option(o.student_scale != 0, "student_scale", o.student_scale, "a factor other than 0");
  check_option(o.teacher_scale != 0, "teacher_scale", o.teacher_scale, "a factor other than 0");
  check_option(o.clamp >= 0, "clamp", o.clamp, "0 (none) or more");
  check_option(o.label_smoothing >= 0 && o.label_smoothing < 1, "label_smoothing", o.label_smoothing, "0 to below 1");
  check_option(o.gradient_scale > 0, "gradient_scale", o.gradient_scale, "more than 0");
  if (o.divergence == Divergence::kJensenShannon) {
    check_option(o.mix > 0 && o.mix < 1, "mix", o.mix, "between 0 and 1 (at both ends the divergence is always 0)");
  }
  if (o.divergence == Divergence::kSkewForwardKl || o.divergence == Divergence::kSkewReverseKl) {
    check_option(is_skew_share(o.mix), "mix", o.mix, "0, or 0.0001 to below 1");
  }
}

}  // namespace

c10::string_view divergence_name(Divergence divergence) {
  for (const auto& [value, name] : kNames) {
    if (value == divergence) return name;
  }
  TORCH_CHECK(false, "[head_loss] divergence number ", static_cast<int64_t>(divergence), " is none of ours");
}

Divergence divergence_named(c10::string_view wanted) {
  std::string all;
  for (const auto& [value, name] : kNames) {
    if (wanted == name) return value;
    all += (all.empty() ? "" : ", ") + std::string(name);
  }
  TORCH_CHECK(false, "[head_loss] divergence is \"", wanted, "\", wanted one of ", all);
}

at::ScalarType head_loss_type(const HeadLossInputs& in) {
  const bool wide = in.student_hidden.scalar_type() == at::kDouble &&
                    (!in.teacher_hidden || in.teacher_hidden->scalar_type() == at::kDouble);
  return wide ? at::kDouble : at::kFloat;
}

bool any_float64(const HeadLossInputs& in, const HeadLossOptions& options) {
  const auto wide = [](const Tensor& t) { return t.scalar_type() == at::kDouble; };
  return wide(in.student_weight) || (options.divergence != Divergence::kNone && wide(*in.teacher_weight));
}

HeadLossOptions check_head_loss(const HeadLossInputs& in, const HeadLossOptions& options) {
  auto o = options;
  check_head("student_hidden", in.student_hidden, "student_weight", in.student_weight);
  TORCH_CHECK(in.teacher_hidden.has_value() == in.teacher_weight.has_value(),
              "[head_loss] one of teacher_hidden and teacher_weight came, wanted both or none");
  TORCH_CHECK(in.teacher_hidden || o.divergence == Divergence::kNone, "[head_loss] no teacher came, but ",
              divergence_name(o.divergence),
              " compares with one: wanted teacher_hidden and teacher_weight, or "
              "divergence none");
  TORCH_CHECK(in.labels || o.divergence != Divergence::kNone,
              "[head_loss] neither a divergence nor labels came, wanted one of them");
  check_options(o);
  o.divergence = without_empty_share({o.divergence, o.mix}).divergence;
  const auto rows = in.student_weight.sym_size(0);
  TORCH_CHECK(o.vocabulary >= 0 && rows >= o.vocabulary && rows > 0, "[head_loss] vocabulary is ", o.vocabulary,
              ", wanted 0 (all) to the rows of student_weight ", described(in.student_weight));
  if (o.vocabulary == 0) o.vocabulary = rows.guard_int(__FILE__, __LINE__);
  if (in.teacher_hidden) {
    check_head("teacher_hidden", *in.teacher_hidden, "teacher_weight", *in.teacher_weight);
    TORCH_CHECK(in.teacher_hidden->device() == in.student_hidden.device() &&
                    in.teacher_hidden->sym_size(0) == in.student_hidden.sym_size(0),
                "[head_loss] teacher_hidden is ", described(*in.teacher_hidden),
                ", wanted the tokens of student_hidden ", described(in.student_hidden));
    TORCH_CHECK(in.teacher_weight->sym_size(0) >= o.vocabulary, "[head_loss] teacher_weight is ",
                described(*in.teacher_weight), ", wanted at least ", o.vocabulary,
                " rows: set vocabulary to the number of real ids");
  }
  const auto wide = head_loss_type(in);
  check_per_token("divergence_weight", in.divergence_weight, wide, in.student_hidden);
  check_per_token("ce_weight", in.ce_weight, wide, in.student_hidden);
  if (in.labels) check_per_token("labels", *in.labels, at::kLong, in.student_hidden);
  return o;
}

Tensor counted_tokens(const HeadLossInputs& in, const HeadLossOptions& options) {
  const int64_t tokens = in.student_hidden.size(0);
  const auto divergence = in.divergence_weight.to(at::kDouble).contiguous();
  const auto ce = in.ce_weight.to(at::kDouble).contiguous();
  const auto labels = in.labels ? in.labels->contiguous() : Tensor();
  auto counted = at::empty({tokens}, divergence.options().dtype(at::kLong));
  int64_t count = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    bool counts = options.divergence != Divergence::kNone && divergence.const_data_ptr<double>()[i] != 0.0;
    if (labels.defined() && ce.const_data_ptr<double>()[i] != 0.0) {
      const int64_t label = labels.const_data_ptr<int64_t>()[i];
      TORCH_CHECK(label == -100 || (label >= 0 && label < options.vocabulary), "[head_loss] the label of token ", i,
                  " is ", label, ", wanted -100 (none) or 0 to ", options.vocabulary - 1);
      counts = counts || label >= 0;
    }
    if (counts) counted.mutable_data_ptr<int64_t>()[count++] = i;
  }
  return counted.narrow(0, 0, count);
}

}  // namespace limbeck::kernels
