#include "kernels/adamw/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/device_dtype.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

using kernels::AdamWOptions;

struct Weights {
  at::Tensor parameter, first, second;
  std::optional<at::Tensor> master;

  void step(const at::Tensor& gradient, const AdamWOptions& options) {
    kernels::adamw_step_({parameter}, {gradient}, masters(), {first}, {second}, options);
  }
  Tensors masters() const { return master ? Tensors{*master} : Tensors{}; }
  // What the update is about: the master where there is one.
  at::Tensor weight() const { return master.value_or(parameter); }
};

Weights weights_of(const at::Tensor& parameter) {
  Weights w{parameter.clone(), {}, {}, {}};
  const at::ScalarType wide = parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  w.first = at::zeros(parameter.sizes(), parameter.options().dtype(wide));
  w.second = at::zeros_like(w.first);
  if (wide != parameter.scalar_type() && parameter.scalar_type() != at::kDouble) w.master = w.parameter.to(wide);
  return w;
}

// torch.optim.AdamW (single tensor, not capturable), in float64.
struct Reference {
  at::Tensor weight, first, second;

  explicit Reference(const at::Tensor& parameter)
      : weight(parameter.to(at::kDouble).clone()), first(at::zeros_like(weight)), second(at::zeros_like(weight)) {}
  void step(const at::Tensor& gradient, const AdamWOptions& o) {
    const at::Tensor g = gradient.to(at::kDouble) * o.gradient_scale;
    const auto n = static_cast<double>(o.step);
    weight.mul_(1 - o.learning_rate * o.weight_decay);
    first.lerp_(g, 1 - o.beta1);
    second.mul_(o.beta2).addcmul_(g, g, 1 - o.beta2);
    const double correction1 = 1 - std::pow(o.beta1, n), correction2 = 1 - std::pow(o.beta2, n);
    weight.addcdiv_(first, second.sqrt() / std::sqrt(correction2) + o.epsilon, -o.learning_rate / correction1);
  }
};

double distance(const at::Tensor& ours, const at::Tensor& wanted) {
  return ((ours.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

class AdamWTest : public OperatorTest {
 protected:
  at::Tensor gradient(at::IntArrayRef shape, int step) const {
    return random_tensor(shape, options(), 100 + static_cast<uint64_t>(step)) * 1e-2;
  }
};

TEST_P(AdamWTest, FiftyUpdatesEqualTheFormulaInFloat64) {
  AdamWOptions options_of_step{.learning_rate = 3e-3, .weight_decay = 0.1, .gradient_scale = 0.5};
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{1}, {15}, {16}, {65}, {7, 131}, {300, 200}, {0, 4}}) {
    Weights ours = weights_of(random_tensor(shape, options(), 3));
    Reference wanted(ours.parameter);
    for (int step = 1; step <= 50; ++step) {
      options_of_step.step = step;
      const at::Tensor g = gradient(shape, step);
      ours.step(g, options_of_step);
      wanted.step(g, options_of_step);
    }
    if (ours.parameter.numel() == 0) continue;
    // 50 roundings of the weight at 6e-8 and a few of the update: 1e-6 is what float32 allows.
    const double bar = GetParam().dtype == at::kDouble ? 1e-14 : 1e-6;
    EXPECT_LE(distance(ours.weight(), wanted.weight), bar) << ours.parameter.sizes();
    EXPECT_LE(distance(ours.first, wanted.first), bar);
    EXPECT_LE(distance(ours.second, wanted.second), bar);
    expect_same_bits(ours.parameter, ours.weight().to(GetParam().dtype), "the parameter is the rounded master");
  }
}

// More tensors than a launch takes, lengths around packs and chunks, empty ones, and starts that no pack can be read
// from.
TEST_P(AdamWTest, ManyAtOnceGetTheBitsOfEachAlone) {
  std::vector<Weights> together, alone;
  Tensors gradients;
  const std::vector<int64_t> lengths = {1, 3, 8, 17, 0, 255, 1024, 4095, 4096, 4097, 9001};
  for (uint64_t i = 0; i < 150; ++i) {
    const int64_t length = lengths[i % lengths.size()], skipped = static_cast<int64_t>(i % 3);
    const auto late = [&](const at::Tensor& x) {  // the same values, not on a boundary of 16 bytes
      return at::cat({at::zeros({skipped}, x.options()), x}).narrow(0, skipped, length);
    };
    const at::Tensor start = random_tensor({length}, options(), i);
    alone.push_back(weights_of(start));
    const Weights& w = alone.back();
    together.push_back({late(w.parameter), late(w.first), late(w.second), std::nullopt});
    if (w.master) together.back().master = late(*w.master);
    gradients.push_back(gradient({length}, static_cast<int>(i)));
  }
  const AdamWOptions options_of_step{.step = 3, .weight_decay = 0.1, .gradient_scale = 0.25};
  Tensors parameters, late_gradients, masters, first, second;
  for (size_t i = 0; i < together.size(); ++i) {
    const int64_t skipped = static_cast<int64_t>(i % 2);
    alone[i].step(gradients[i], options_of_step);
    parameters.push_back(together[i].parameter);
    late_gradients.push_back(
        at::cat({at::zeros({skipped}, options()), gradients[i]}).narrow(0, skipped, gradients[i].numel()));
    if (together[i].master) masters.push_back(*together[i].master);
    first.push_back(together[i].first);
    second.push_back(together[i].second);
  }
  kernels::adamw_step_(parameters, late_gradients, masters, first, second, options_of_step);
  for (size_t i = 0; i < together.size(); ++i) {
    const std::string what = std::to_string(i);
    expect_same_bits(together[i].parameter, alone[i].parameter, "parameter " + what);
    expect_same_bits(together[i].weight(), alone[i].weight(), "weight " + what);
    expect_same_bits(together[i].first, alone[i].first, "first moment " + what);
    expect_same_bits(together[i].second, alone[i].second, "second moment " + what);
  }
}

TEST_P(AdamWTest, WideAndNarrowGradientsOfOneValueGiveOneResult) {
  if (GetParam().dtype == at::kDouble) GTEST_SKIP() << "float64 gradients have one dtype";
  const at::Tensor start = random_tensor({513}, options(), 1), g = gradient({513}, 1);
  Weights narrow = weights_of(start), wide = weights_of(start);
  narrow.step(g, {});
  wide.step(g.to(at::kFloat), {});
  expect_same_bits(narrow.weight(), wide.weight(), "weight");
  expect_same_bits(narrow.second, wide.second, "second moment");
}

TEST_P(AdamWTest, SquareSumIsAccurateAndKnowsFiniteFromNot) {
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{4096}, int64_t{4097}, int64_t{100003}}) {
    const at::Tensor x = random_tensor({count}, options(), 9);
    const double wanted = x.to(at::kDouble).square().sum().item<double>();
    const at::Tensor sum = kernels::square_sums(x).sum();
    ASSERT_EQ(sum.scalar_type(), at::kDouble);
    // 1024 float32 terms in 64 lanes: some 20 roundings.
    EXPECT_NEAR(sum.item<double>(), wanted, wanted * 5e-6) << count;
    if (count < 2) continue;
    for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      at::Tensor spoiled = x.clone();
      spoiled[count - 1] = bad;
      EXPECT_FALSE(std::isfinite(kernels::square_sums(spoiled).sum().item<double>())) << bad << " of " << count;
    }
  }
}

