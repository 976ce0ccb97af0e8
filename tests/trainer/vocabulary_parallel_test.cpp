// The vocabulary divided among ranks: values and gradients of every divergence and of the cross-entropy against the
// textbook in float64, with 1 rank alone and 2, 3 and 4 ranks joined by Gloo; and what cannot be divided.
#include "trainer/objective/head/vocabulary_parallel.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "tests/support/gloo_ranks.h"
#include "tests/trainer/message_of.h"
#include "tests/trainer/textbook_divergences.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/build/builtins.h"

namespace limbeck::objective {
namespace {

constexpr int64_t kRows = 101, kIds = 97, kStudentWidth = 24, kTeacherWidth = 32;
constexpr double kTau = 2.0;

// How a case reads the logits.
struct Reading {
  double softcap = 0, clamp = 0, smoothing = 0;
  bool labels = true;
};

// Of one rank; every rank has another number of tokens.
struct Tokens {
  at::Tensor hidden, teacher_hidden, labels, divergence_weight, ce_weight;
};

struct DividedHeads {
  at::Tensor weight, teacher_weight;
  std::vector<Tokens> ranks;
};

DividedHeads random_heads(int ranks, at::ScalarType dtype) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(17);
  const auto normal = [&](at::IntArrayRef shape, double size) {
    return at::empty(shape, at::kFloat).normal_(0, size, generator).to(dtype);
  };
  const at::ScalarType wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  DividedHeads heads{normal({kRows, kStudentWidth}, 0.3), normal({kRows, kTeacherWidth}, 0.3), {}};
  for (int rank = 0; rank < ranks; ++rank) {
    const int64_t n = 7 + 3 * ((rank + 1) % 3);
    Tokens t;
    t.hidden = normal({n, kStudentWidth}, 1);
    t.teacher_hidden = normal({n, kTeacherWidth}, 1);
    t.labels = at::empty({n}, at::kLong).random_(0, kIds, generator);
    t.divergence_weight = at::empty({n}, at::kFloat).uniform_(0.5, 1.5, generator).to(wide);
    t.ce_weight = at::empty({n}, at::kFloat).uniform_(0.5, 1.5, generator).to(wide);
    t.labels[1] = -100;  // predicts nothing, but is compared
    t.ce_weight[1] = 0;
    t.divergence_weight[2] = 0;
    t.divergence_weight[3] = t.ce_weight[3] = 0;  // padding
    heads.ranks.push_back(t);
  }
  return heads;
}

struct Found {
  double loss = 0;
  at::Tensor divergence_n, cross_entropy_n, hidden, weight;
};

// All ranks' tokens in one place, in float64, by autograd.
std::vector<Found> textbook_of(const DividedHeads& heads, const std::string& name, const Divergence& divergence,
                               const Reading& how) {
  const at::Tensor weight = heads.weight.to(at::kDouble, false, /*copy=*/true).requires_grad_();
  const auto capped = [&](const at::Tensor& h, const at::Tensor& w) {
    const at::Tensor z = at::mm(h, w.narrow(0, 0, kIds).t());
    return how.softcap > 0 ? at::tanh(z / how.softcap) * how.softcap : z;
  };
  std::vector<Found> found;
  at::Tensor sum = at::zeros({}, at::kDouble);
  std::vector<at::Tensor> leaves;
  for (const Tokens& t : heads.ranks) {
    leaves.push_back(t.hidden.to(at::kDouble, false, /*copy=*/true).requires_grad_());
    const at::Tensor zs = capped(leaves.back(), weight),
                     zt = capped(t.teacher_hidden.to(at::kDouble), heads.teacher_weight.to(at::kDouble));
    const double tau = divergence.tempered ? kTau : 1.0;
    const auto softened = [&](const at::Tensor& z) {
      return divergence.tempered && how.clamp > 0 ? (z / tau).clamp(-how.clamp, how.clamp) : z / tau;
    };
    const at::Tensor kd = test::textbook_divergence(name, softened(zs), softened(zt)) * (tau * tau);
    const at::Tensor log_p = zs.log_softmax(-1);
    const at::Tensor gold = log_p.gather(-1, t.labels.clamp_min(0).unsqueeze(-1)).squeeze(-1);
    const at::Tensor ce = -(gold * (1 - how.smoothing) + log_p.mean(-1) * how.smoothing);
    at::Tensor loss = (kd * t.divergence_weight.to(at::kDouble)).sum();
    if (how.labels) loss = loss + (ce * t.ce_weight.to(at::kDouble)).sum();
    sum = sum + loss;
    found.push_back({loss.item<double>(),
                     kd.detach().masked_fill(t.divergence_weight.eq(0), 0),
                     how.labels ? ce.detach().masked_fill(t.ce_weight.eq(0), 0) : at::zeros_like(ce),
                     {},
                     {}});
  }
  sum.backward();
  for (size_t rank = 0; rank < found.size(); ++rank) {
    found[rank].hidden = leaves[rank].grad();
    found[rank].weight = weight.grad();
  }
  return found;
}

Found divided(const DividedHeads& heads, const Divergence& divergence, const Reading& how,
              const VocabularyRanks& ranks) {
  const Tokens& t = heads.ranks[static_cast<size_t>(ranks.line->rank())];
  HeadRequest request;
  request.student = {.hidden_nd = t.hidden.clone().requires_grad_(),
                     .weight_vd = heads.weight.clone().requires_grad_(),
                     .softcap = how.softcap,
                     .vocabulary = kIds,
                     .place = "student"};
  request.teacher = HeadSide{.hidden_nd = t.teacher_hidden,
                             .weight_vd = heads.teacher_weight,
                             .softcap = how.softcap,
                             .vocabulary = kIds,
                             .place = "teacher"};
  request.divergence = &divergence;
  if (how.labels) request.labels_n = t.labels;
  request.divergence_weight_n = t.divergence_weight;
  request.ce_weight_n = how.labels ? t.ce_weight : at::zeros_like(t.ce_weight);
  request.temperature = kTau;
  request.clamp = how.clamp;
  request.label_smoothing = how.smoothing;
  const kernels::HeadLoss head = vocabulary_parallel_terms(request, ranks);
  head.loss.backward();
  // Evaluation, without gradients, has the same bits.
  const at::NoGradGuard no_gradient;
  EXPECT_TRUE(at::equal(vocabulary_parallel_terms(request, ranks).loss, head.loss.detach()));
  return {head.loss.item<double>(), head.divergence_n, head.cross_entropy_n, request.student.hidden_nd.grad(),
          request.student.weight_vd.grad()};
}

double relative_difference(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got.to(at::kDouble) - wanted).norm() / wanted.norm().clamp_min(1e-30)).item<double>();
}

