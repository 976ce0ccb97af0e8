#include "trainer/optim/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "modules/memory/meta_memory.h"
#include "modules/precision/recorder.h"
#include "tests/trainer/message_of.h"
#include "trainer/recipe/recipe_options.h"

namespace limbeck::optim {
namespace {

using test::message_of;

recipe::Settings settings(const std::string& keys) {
  recipe::OptionTable table;
  recipe::declare_recipe_options(table);
  const std::string rate = keys.starts_with("learning_rate") ? "" : "learning_rate = 1e-3\n";
  const recipe::RecipeFile file("[optim]\nschedule = constant\n" + rate + keys, "my.ini");
  return recipe::Settings(table, &file, {});
}

OptimizerOptions options(const std::string& keys, int64_t total_steps) {
  return read_optimizer_options(settings(keys), total_steps);
}

at::Tensor values(at::IntArrayRef shape, int64_t seed, double scale) {
  auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(seed));
  return at::randn(shape, generator, at::TensorOptions().dtype(at::kFloat)) * scale;
}

at::Tensor trained(at::IntArrayRef shape, at::ScalarType dtype, int64_t seed) {
  return values(shape, seed, 1.0).to(dtype).requires_grad_(true);
}

std::vector<Parameter> two(at::ScalarType dtype) {
  return {{"student.mlp.weight", trained({40, 30}, dtype, 1), "student", true},
          {"student.norm.weight", trained({30}, dtype, 2), "student", false}};
}

// Gradients of one micro-batch, times the loss scale, as backward would leave them.
void give_gradients(const std::vector<Parameter>& parameters, int64_t seed, double scale) {
  for (const Parameter& p : parameters) {
    const at::Tensor g = values(p.tensor.sizes(), seed++, 0.05) * scale;
    p.tensor.mutable_grad() = g.to(p.tensor.scalar_type());
  }
}

std::vector<at::Tensor> copies(const std::vector<Parameter>& parameters, const Optimizer& optimizer) {
  std::vector<at::Tensor> result;
  for (const Parameter& p : parameters) result.push_back(p.tensor.detach().clone());
  for (const StateTensor& kept : optimizer.state_tensors()) result.push_back(kept.part.clone());
  return result;
}

bool same_bits(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) same = a[i].view(at::kByte).equal(b[i].view(at::kByte));
  return same;
}

StepReport one_update(Optimizer& optimizer, const std::vector<Parameter>& parameters, int64_t step) {
  give_gradients(parameters, 10 + 7 * step, optimizer.loss_scale());
  optimizer.accumulate(1);
  return optimizer.step(step);
}

// torch.optim.AdamW and clip_grad_norm_ by ATen's own operators, in float32.
class Reference {
 public:
  explicit Reference(const std::vector<Parameter>& parameters) : parameters_(parameters) {
    for (const Parameter& p : parameters_) {
      weights_.push_back(p.tensor.detach().clone());
      first_.push_back(at::zeros_like(weights_.back()));
      second_.push_back(at::zeros_like(weights_.back()));
      steps_.push_back(at::zeros({}));
    }
  }
  double step(std::vector<at::Tensor> gradients, double rate, double decay, double clip) {
    double total = 0;
    for (const at::Tensor& g : gradients) total += g.to(at::kDouble).square().sum().item<double>();
    const double norm = std::sqrt(total), factor = std::min(clip / (norm + 1e-6), 1.0);
    for (size_t i = 0; i < gradients.size(); ++i) {
      std::vector<at::Tensor> w{weights_[i]}, g{gradients[i] * factor}, m{first_[i]}, v{second_[i]}, n{steps_[i]};
      steps_[i] += 1;
      at::_fused_adamw_(w, g, m, v, {}, n, rate, 0.9, 0.999, parameters_[i].decays ? decay : 0.0, 1e-8, false, false);
    }
    return norm;
  }
  const std::vector<at::Tensor>& weights() const { return weights_; }

 private:
  std::vector<Parameter> parameters_;
  std::vector<at::Tensor> weights_, first_, second_, steps_;
};

