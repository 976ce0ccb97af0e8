#include "kernels/sampling/sampling.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support/device_dtype.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

using kernels::SamplingOptions;

// The number that a row draws, by hand.
double uniform_of(uint64_t seed, uint64_t row, uint64_t step) {
  const uint64_t golden = 0x9e3779b97f4a7c15;
  const auto mixed = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  };
  const uint64_t bits = mixed(mixed(mixed(seed + golden) + row * golden) + step * golden);
  return (static_cast<double>(bits >> 32) + 0.5) / 4294967296.0;
}

// What a row's token is by definition: all sorted, and all summed in that order, in float64.
int64_t sampled_by_sorting(const at::Tensor& logits_v, const SamplingOptions& options, uint64_t row) {
  const at::Tensor wide = logits_v.to(at::kDouble);
  const at::Tensor scaled = ((wide - wide.max()) / options.temperature).contiguous();
  const double* score = scaled.const_data_ptr<double>();
  std::vector<int64_t> order(static_cast<size_t>(scaled.numel()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
  if (options.top_k > 0 && options.top_k < scaled.numel()) order.resize(static_cast<size_t>(options.top_k));
  std::vector<double> cumulative;
  double total = 0.0;
  for (const int64_t id : order) cumulative.push_back(total += std::exp(score[id] - score[order[0]]));
  const auto last = std::lower_bound(cumulative.begin(), cumulative.end(), options.top_p * total);
  const auto kept = std::min<size_t>(static_cast<size_t>(last - cumulative.begin()) + 1, cumulative.size());
  const double target = uniform_of(options.seed, row, static_cast<uint64_t>(options.step)) * cumulative[kept - 1];
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.begin() + static_cast<int64_t>(kept), target);
  return order[std::min<size_t>(static_cast<size_t>(chosen - cumulative.begin()), kept - 1)];
}

at::Tensor by_sorting(const at::Tensor& logits_bv, const SamplingOptions& options) {
  const at::Tensor on_cpu = logits_bv.cpu();
  const at::Tensor given =
      options.allow_nonfinite ? on_cpu.nan_to_num(-std::numeric_limits<double>::infinity()).nan_to_num() : on_cpu;
  const at::Tensor ids = at::empty({given.size(0)}, at::kLong);
  for (int64_t row = 0; row < given.size(0); ++row) {
    const bool broken = !options.allow_nonfinite && !given[row].isfinite().all().item<bool>();
    ids[row] = broken                       ? -1
               : options.temperature == 0.0 ? (given[row] == given[row].max()).nonzero()[0].item<int64_t>()
                                            : sampled_by_sorting(given[row], options, static_cast<uint64_t>(row));
  }
  return ids;
}

class SamplingTest : public OperatorTest {
 protected:
  void expect_sorted_ones(const at::Tensor& logits, const SamplingOptions& options) const {
    const at::Tensor ours = kernels::sample_ids(logits, options);
    ASSERT_EQ(ours.scalar_type(), at::kLong);
    ASSERT_EQ(ours.device().type(), GetParam().device);
    const at::Tensor wanted = by_sorting(logits, options);
    EXPECT_TRUE(ours.cpu().equal(wanted))
        << "temperature " << options.temperature << ", top_k " << options.top_k << ", top_p " << options.top_p
        << ", step " << options.step << ": got " << ours.cpu() << ", wanted " << wanted;
  }
  at::Tensor logits_of(int64_t rows, int64_t vocabulary, double deviation, uint64_t seed = 1) const {
    return (random_tensor({rows, vocabulary}, options().dtype(at::kDouble), seed) * deviation).to(GetParam().dtype);
  }
};

TEST_P(SamplingTest, TakesTheTokenThatSortingTakes) {
  const std::vector<SamplingOptions> ways = {{.temperature = 0.0},
                                             {.temperature = 1.0},
                                             {.temperature = 0.7, .top_k = 5},
                                             {.temperature = 1.3, .top_p = 0.9},
                                             {.temperature = 2.5, .top_k = 40, .top_p = 0.5},
                                             {.temperature = 0.01, .top_k = 1 << 20, .top_p = 0.999},
                                             {.temperature = 1e-300, .top_k = 3},
                                             {.temperature = 1e30, .top_k = 7, .top_p = 1e-12},
                                             {.temperature = 1.0, .top_k = 1}};
  for (const int64_t vocabulary : {1, 2, 7, 2047, 2049, 5003}) {
    for (SamplingOptions way : ways) {
      for (const double deviation : {0.3, 4.0}) {
        way.seed += 11, way.step += 1;
        expect_sorted_ones(logits_of(3, vocabulary, deviation), way);
      }
    }
  }
}

TEST_P(SamplingTest, LargeVocabulariesAreTakenByManyBlocks) {
  const at::Tensor logits = logits_of(2, 151936, 3.0);
  expect_sorted_ones(logits, {});
  expect_sorted_ones(logits, {.temperature = 1.0, .seed = 4});
  expect_sorted_ones(logits, {.temperature = 0.8, .top_k = 50, .top_p = 0.95, .seed = 5});
  expect_sorted_ones(logits, {.temperature = 1.5, .top_k = 100000, .top_p = 0.99, .seed = 6});
}

// Few distinct logits: what is drawn is an id among its equals, and limits fall between equals.
TEST_P(SamplingTest, EqualLogitsAreInTheOrderOfTheirIds) {
  for (const double levels : {1.0, 3.0}) {
    const at::Tensor logits = (logits_of(2, 4500, 1.0) * levels).clamp(-levels, levels).round();
    for (int64_t step = 0; step < 3; ++step) {
      for (const int64_t top_k : {0, 1, 1000, 4499}) {
        expect_sorted_ones(logits, {.temperature = 1.0, .top_k = top_k, .seed = 5, .step = step});
        expect_sorted_ones(logits, {.temperature = 0.5, .top_k = top_k, .top_p = 0.75, .seed = 5, .step = step});
      }
    }
    expect_sorted_ones(logits, {});
  }
  const at::Tensor zeros = at::cat({at::full({1, 9}, 0.0, options()), at::full({1, 9}, -0.0, options())}, 1);
  for (int64_t step = 0; step < 8; ++step) {
    for (const double top_p : {0.5, 1.0 / 3, 0.1, 1.0}) {
      expect_sorted_ones(zeros, {.temperature = 1.0, .top_p = top_p, .seed = 2, .step = step});
    }
  }
  expect_sorted_ones(zeros.flip(1), {});
}

// Logits that differ, but no more when the greatest is subtracted, are equals.
TEST_P(SamplingTest, WhatTheDifferenceMakesEqualIsEqual) {
  at::Tensor logits = logits_of(2, 600, 1.0) * 6e-8;
  logits.select(1, 77).fill_(GetParam().dtype == at::kHalf ? 6e4 : 3e30);
  for (const double temperature : {1e4, 6e4, 1e30, 1e300}) {
    for (int64_t step = 0; step < 4; ++step) {
      expect_sorted_ones(logits, {.temperature = temperature, .top_k = 300, .seed = 3, .step = step});
    }
  }
}

TEST_P(SamplingTest, RowsMayLieApartAndBeginAnywhere) {
  const at::Tensor wide = logits_of(4, 3 * 701, 3.0);
  const SamplingOptions way{.temperature = 0.9, .top_k = 50, .top_p = 0.95, .seed = 8};
  for (const at::Tensor& logits :
       {wide.narrow(1, 1, 701), wide.narrow(1, 13, 1402), wide.t().narrow(0, 3, 4), wide.slice(1, 0, 2103, 3),
        wide.slice(0, 0, 4, 2), wide.narrow(0, 1, 1).expand({3, 2103}), wide.narrow(0, 0, 0)}) {
    expect_sorted_ones(logits, way);
    expect_sorted_ones(logits, {});
  }
}

TEST_P(SamplingTest, ARowsTokenDoesNotDependOnTheRest) {
  const at::Tensor logits = logits_of(5, 900, 2.0);
  const SamplingOptions way{.temperature = 1.1, .top_p = 0.97, .seed = 4, .step = 6};
  const at::Tensor together = kernels::sample_ids(logits, way).cpu();
  for (int64_t rows = 1; rows < 5; ++rows) {
    EXPECT_TRUE(kernels::sample_ids(logits.narrow(0, 0, rows), way).cpu().equal(together.narrow(0, 0, rows)));
  }
}

TEST_P(SamplingTest, BrokenRowsAreNamedOrTamed) {
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const double bad : {infinity, -infinity, nan, -nan}) {
    for (const int64_t place : {0, 2500, 2999}) {
      const at::Tensor logits = logits_of(3, 3000, 1.0);
      logits[1][place] = bad;
      for (const double temperature : {0.0, 1.0}) {
        expect_sorted_ones(logits, {.temperature = temperature, .top_k = 20, .seed = 1});
        expect_sorted_ones(logits, {.temperature = temperature, .top_k = 20, .seed = 1, .allow_nonfinite = true});
      }
    }
  }
  for (const double bad : {infinity, -infinity, nan}) {
    const at::Tensor all = at::full({2, 70}, bad, options());
    expect_sorted_ones(all, {.temperature = 1.0, .top_p = 0.5, .seed = 1});
    expect_sorted_ones(all, {.temperature = 1.0, .top_p = 0.5, .seed = 1, .allow_nonfinite = true});
  }
}