struct Bars {
  double value, gradient;
};

struct Case {
  std::string name;
  at::ScalarType dtype = at::kDouble;
  Reading how;
  Bars bars;
};

// What each rank finds, by case: the ranks meet once for all cases.
std::vector<std::vector<Found>> on_ranks(int size, const std::vector<Case>& cases) {
  std::vector<std::vector<Found>> found(cases.size(), std::vector<Found>(static_cast<size_t>(size)));
  const auto one = [&](std::unique_ptr<parallel::Communicator> line) {
    const auto order = (size & (size - 1)) == 0 ? parallel::Order::kTree : parallel::Order::kFast;
    const auto rank = static_cast<size_t>(line->rank());
    const VocabularyRanks ranks{std::move(line), order};
    for (size_t i = 0; i < cases.size(); ++i) {
      const Case& c = cases[i];
      found[i][rank] = divided(random_heads(size, c.dtype), test::divergence_named(c.name), c.how, ranks);
    }
  };
  if (size == 1) {
    one(parallel::make_solo());
    return found;
  }
  const auto thrown = test::run_gloo_ranks(
      size, [&](std::unique_ptr<parallel::Communicator> line, const parallel::Meeting&) { one(std::move(line)); });
  for (const std::string& message : thrown) EXPECT_EQ(message, "");
  return found;
}

void expect_textbook(int size, const Case& c, const std::vector<Found>& got) {
  SCOPED_TRACE(c.name + ", " + std::to_string(size) + " ranks, " + c10::toString(c.dtype));
  const std::vector<Found> wanted =
      textbook_of(random_heads(size, c.dtype), c.name, test::divergence_named(c.name), c.how);
  at::Tensor weight = at::zeros({kRows, kStudentWidth}, at::kDouble);
  for (size_t rank = 0; rank < got.size(); ++rank) {
    ASSERT_TRUE(got[rank].weight.defined());
    EXPECT_NEAR(got[rank].loss, wanted[rank].loss, c.bars.value * wanted[rank].loss);
    EXPECT_LT(relative_difference(got[rank].divergence_n, wanted[rank].divergence_n), c.bars.value);
    if (c.how.labels) {
      EXPECT_LT(relative_difference(got[rank].cross_entropy_n, wanted[rank].cross_entropy_n), c.bars.value);
    }
    EXPECT_EQ(got[rank].hidden.scalar_type(), c.dtype);
    EXPECT_LT(relative_difference(got[rank].hidden, wanted[rank].hidden), c.bars.gradient);
    // Only the rank's rows: the others' and those without an id stay 0.
    const int64_t first = kIds * static_cast<int64_t>(rank) / size,
                  end = kIds * (static_cast<int64_t>(rank) + 1) / size;
    EXPECT_EQ(got[rank].weight.narrow(0, 0, first).count_nonzero().item<int64_t>(), 0);
    EXPECT_EQ(got[rank].weight.narrow(0, end, kRows - end).count_nonzero().item<int64_t>(), 0);
    weight += got[rank].weight.to(at::kDouble);
  }
  EXPECT_LT(relative_difference(weight, wanted[0].weight), c.bars.gradient);
}