TEST_P(AdamWTest, SquaresBeyondFloat32AreStillFinite) {
  if (GetParam().dtype == at::kHalf) GTEST_SKIP() << "float16 ends at 65504";
  const at::Tensor x = at::full({5000}, 1e30, options());
  const double wanted = x.to(at::kDouble).square().sum().item<double>();
  EXPECT_NEAR(kernels::square_sums(x).sum().item<double>(), wanted, wanted * 1e-12);
}

TEST_P(AdamWTest, PartsHaveTheSquareSumsOfTheWhole) {
  const at::Tensor x = random_tensor({5 * kernels::kSquareRun + 77}, options(), 3);
  const at::Tensor whole = kernels::square_sums(x);
  ASSERT_EQ(whole.numel(), 6);
  const int64_t cut = 2 * kernels::kSquareRun;
  expect_same_bits(kernels::square_sums(x.narrow(0, 0, cut)), whole.narrow(0, 0, 2), "first part");
  expect_same_bits(kernels::square_sums(x.narrow(0, cut, x.numel() - cut)), whole.narrow(0, 2, 4), "second part");
}

// More tensors than one launch takes, empty ones among them, from starts of every alignment.
TEST_P(AdamWTest, AListHasTheSquareSumsOfItsTensors) {
  const at::Tensor source = random_tensor({40000}, options(), 5);
  Tensors xs;
  Tensors alone;
  for (int64_t i = 0; i < 150; ++i) {
    xs.push_back(i % 40 == 7 ? source.narrow(0, 0, 2100).view({3, 700}).t() : source.narrow(0, i, i * 37 % 3000));
    if (xs.back().numel() > 0) alone.push_back(kernels::square_sums(xs.back()));
    ASSERT_EQ(kernels::square_runs(xs.back().numel()), xs.back().numel() == 0 ? 0 : alone.back().numel());
  }
  expect_same_bits(kernels::square_sums(xs), at::cat(alone), "sums");
  EXPECT_EQ(kernels::square_sums({source.narrow(0, 0, 0)}).numel(), 0);
  EXPECT_THROW(kernels::square_sums({source, source.to(at::kMeta)}), c10::Error);
  EXPECT_THROW(kernels::square_sums({source, source.to(GetParam().dtype == at::kFloat ? at::kDouble : at::kFloat)}),
               c10::Error);
}