// Rows of one distribution: the shares that were drawn, within five deviations.
TEST_P(SamplingTest, DrawsByTheSoftmax) {
  const int64_t rows = GetParam().device == at::kCUDA ? 100 : 5000;  // emulated ones take 4 ms each
  const at::Tensor logits = at::tensor({0.0, 1.0, -1.0, 2.0, 0.5}, at::kDouble).to(options()).expand({rows, 5});
  const at::Tensor ids = kernels::sample_ids(logits, {.temperature = 0.8, .seed = 17}).cpu();
  const at::Tensor wanted = (logits[0].cpu().to(at::kDouble) / 0.8).softmax(0);
  const at::Tensor got = ids.bincount({}, 5).to(at::kDouble) / rows;
  EXPECT_TRUE(((got - wanted).abs() < 5 * (wanted * (1 - wanted) / rows).sqrt()).all().item<bool>()) << got << wanted;
}

TEST_P(SamplingTest, MetaHasTheIdsAndBadArgumentsAreRefused) {
  const at::Tensor logits = logits_of(3, 9, 1.0), meta = logits.to(at::kMeta);
  EXPECT_EQ(kernels::sample_ids(meta, {}).sizes(), at::IntArrayRef({3}));
  EXPECT_EQ(kernels::sample_ids(meta, {}).scalar_type(), at::kLong);
  EXPECT_FALSE(kernels::sample_ids(logits.detach().requires_grad_(true), {}).requires_grad());
  for (const at::Tensor& given : {logits, meta}) {
    EXPECT_THROW(kernels::sample_ids(given[0], {}), c10::Error);
    EXPECT_THROW(kernels::sample_ids(given.narrow(1, 0, 0), {}), c10::Error);
    EXPECT_THROW(kernels::sample_ids(given, {.temperature = -1.0}), c10::Error);
    EXPECT_THROW(kernels::sample_ids(given, {.temperature = 1.0, .top_k = -1}), c10::Error);
    EXPECT_THROW(kernels::sample_ids(given, {.temperature = 1.0, .top_p = 0.0}), c10::Error);
    EXPECT_THROW(kernels::sample_ids(given.to(at::kLong), {}), c10::Error);
  }
}

INSTANTIATE_TEST_SUITE_P(Operators, SamplingTest, every_device_and_dtype(), name_of);

}  // namespace
}  // namespace limbeck::test