TEST(Optimizer, FiftyUpdatesEqualTorchAdamWWithClipping) {
  const auto parameters = two(at::kFloat);
  Optimizer optimizer(options("weight_decay = 0.1\nclip = 1.0\n", 50), parameters);
  Reference reference(parameters);
  for (int64_t step = 0; step < 50; ++step) {
    give_gradients(parameters, 10 + 7 * step, 1.0);
    const double norm = reference.step({parameters[0].tensor.grad(), parameters[1].tensor.grad()}, 1e-3, 0.1, 1.0);
    optimizer.accumulate(1);
    const StepReport report = optimizer.step(step);
    EXPECT_NEAR(report.gradient_norm, norm, 1e-6 * norm);
    EXPECT_FALSE(parameters[0].tensor.grad().defined());
  }
  for (size_t i = 0; i < 2; ++i) {
    const at::Tensor& wanted = reference.weights()[i];
    // One rounding of the weight an update, 6e-8 each: 1e-6 is far from what 50 of them can reach.
    EXPECT_LE(((parameters[i].tensor.detach() - wanted).norm() / wanted.norm()).item<double>(), 1e-6);
    EXPECT_LE((parameters[i].tensor.detach() - wanted).abs().max().item<double>(), 1e-6);
  }
}

TEST(Optimizer, EightMicroBatchesEqualOne) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto split = two(dtype), whole = two(dtype);
    const recipe::Settings s = settings("loss_scale_start = 1\n");
    Optimizer by_eight(read_optimizer_options(s, 10), split), by_one(read_optimizer_options(s, 10), whole);
    std::vector<at::Tensor> sums{at::zeros({40, 30}), at::zeros({30})};
    for (int64_t micro = 0; micro < 8; ++micro) {
      give_gradients(split, 100 + 2 * micro, 1.0);
      for (size_t i = 0; i < 2; ++i) sums[i] += split[i].tensor.grad().to(at::kFloat);
      by_eight.accumulate(8);
    }
    // The moments show the gradient that was used: for half weights it is the float32 sum, not one of their dtype.
    const double norm = by_eight.step(0).gradient_norm;
    const double clip = 1.0 / std::max(1.0, norm + 1e-6);
    for (const auto& [name, shape, begin, tensor, saved] : by_eight.state_tensors()) {
      if (name != "first_moment.student.mlp.weight") continue;
      const at::Tensor wanted = sums[0] * clip * 0.1;
      EXPECT_LE(((tensor - wanted).norm() / wanted.norm()).item<double>(), 1e-6) << name << " " << dtype;
    }
    if (dtype != at::kFloat) continue;
    for (size_t i = 0; i < 2; ++i) whole[i].tensor.mutable_grad() = sums[i];
    by_one.accumulate(1);
    by_one.step(0);
    EXPECT_TRUE(same_bits(copies(split, by_eight), copies(whole, by_one)));
  }
}

TEST(Optimizer, OverflowLeavesEveryBitHalvesTheScaleAndNamesTheTensor) {
  const auto parameters = two(at::kHalf);
  Optimizer optimizer(options("ema = 0.9\n", 100), parameters);
  EXPECT_EQ(optimizer.loss_scale(), 65536.0);
  for (int64_t step = 0; step < 3; ++step) EXPECT_FALSE(one_update(optimizer, parameters, step).skipped);
  const auto before = copies(parameters, optimizer);
  const auto scalars = optimizer.state_scalars();

  give_gradients(parameters, 99, 1.0);
  parameters[1].tensor.mutable_grad()[7] = HUGE_VAL;
  optimizer.accumulate(1);
  const StepReport report = optimizer.step(3);
  EXPECT_TRUE(report.skipped);
  EXPECT_EQ(report.nonfinite, "student.norm.weight");
  EXPECT_EQ(report.loss_scale, 32768.0);
  EXPECT_EQ(optimizer.loss_scale(), 32768.0);
  EXPECT_EQ(report.skipped_in_a_row, 1);
  EXPECT_EQ(report.skipped_in_all, 1);
  EXPECT_TRUE(same_bits(before, copies(parameters, optimizer)));
  EXPECT_EQ(optimizer.state_scalars().at("updates.student.mlp.weight"), scalars.at("updates.student.mlp.weight"));

  const StepReport after = one_update(optimizer, parameters, 4);
  EXPECT_FALSE(after.skipped);
  EXPECT_EQ(after.skipped_in_a_row, 0);
  EXPECT_EQ(after.skipped_in_all, 1);
  EXPECT_FALSE(same_bits(before, copies(parameters, optimizer)));
}

TEST(Optimizer, UnscalingIsExact) {
  const auto scaled = two(at::kHalf), plain = two(at::kHalf);
  Optimizer with(options("loss_scale_start = 64\n", 10), scaled), without(options("loss_scale_start = 1\n", 10), plain);
  for (int64_t step = 0; step < 5; ++step) {
    give_gradients(scaled, 50 + step, 1.0);
    give_gradients(plain, 50 + step, 1.0);
    for (const Parameter& p : scaled) p.tensor.mutable_grad() = p.tensor.grad() * 64;
    with.accumulate(1), without.accumulate(1);
    EXPECT_EQ(with.step(step).gradient_norm, without.step(step).gradient_norm);
  }
  EXPECT_TRUE(same_bits(copies(scaled, with), copies(plain, without)));
}