TEST_P(AdamWTest, AccumulateAddsInTheWideDtype) {
  const at::ScalarType wide = GetParam().dtype == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor sum = at::zeros({1000, 7}, options().dtype(wide));
  at::Tensor wanted = at::zeros_like(sum);
  for (uint64_t i = 0; i < 8; ++i) {
    const at::Tensor x = random_tensor({1000, 7}, options(), i);
    kernels::accumulate_(sum, x);
    wanted = wanted + x.to(wide);
  }
  expect_same_bits(sum, wanted, "sum");
}

TEST_P(AdamWTest, StridedGradientsAreTaken) {
  const at::Tensor start = random_tensor({6, 40}, options(), 1), g = gradient({40, 6}, 1);
  Weights strided = weights_of(start), dense = weights_of(start);
  strided.step(g.t(), {});
  dense.step(g.t().contiguous(), {});
  expect_same_bits(strided.parameter, dense.parameter, "parameter");
  expect_same_bits(kernels::square_sums(g.t()), kernels::square_sums(g.t().contiguous()), "square sum");
}

TEST_P(AdamWTest, ThreadsDoNotMatter) {
  if (GetParam().device != at::kCPU) GTEST_SKIP() << "a GPU has one way";
  const at::Tensor start = random_tensor({200003}, options(), 1), g = gradient({200003}, 1);
  const int before = at::get_num_threads();
  std::vector<Weights> runs;
  std::vector<at::Tensor> sums;
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    runs.push_back(weights_of(start));
    runs.back().step(g, {.weight_decay = 0.1});
    sums.push_back(kernels::square_sums(g));
  }
  at::set_num_threads(before);
  expect_same_bits(runs[0].parameter, runs[1].parameter, "parameter");
  expect_same_bits(runs[0].second, runs[1].second, "second moment");
  expect_same_bits(sums[0], sums[1], "square sum");
}

TEST_P(AdamWTest, MetaChecksTheSame) {
  const auto meta = [](const at::Tensor& x) { return x.to(at::kMeta); };
  const Weights w = weights_of(random_tensor({3, 5}, options(), 1));
  const Tensors masters = w.master ? Tensors{meta(*w.master)} : Tensors{};
  const auto step = [&](const at::Tensor& first) {
    kernels::adamw_step_({meta(w.parameter)}, {meta(w.parameter)}, masters, {first}, {meta(w.second)}, {});
  };
  step(meta(w.first));
  EXPECT_EQ(kernels::square_sums(meta(w.parameter)).sizes(), kernels::square_sums(w.parameter).sizes());
  EXPECT_THROW(step(meta(w.first.t())), c10::Error);
}

TEST_P(AdamWTest, WrongArgumentsAreRefused) {
  const Weights w = weights_of(random_tensor({3, 5}, options(), 1));
  const at::Tensor g = gradient({3, 5}, 1);
  const auto step = [&](const at::Tensor& gradient, const std::optional<at::Tensor>& master, const at::Tensor& second,
                        int64_t number) {
    kernels::adamw_step_({w.parameter}, {gradient}, master ? Tensors{*master} : Tensors{}, {w.first}, {second},
                         {.step = number});
  };
  EXPECT_THROW(step(g, w.master, w.second, 0), c10::Error);
  EXPECT_THROW(step(g.t(), w.master, w.second, 1), c10::Error);
  EXPECT_THROW(step(g, w.master, w.second.to(at::kBFloat16), 1), c10::Error);
  EXPECT_THROW(step(g, w.master ? std::nullopt : std::optional<at::Tensor>(w.first), w.second, 1), c10::Error);
  EXPECT_THROW(step(g.to(GetParam().dtype == at::kBFloat16 ? at::kHalf : at::kBFloat16), w.master, w.second, 1),
               c10::Error);
  EXPECT_THROW(kernels::accumulate_(w.parameter.to(at::kBFloat16), g), c10::Error);
  // Lists of different lengths, and of two dtypes.
  EXPECT_THROW(kernels::adamw_step_({w.parameter}, {g, g}, w.masters(), {w.first}, {w.second}, {}), c10::Error);
  const Weights other = weights_of(w.parameter.to(GetParam().dtype == at::kBFloat16 ? at::kHalf : at::kBFloat16));
  EXPECT_THROW(kernels::adamw_step_({w.parameter, other.parameter}, {g, other.parameter}, {}, {w.first, other.first},
                                    {w.second, other.second}, {}),
               c10::Error);
}

TEST_P(AdamWTest, RecordingIsRefusedAndSavedTensorsLearnOfTheChange) {
  Weights w = weights_of(random_tensor({4}, options(), 1));
  const at::Tensor g = gradient({4}, 1);
  w.parameter.requires_grad_(true);
  EXPECT_THROW(w.step(g, {}), c10::Error);
  const auto version = w.parameter._version();
  {
    const at::NoGradGuard no_gradient;
    w.step(g, {});
  }
  EXPECT_GT(w.parameter._version(), version);
}

INSTANTIATE_TEST_SUITE_P(Operators, AdamWTest, every_device_and_dtype(), name_of);

}  // namespace
}  // namespace limbeck::test