void expect_textbook(int size, const std::vector<Case>& cases) {
  const auto got = on_ranks(size, cases);
  for (size_t i = 0; i < cases.size(); ++i) expect_textbook(size, cases[i], got[i]);
}

const std::vector<std::string>& sums_over_ids() {
  static const std::vector<std::string> all{"forward_kl",      "reverse_kl",      "jsd",      "skew_forward_kl",
                                            "skew_reverse_kl", "total_variation", "logit_mse"};
  return all;
}

// In float64 nothing but the formula shows.
TEST(VocabularyParallel, EveryDivergenceIsTheTextbooksOnAnyNumberOfRanks) {
  std::vector<Case> cases;
  for (const std::string& name : sums_over_ids())
    cases.push_back({name, at::kDouble, {.labels = false}, {1e-12, 1e-12}});
  for (const int size : {1, 2, 3, 4}) expect_textbook(size, cases);
}

TEST(VocabularyParallel, SoftcapClampAndLabelSmoothingAreAppliedToSlicesToo) {
  std::vector<Case> cases{{"forward_kl", at::kDouble, {}, {1e-12, 1e-12}}};
  for (const std::string& name : sums_over_ids()) {
    cases.push_back({name, at::kDouble, {.softcap = 3, .clamp = 1, .smoothing = 0.1}, {1e-12, 1e-12}});
  }
  for (const int size : {1, 2, 4}) expect_textbook(size, cases);
}

// float32: sums of 97 ids and products of 24 numbers, each rounded to 6e-8. bfloat16: the states and weights are taken
// as they are and computed with in float32; only the gradients are rounded, once, to 8 bits: 2^-8 at most each.
TEST(VocabularyParallel, StorageDtypesAddOnlyTheRoundingOfGradients) {
  std::vector<Case> cases;
  for (const std::string& name : sums_over_ids()) {
    cases.push_back({name, at::kFloat, {.smoothing = 0.1}, {3e-6, 3e-6}});
    cases.push_back({name, at::kBFloat16, {.smoothing = 0.1}, {3e-6, 0x1p-8}});
  }
  for (const int size : {1, 2, 4}) expect_textbook(size, cases);
}

TEST(VocabularyParallel, FewerIdsThanRanksAreRefused) {
  const auto thrown =
      test::run_gloo_ranks(2, [](std::unique_ptr<parallel::Communicator> line, const parallel::Meeting&) {
        HeadRequest request;
        request.student = {.hidden_nd = at::ones({2, 4}), .weight_vd = at::ones({1, 4}), .place = "student"};
        request.labels_n = at::zeros({2}, at::kLong);
        request.ce_weight_n = request.divergence_weight_n = at::ones({2});
        VocabularyRanks ranks;
        ranks.line = std::move(line);
        vocabulary_parallel_terms(request, ranks);
      });
  for (const std::string& message : thrown) {
    EXPECT_NE(message.find("divides 1 ids among 2 ranks: set it to false"), std::string::npos) << message;
  }
}

void require_divisible(const std::string& ini, bool has_head = true) {
  const recipe::Settings settings = test::settings_of("[objective]\nvocabulary_parallel = yes\n" + ini);
  Registries registries;
  build::register_builtins(registries);
  const Divergence divergence = registries.of<DivergenceFactory>("objectives")
                                    .find(settings.text("objective.divergence"))(read_divergence_options(settings));
  require_divisible_vocabulary(settings, divergence, has_head);
}

std::string refusal(const std::string& ini, bool has_head = true) {
  return test::message_of([&] { require_divisible(ini, has_head); });
}

TEST(VocabularyParallel, WhatCannotBeDividedIsRefusedWithWhatToSet) {
  for (const std::string name : {"uld", "topk_union", "dskd"}) {
    const std::string message = refusal("divergence = " + name + "\n");
    EXPECT_NE(message.find("objective.vocabulary_parallel (/r/my.ini:3)"), std::string::npos) << message;
    EXPECT_NE(message.find("objective.divergence = " + name + " (/r/my.ini:4)"), std::string::npos) << message;
    EXPECT_NE(message.find("set it to forward_kl"), std::string::npos) << message;
  }
  EXPECT_NE(refusal("[projector]\nkind = logit\n").find("set projector.kind = none"), std::string::npos);
  EXPECT_NE(refusal("", /*has_head=*/false).find("student.model has none: set it to false"), std::string::npos);
  for (const std::string& name : sums_over_ids()) EXPECT_NO_THROW(require_divisible("divergence = " + name + "\n"));
}

}  // namespace
}  // namespace limbeck::objective