TEST(Optimizer, TheScaleGrowsAfterGoodUpdates) {
  const auto parameters = two(at::kHalf);
  Optimizer optimizer(options("loss_scale_start = 16\nloss_scale_growth_interval = 4\n", 10), parameters);
  for (int64_t step = 0; step < 3; ++step) one_update(optimizer, parameters, step);
  EXPECT_EQ(optimizer.loss_scale(), 16.0);
  EXPECT_EQ(one_update(optimizer, parameters, 3).loss_scale, 32.0);
}

TEST(Optimizer, TheScaleStaysAtItsFloorAndTheRunStopsAfterAFewThere) {
  const auto parameters = two(at::kHalf);
  Optimizer optimizer(options("loss_scale_start = 4\nloss_scale_floor = 2\nmax_skipped = 4\n", 10), parameters);
  const auto overflow = [&](int64_t step) {
    give_gradients(parameters, step, 1.0);
    parameters[0].tensor.mutable_grad()[0][0] = std::nan("");
    optimizer.accumulate(1);
    return optimizer.step(step);
  };
  for (int64_t step = 0; step < 3; ++step) EXPECT_EQ(overflow(step).loss_scale, 2.0);
  EXPECT_FALSE(one_update(optimizer, parameters, 3).skipped);  // one good update among them starts the count anew
  for (int64_t step = 4; step < 7; ++step) EXPECT_EQ(overflow(step).loss_scale, 2.0);
  const std::string message = message_of([&] { overflow(7); });
  EXPECT_EQ(message.substr(0, 32), "5: 4 updates in a row were skipp") << message;
  EXPECT_NE(message.find("the gradient of student.mlp.weight is not finite (loss scale 2, its floor)"),
            std::string::npos)
      << message;
  EXPECT_EQ(optimizer.loss_scale(), 2.0);
}

TEST(Optimizer, TenSkipsInARowStopInEveryDtype) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto parameters = two(dtype);
    Optimizer optimizer(options("", 100), parameters);
    const auto before = copies(parameters, optimizer);
    const auto spoiled = [&](int64_t step) {
      give_gradients(parameters, step, 1.0);
      parameters[1].tensor.mutable_grad()[3] = std::nan("");
      optimizer.accumulate(1);
      return optimizer.step(step);
    };
    for (int64_t step = 0; step < 9; ++step) EXPECT_EQ(spoiled(step).skipped_in_a_row, step + 1);
    const std::string message = message_of([&] { spoiled(9); });
    EXPECT_EQ(message.substr(0, 29), "5: 10 updates in a row were s") << message;
    EXPECT_NE(message.find("student.norm.weight"), std::string::npos) << message;
    EXPECT_TRUE(same_bits(before, copies(parameters, optimizer)));
    EXPECT_TRUE(dtype == at::kHalf || optimizer.loss_scale() == 1.0);
  }
}

TEST(Optimizer, GroupsHaveTheirRatesAndOnlySomeDecay) {
  const std::vector<Parameter> parameters = {{"a", trained({8}, at::kFloat, 1), "student", false},
                                             {"b", trained({8}, at::kFloat, 1), "projector", false},
                                             {"c", trained({8}, at::kFloat, 1), "router", false},
                                             {"d", trained({8}, at::kFloat, 1), "student", true}};
  Optimizer optimizer(options("router_learning_rate = 1e-4\nweight_decay = 0.5\nwarmup = 4 steps\n", 10), parameters);
  EXPECT_DOUBLE_EQ(optimizer.learning_rate(5, "student"), 1e-3);
  EXPECT_DOUBLE_EQ(optimizer.learning_rate(5, "projector"), 5e-3);
  EXPECT_DOUBLE_EQ(optimizer.learning_rate(5, "router"), 1e-4);
  EXPECT_DOUBLE_EQ(optimizer.learning_rate(1, "router"), 5e-5);
  const at::Tensor start = parameters[0].tensor.detach().clone();
  for (const Parameter& p : parameters) p.tensor.mutable_grad() = at::full({8}, 0.01);
  optimizer.accumulate(1);
  EXPECT_DOUBLE_EQ(optimizer.step(3).learning_rate, 1e-3);
  // The first update of Adam moves by the rate itself.
  const auto moved = [&](size_t i) { return (start - parameters[i].tensor.detach()); };
  EXPECT_TRUE(at::allclose(moved(0), at::full({8}, 1e-3), 1e-3, 1e-7));
  EXPECT_TRUE(at::allclose(moved(1), at::full({8}, 5e-3), 1e-3, 1e-7));
  EXPECT_TRUE(at::allclose(moved(2), at::full({8}, 1e-4), 1e-3, 1e-7));
  EXPECT_TRUE(at::allclose(moved(3), 1e-3 + start * 1e-3 * 0.5, 1e-3, 1e-7));
}

TEST(Optimizer, BFloat16WeightsMoveThroughTheirMasters) {
  const auto parameters = two(at::kBFloat16);
  Optimizer optimizer(options("learning_rate = 1e-5\nweight_decay = 0\n", 1000), parameters);
  const at::Tensor start = parameters[0].tensor.detach().to(at::kFloat);
  for (int64_t step = 0; step < 400; ++step) {
    for (const Parameter& p : parameters) p.tensor.mutable_grad() = at::full_like(p.tensor.detach(), 0.01);
    optimizer.accumulate(1);
    optimizer.step(step);
  }
  // 400 updates of 1e-5, each below half a unit in the last place of weights above 0.005: without masters none would
  // count for them.
  const at::Tensor master = optimizer.state_tensors()[0].part, now = parameters[0].tensor.detach();
  EXPECT_TRUE(at::allclose(start - master, at::full_like(start, 4e-3), 1e-3, 2e-6));
  EXPECT_TRUE(now.equal(master.to(at::kBFloat16)));
  EXPECT_GT(now.to(at::kFloat).ne(start).to(at::kFloat).mean().item<double>(), 0.6);
}

TEST(Optimizer, EmaFollowsAndSwapsBackToTheSameBits) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const auto parameters = two(dtype);
    Optimizer optimizer(options("ema = 0.75\n", 10), parameters);
    ASSERT_TRUE(optimizer.has_ema());
    at::Tensor wanted = parameters[0].tensor.detach().to(at::kFloat).clone();
    for (int64_t step = 0; step < 6; ++step) {
      one_update(optimizer, parameters, step);
      for (const auto& [name, shape, begin, tensor, saved] : optimizer.state_tensors()) {
        if (name == "master.student.mlp.weight") wanted = wanted * 0.75 + tensor * 0.25;
      }
      if (dtype == at::kFloat) wanted = wanted * 0.75 + parameters[0].tensor.detach() * 0.25;
    }
    const auto before = copies(parameters, optimizer);
    optimizer.swap_ema();
    const at::Tensor average = parameters[0].tensor.detach();
    EXPECT_TRUE(at::allclose(average.to(at::kFloat), wanted.to(dtype).to(at::kFloat), 8e-3, 1e-6)) << dtype;
    EXPECT_FALSE(average.equal(before[0]));
    EXPECT_THROW(optimizer.state_tensors(), std::logic_error);
    EXPECT_THROW(optimizer.accumulate(1), std::logic_error);
    optimizer.swap_ema();
    EXPECT_TRUE(same_bits(before, copies(parameters, optimizer))) << dtype;
  }
}

TEST(Optimizer, AResumedRunHasTheBitsOfTheUninterruptedOne) {
  const recipe::Settings s = settings("ema = 0.9\nloss_scale_growth_interval = 4\n");
  const auto straight = two(at::kHalf), resumed = two(at::kHalf);
  Optimizer first(read_optimizer_options(s, 20), straight);
  for (int64_t step = 0; step < 5; ++step) one_update(first, straight, step);
  Optimizer second(read_optimizer_options(s, 20), resumed);
  {
    const at::NoGradGuard no_gradient;
    for (size_t i = 0; i < 2; ++i) resumed[i].tensor.copy_(straight[i].tensor);
    const auto from = first.state_tensors(), to = second.state_tensors();
    for (size_t i = 0; i < from.size(); ++i) {
      ASSERT_EQ(from[i].name, to[i].name);
      to[i].part.copy_(from[i].part);
    }
  }
  second.load_state_scalars(first.state_scalars());
  for (int64_t step = 5; step < 12; ++step) {
    EXPECT_EQ(one_update(first, straight, step).loss_scale, one_update(second, resumed, step).loss_scale);
  }
  EXPECT_TRUE(same_bits(copies(straight, first), copies(resumed, second)));
  EXPECT_EQ(first.state_scalars(), second.state_scalars());
}

TEST(Optimizer, ForeignOrIncompleteScalarsAreRefused) {
  Optimizer optimizer(options("", 20), two(at::kFloat));
  auto scalars = optimizer.state_scalars();
  scalars["updates.student.other"] = 3;
  EXPECT_NE(
      message_of([&] { optimizer.load_state_scalars(scalars); }).find("4: optimizer state \"updates.student.other"),
      std::string::npos);
  scalars = optimizer.state_scalars();
  scalars.erase("updates.student.norm.weight");
  EXPECT_NE(message_of([&] { optimizer.load_state_scalars(scalars); }).find("updates.student.norm.weight"),
            std::string::npos);
}

TEST(Optimizer, ThreadsDoNotMatter) {
  const int threads = at::get_num_threads();
  std::vector<std::vector<at::Tensor>> results;
  std::vector<double> norms;
  for (const int count : {1, 2}) {
    at::set_num_threads(count);
    const std::vector<Parameter> parameters = {{"w", trained({300, 301}, at::kBFloat16, 1), "student", true}};
    Optimizer optimizer(options("", 20), parameters);
    for (int64_t step = 0; step < 3; ++step) norms.push_back(one_update(optimizer, parameters, step).gradient_norm);
    results.push_back(copies(parameters, optimizer));
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(same_bits(results[0], results[1]));
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(norms[i], norms[i + 3]);
}

TEST(Optimizer, AParameterWithoutGradientStaysAndKeepsItsOwnCount) {
  const auto parameters = two(at::kFloat);
  Optimizer optimizer(options("", 20), parameters);
  const at::Tensor before = parameters[1].tensor.detach().clone();
  parameters[0].tensor.mutable_grad() = at::ones({40, 30});
  optimizer.accumulate(1);
  optimizer.step(0);
  EXPECT_TRUE(parameters[1].tensor.detach().equal(before));
  EXPECT_EQ(optimizer.state_scalars().at("updates.student.mlp.weight"), 1.0);
  EXPECT_EQ(optimizer.state_scalars().at("updates.student.norm.weight"), 0.0);
}

TEST(Optimizer, OnMetaItsMemoryIsCountedAndNothingIsMixed) {
  const memory::MetaMemory memory;
  const auto on_meta = [](const at::Tensor& t) {
    return at::empty(t.sizes(), t.options().device(at::kMeta).requires_grad(false)).requires_grad_(true);
  };
  std::vector<Parameter> parameters = two(at::kBFloat16);
  for (Parameter& p : parameters) p.tensor = on_meta(p.tensor);
  const int64_t before = memory::MetaMemory::live_bytes();
  Optimizer optimizer(options("ema = 0.9\n", 20), parameters);
  EXPECT_EQ(memory::MetaMemory::live_bytes() - before, (1200 + 30) * 4 * 4);  // master, two moments, EMA
  const precision::OperatorRecorder recorder;
  for (const Parameter& p : parameters) p.tensor.mutable_grad() = at::empty_like(p.tensor.detach());
  optimizer.accumulate(2);
  for (const Parameter& p : parameters) p.tensor.mutable_grad() = at::empty_like(p.tensor.detach());
  optimizer.accumulate(2);
  EXPECT_FALSE(optimizer.step(0).skipped);
  EXPECT_EQ(recorder.violations(), std::vector<std::string>{});
}

TEST(Optimizer, MisuseIsAFaultOfTheProgram) {
  const auto parameters = two(at::kFloat);
  Optimizer optimizer(options("", 20), parameters);
  EXPECT_THROW(optimizer.step(0), std::logic_error);
  give_gradients(parameters, 1, 1.0);
  optimizer.accumulate(2);
  EXPECT_THROW(optimizer.step(0), std::logic_error);
  EXPECT_THROW(optimizer.accumulate(3), std::logic_error);
  EXPECT_THROW(optimizer.swap_ema(), std::logic_error);
  EXPECT_THROW(Optimizer(options("", 20), {parameters[0], parameters[0]}), std::logic_error);
  EXPECT_THROW(Optimizer(options("", 20), {{"x", parameters[0].tensor, "teacher", true}}), std::logic_error);
  EXPECT_THROW(Optimizer(options("", 20), {{"x", at::ones({3}), "student", true}}), std::logic_error);
}

TEST(Optimizer, RecipesThatCannotWorkAreRefusedWithTheirLine) {
  const auto message = [](const std::string& keys) {
    return message_of([&] { Optimizer(options(keys, 20), two(at::kFloat)); });
  };
  EXPECT_NE(message("loss_scale_start = 0.5\n").find("2: optim.loss_scale_start = 0.5 (my.ini:4)"), std::string::npos);
  EXPECT_NE(message("beta2 = 1\n").find("2: optim.beta2 = 1 (my.ini:4): wanted less than 1"), std::string::npos);
  EXPECT_NE(message("ema = 1\n").find("optim.ema"), std::string::npos);
}

}  // namespace
}  // namespace limbeck::optim
