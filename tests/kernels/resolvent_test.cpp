#include "kernels/resolvent/resolvent.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <complex>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/resolvent/resolvent_loops.h"
#include "resolvent_cases.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

using kernels::resolvent;

at::Tensor causal_of(const Tensors& in) { return resolvent(in[0], in[1], in[2], in[3]); }
at::Tensor whole_of(const Tensors& in) { return resolvent(in[0], in[1], in[2], in[3], false); }

// The causal recurrence of one row in the longest floating numbers that the machine has.
at::Tensor long_recurrence(const Tensors& in) {
  using Number = std::complex<long double>;
  const at::Tensor a = in[0].to(at::kDouble), b = in[1].to(at::kDouble), c = in[2].to(at::kDouble);
  const at::Tensor z = in[3].to(at::kDouble), out = at::empty({a.numel(), 2}, at::kDouble);
  const auto *diagonal = a.const_data_ptr<double>(), *above = b.const_data_ptr<double>(),
             *below = c.const_data_ptr<double>(), *point = z.const_data_ptr<double>();
  auto* to = out.mutable_data_ptr<double>();
  Number g = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const long double p = i == 0 ? 0 : static_cast<long double>(above[i - 1]) * below[i - 1];
    g = Number(1) / (Number(diagonal[i]) - Number(point[0], point[1]) - p * g);
    to[2 * i] = static_cast<double>(g.real());
    to[2 * i + 1] = static_cast<double>(g.imag());
  }
  return out;
}

Tensors widened(Tensors in) {
  for (at::Tensor& one : in) one = one.to(at::kDouble);
  return in;
}

// Off-diagonals that differ, in size and sign, or all of 1 (where the original's mistake in them does not show).
Tensors one_matrix(int64_t n, bool uniform, uint64_t seed) {
  Tensors in = matrices({}, n, at::kFloat, seed);
  if (uniform) in[1] = in[2] = at::ones({n - 1}, at::kFloat);
  return in;
}

// 1e-5 is what float32 results leave: half a unit in the last place of numbers of ten.
TEST(Resolvent, EqualsTheDenseInverse) {
  for (const int64_t n : {1, 2, 3, 64, 970}) {
    for (const bool uniform : {false, true}) {
      const Tensors single = one_matrix(n, uniform, 10 + n);
      const at::Tensor wanted = dense_reference(single);
      EXPECT_LT(worst(whole_of(single), wanted), 1e-5) << n;
      EXPECT_LT(worst(whole_of(widened(single)), wanted), 1e-10) << n;
    }
  }
  const Tensors batch = matrices({2, 3}, 17, at::kDouble, 3);
  EXPECT_LT(worst(whole_of(batch), dense_reference(batch)), 1e-12);
}

// Both diagonals of a long matrix from dense inverses of its blocks, exactly: what stands left or right of a block
// enters it at its end alone, as b c times a corner of the inverse of all that stands there.
class BlockInverses {
 public:
  static constexpr int64_t kBlock = 64;
  explicit BlockInverses(const Tensors& in) : in_(widened(in)), blocks_(in[0].numel() / kBlock) {
    const at::Tensor nothing = at::zeros({}, at::kComplexDouble);
    Tensors left{nothing}, right(blocks_ + 1, nothing), diagonals;  // of what ends before a block, or begins with it
    for (int64_t k = 0; k < blocks_; ++k) left.push_back(inverse(k, left[k], nothing)[kBlock - 1][kBlock - 1]);
    for (int64_t k = blocks_ - 1; k > 0; --k) right[k] = inverse(k, nothing, right[k + 1])[0][0];
    for (int64_t k = 0; k < blocks_; ++k) diagonals.push_back(inverse(k, left[k], right[k + 1]).diagonal());
    whole = at::view_as_real(at::cat(diagonals));
    left.erase(left.begin());
    leading = at::view_as_real(at::stack(left));
  }
  at::Tensor whole, leading;  // [n, 2]; [n / kBlock, 2], of the leading matrices that end with a block

 private:
  at::Tensor inverse(int64_t block, const at::Tensor& before, const at::Tensor& after) const {
    const int64_t begin = block * kBlock, end = begin + kBlock;
    const auto beside = [&](const at::Tensor& t) { return t.narrow(0, begin, kBlock - 1); };
    const at::Tensor dense = dense_system({in_[0].narrow(0, begin, kBlock), beside(in_[1]), beside(in_[2]), in_[3]});
    if (block > 0) dense[0][0] -= in_[1][begin - 1] * in_[2][begin - 1] * before;
    if (block + 1 < blocks_) dense[kBlock - 1][kBlock - 1] -= in_[1][end - 1] * in_[2][end - 1] * after;
    return at::linalg_inv(dense);
  }
  const Tensors in_;
  const int64_t blocks_;
};

TEST(Resolvent, EqualsBlocksOfALongDenseInverse) {
  // The reference itself, where one dense inverse is quick.
  const Tensors quick = one_matrix(512, false, 16);
  EXPECT_LT(worst(BlockInverses(quick).whole, dense_reference(quick)), 1e-12);
  for (const bool uniform : {false, true}) {
    const Tensors single = one_matrix(8192, uniform, 17);
    const BlockInverses wanted(single);
    const auto ends = [](const at::Tensor& g) {
      return g.slice(0, BlockInverses::kBlock - 1, std::nullopt, BlockInverses::kBlock);
    };
    EXPECT_LT(worst(whole_of(single), wanted.whole), 1e-5) << uniform;
    EXPECT_LT(worst(whole_of(widened(single)), wanted.whole), 1e-10) << uniform;
    EXPECT_LT(worst(ends(causal_of(single)), wanted.leading), 1e-5) << uniform;
    EXPECT_LT(worst(ends(causal_of(widened(single))), wanted.leading), 1e-10) << uniform;
  }
}

// Some columns of the dense inverse, which is a third of its work; the original gave zeros from n = 970 on.
TEST(Resolvent, EqualsColumnsOfALongDenseInverse) {
  constexpr int64_t n = 2048;
  const Tensors in = matrices({}, n, at::kDouble, 15);
  const at::Tensor chosen = at::tensor({0, 1, 2, 500, 969, 970, 971, 1023, 1024, 1500, 2046, 2047}, at::kLong);
  const at::Tensor columns = at::linalg_solve(dense_system(in), at::eye(n, at::kComplexDouble).index_select(1, chosen));
  const at::Tensor wanted = at::view_as_real(columns.gather(0, chosen.unsqueeze(0)).squeeze(0));
  EXPECT_LT(worst(whole_of(in).index_select(0, chosen), wanted), 1e-10);
  Tensors single;
  for (const at::Tensor& one : in) single.push_back(one.to(at::kFloat));
  EXPECT_LT(worst(whole_of(single), whole_of(widened(single))), 1e-5);
  EXPECT_TRUE(whole_of(single).abs().sum(-1).gt(0.01).all().item<bool>());
}

TEST(Resolvent, CausalEqualsTheInverseOfTheLeadingMatrix) {
  for (const int64_t n : {1, 2, 3, 64}) {
    const Tensors wide = matrices({2}, n, at::kDouble, 20 + n);
    EXPECT_LT(worst(causal_of(wide), leading_reference(wide)), 1e-11) << n;
  }
  for (const int64_t n : {970, 8192}) {
    for (const bool uniform : {false, true}) {
      const Tensors single = one_matrix(n, uniform, 30 + n);
      EXPECT_LT(worst(causal_of(single), long_recurrence(single)), 1e-5) << n;
    }
  }
}

// Determinants of 20,000 rows overflow every float there is; what is computed here does not grow.
TEST(Resolvent, LongRowsNeitherOverflowNorVanish) {
  for (const double scale : {1e-6, 1.0, 1e6}) {
    Tensors in = matrices({}, 20000, at::kFloat, 40, 0.5, true);
    for (size_t k = 0; k < 3; ++k) in[k] = in[k] * scale;
    for (const bool causal : {true, false}) {
      const at::Tensor g = resolvent(in[0], in[1], in[2], in[3], causal);
      EXPECT_TRUE(g.isfinite().all().item<bool>() && g.select(-1, 1).gt(0).all().item<bool>()) << scale;
      if (scale <= 1) kernels::check_resolvent_bounds(g, in[3], 1e-6);
    }
  }
}

// T = [[0, 1], [-1, 0]] has the eigenvalue i: at z = i the leading matrix of three is singular, the whole is not.
TEST(Resolvent, PassesASingularLeadingMatrix) {
  const Tensors in{at::zeros({3}, at::kDouble), at::ones({2}, at::kDouble), -at::ones({2}, at::kDouble),
                   at::tensor({0.0, 1.0}, at::kDouble)};
  EXPECT_LT(worst(whole_of(in), dense_reference(in)), 1e-12);
  const Tensors ours = output_and_gradients(whole_of, in, 4), wanted = output_and_gradients(dense_reference, in, 4);
  for (size_t k = 0; k < ours.size(); ++k) EXPECT_LT(worst(ours[k], wanted[k]), 1e-12) << k;
}

TEST(Resolvent, KeepsEveryPromiseOfAnOperator) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (const bool causal : {true, false}) {
      const Case c{causal ? causal_of : whole_of, causal ? leading_reference : dense_reference,
                   matrices({2, 3}, 9, dtype, 50), 4};
      expect_matches_reference(c);
      expect_inference_equals_training(c);
      expect_meta_agrees(c);
      const Case segmented{c.ours, c.reference, matrices({}, 3000, dtype, 51), 4};
      expect_threads_do_not_matter(segmented);
    }
  }
}

// ---- gradients against differences ----------------------------------------------------------------------------------

struct Loss {
  bool causal;
  at::Tensor weights, documents;
  at::Tensor operator()(const Tensors& in) const {
    const std::optional<at::Tensor> ids = documents.defined() ? std::optional(documents) : std::nullopt;
    return (resolvent(in[0], in[1], in[2], in[3], causal, ids) * weights).sum();
  }
};

Tensors gradients_of(const Loss& loss, const Tensors& in) {
  Tensors leaves, gradients;
  for (const at::Tensor& one : in) leaves.push_back(one.detach().clone().requires_grad_());
  loss(leaves).backward();
  for (const at::Tensor& leaf : leaves) gradients.push_back(leaf.grad());
  return gradients;
}

double difference(const Loss& loss, const Tensors& in, size_t which, const at::Tensor& direction) {
  constexpr double kStep = 1e-5;
  Tensors up = in, down = in;
  up[which] = in[which] + direction * kStep;
  down[which] = in[which] - direction * kStep;
  return (loss(up) - loss(down)).item<double>() / (2 * kStep);
}

TEST(Resolvent, EveryGradientEqualsDifferences) {
  const at::Tensor documents = at::tensor({0, 0, 0, 1, 1, 1, 1, 2, 3}, at::kLong);
  for (const bool causal : {true, false}) {
    for (const bool divided : {false, true}) {
      const Tensors in = matrices({2}, 9, at::kDouble, 60);
      const Loss loss{causal, random_tensor({2, 9, 2}, at::kDouble, 61), divided ? documents : at::Tensor()};
      const Tensors gradients = gradients_of(loss, in);
      for (size_t which = 0; which < in.size(); ++which) {
        const double scale = gradients[which].abs().max().item<double>();
        for (int64_t k = 0; k < in[which].numel(); ++k) {
          at::Tensor one = at::zeros_like(in[which]);
          one.view(-1)[k] = 1.0;
          const double ours = gradients[which].reshape(-1)[k].item<double>();
          EXPECT_NEAR(ours, difference(loss, in, which, one), 1e-6 * std::max(std::abs(ours), 1e-2 * scale))
              << "input " << which << " element " << k << " causal " << causal;
        }
      }
    }
  }
}

// Along the row too work is divided, in the sums of the gradients as well.
TEST(Resolvent, GradientsOfLongRowsEqualDifferences) {
  for (const bool causal : {true, false}) {
    const Tensors in = matrices({}, 5000, at::kDouble, 70, 0.5, true);
    const Loss loss{causal, random_tensor({5000, 2}, at::kDouble, 71), at::Tensor()};
    const Tensors gradients = gradients_of(loss, in);
    for (size_t which = 0; which < in.size(); ++which) {
      const at::Tensor direction = random_tensor(in[which].sizes(), at::kDouble, 72 + which);
      const double ours = (gradients[which] * direction).sum().item<double>();
      EXPECT_NEAR(ours, difference(loss, in, which, direction), 1e-6 * std::abs(ours)) << which;
    }
  }
}

// ---- bits -----------------------------------------------------------------------------------------------------------

TEST(Resolvent, CausalDoesNotSeeWhatFollows) {
  const Tensors in = matrices({}, 3000, at::kFloat, 80);
  const at::Tensor before = causal_of(in);
  for (const int64_t cut : {1, 17, 1500, 2999}) {
    Tensors other = in;
    for (size_t k = 0; k < 3; ++k) {
      const int64_t kept = k == 0 ? cut : cut - 1;
      other[k] = at::cat({in[k].narrow(0, 0, kept), in[k].narrow(0, kept, in[k].size(0) - kept) * -3 + 1});
    }
    const at::Tensor after = causal_of(other);
    expect_same_bits(before.narrow(0, 0, cut), after.narrow(0, 0, cut), "up to the change");
    EXPECT_FALSE(before.narrow(0, cut, 1).equal(after.narrow(0, cut, 1)));
  }
}

// A row alone is divided into segments, the first 32 of 40 such are not, and pieces of 100 never are: the same bits in
// values and gradients. In the even matrix with z close above its band nothing contracts, and no segment's start is
// right.
TEST(Resolvent, SegmentsHaveTheBitsOfTheRecurrence) {
  constexpr int64_t rows = 40, n = 2000;
  for (const double height : {1.0, 0.05, 1e-5}) {
    for (const bool even : {false, true}) {
      Tensors in = matrices({rows}, n, at::kFloat, 90, height);
      if (even) in = {at::full({rows, n}, -0.7f), at::ones({rows, n - 1}), at::ones({rows, n - 1}), in[3]};
      const Tensors one{in[0][7], in[1][7], in[2][7], in[3]};
      const at::Tensor weights = random_tensor({rows, n, 2}, at::kFloat, 91);
      const int threads = at::get_num_threads();
      for (const bool causal : {true, false}) {
        SCOPED_TRACE(std::to_string(height) + (even ? " even" : " random") + (causal ? " causal" : " whole"));
        const Loss of_all{causal, weights, at::Tensor()}, of_one{causal, weights[7], at::Tensor()};
        const Tensors many = gradients_of(of_all, in), alone = gradients_of(of_one, one);
        for (size_t k = 0; k < 3; ++k) expect_same_bits(many[k][7], alone[k], "gradient of a row alone");
        const at::Tensor g = resolvent(one[0], one[1], one[2], one[3], causal);
        expect_same_bits(resolvent(in[0], in[1], in[2], in[3], causal)[7], g, "a row alone");
        at::set_num_threads(threads == 1 ? 2 : 1);
        expect_same_bits(g, resolvent(one[0], one[1], one[2], one[3], causal), "on other threads");
        expect_same_bits(alone[3], gradients_of(of_one, one)[3], "gradient of z on other threads");
        at::set_num_threads(threads);
      }
      const at::Tensor zero = at::zeros({1}), b = at::cat({zero, one[1]}), c = at::cat({zero, one[2]});
      at::Tensor state = at::zeros({2}, at::kDouble);
      Tensors pieces;
      for (int64_t begin = 0; begin < n; begin += 100) {
        auto [piece, next] = kernels::continued_resolvent(one[0].narrow(0, begin, 100), b.narrow(0, begin, 100),
                                                          c.narrow(0, begin, 100), one[3], state);
        pieces.push_back(piece);
        state = next;
      }
      expect_same_bits(at::cat(pieces), causal_of(one), "in pieces");
    }
  }
}

TEST(Resolvent, DocumentsHaveTheBitsThatTheyHaveAlone) {
  const std::vector<int64_t> lengths = {1, 700, 3, 40, 2500, 1, 300};
  Tensors ids;
  for (size_t k = 0; k < lengths.size(); ++k) ids.push_back(at::full({lengths[k]}, static_cast<int64_t>(k), at::kLong));
  const at::Tensor documents = at::cat(ids);
  Tensors in = matrices({}, documents.numel(), at::kFloat, 100);
  in[0][0] = std::numeric_limits<float>::quiet_NaN();  // the first document's own affair
  const at::Tensor grad = random_tensor({documents.numel(), 2}, at::kFloat, 101);
  for (const bool causal : {true, false}) {
    const Loss packed{causal, grad, documents};
    const at::Tensor g = resolvent(in[0], in[1], in[2], in[3], causal, documents);
    const Tensors gradients = gradients_of(packed, in);
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      const Tensors alone{in[0].narrow(0, begin, length), in[1].narrow(0, begin, length - 1),
                          in[2].narrow(0, begin, length - 1), in[3]};
      const Tensors of_alone = gradients_of({causal, grad.narrow(0, begin, length), at::Tensor()}, alone);
      if (begin > 0) {
        expect_same_bits(g.narrow(0, begin, length), resolvent(alone[0], alone[1], alone[2], in[3], causal), "values");
        expect_same_bits(gradients[0].narrow(0, begin, length), of_alone[0], "gradient of a");
        expect_same_bits(gradients[1].narrow(0, begin, length - 1), of_alone[1], "gradient of b");
        expect_same_bits(gradients[2].narrow(0, begin, length - 1), of_alone[2], "gradient of c");
        EXPECT_EQ(gradients[1][begin - 1].item<float>(), 0.0f);
      }
      begin += length;
    }
  }
}

TEST(Resolvent, EveryInstructionSetHasTheSameBits) {
  const int64_t n = 1000;
  const Tensors in = matrices({3}, n, at::kFloat, 110);
  const std::vector<double> points = {0.3, 0.5, 0.2, 0.01, -1.0, 2.0};
  const kernels::Tridiagonals m{in[0].const_data_ptr(),
                                in[1].const_data_ptr(),
                                in[2].const_data_ptr(),
                                n,
                                n - 1,
                                n - 1,
                                points.data(),
                                nullptr,
                                0,
                                nullptr,
                                n};
  const kernels::RowSegments segments{3, 3, 334};
  const auto run = [&](kernels::CpuIsa isa) {
    const kernels::ResolventLoops& loops = kernels::resolvent_loops_for(isa);
    const at::Tensor green = at::empty({3, n, 2}, at::kDouble), sums = at::empty_like(green);
    std::vector<double> entries(18);
    const kernels::ResolventSweep right{true,           nullptr, nullptr, green.mutable_data_ptr<double>(),
                                        entries.data(), nullptr};
    const kernels::ResolventSweep left{false,
                                       green.const_data_ptr<double>(),
                                       green.const_data_ptr<double>(),
                                       sums.mutable_data_ptr<double>(),
                                       entries.data(),
                                       nullptr};
    for (const auto* sweep : {&right, &left}) {
      loops.sweep(kernels::Storage::kFloat32, m, segments, *sweep, 0, 1);
      for (int64_t row = 0; row < 3; ++row) loops.repair(kernels::Storage::kFloat32, m, segments, *sweep, row);
    }
    return at::stack({green, sums});
  };
  const at::Tensor wanted = run(kernels::CpuIsa::kBaseline);
  for (const kernels::CpuIsa isa : {kernels::CpuIsa::kAvx2, kernels::CpuIsa::kAvx512}) {
    if (kernels::cpu_isa() >= isa) expect_same_bits(wanted, run(isa), "instruction set");
  }
}

// ---- refusals -------------------------------------------------------------------------------------------------------

void expect_refused(const std::function<void()>& call, const std::vector<std::string>& words) {
  try {
    call();
    ADD_FAILURE() << "taken";
  } catch (const c10::Error& error) {
    for (const std::string& word : words)
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

TEST(Resolvent, RefusesWhatItCannotMean) {
  const Tensors in = matrices({2}, 5, at::kFloat, 120);
  const auto with = [&](size_t which, const at::Tensor& other) {
    return [=, all = in]() mutable {
      all[which] = other;
      causal_of(all);
    };
  };
  expect_refused(with(3, at::tensor({0.5f, 0.0f})), {"[resolvent] z of row 0 is 0.5 + 0i", "Im z > 0"});
  expect_refused(with(3, at::tensor({0.5f, 1.0f, 0.5f, -1.0f}).view({2, 2})), {"z of row 1 is 0.5 + -1i"});
  expect_refused(with(3, at::tensor({0.5f, std::numeric_limits<float>::quiet_NaN()})), {"a finite number"});
  expect_refused(with(3, at::ones({3, 2})), {"z is float32 [3, 2]", "expand to those of a (float32 [2, 5] on cpu)"});
  expect_refused(with(3, at::ones({2}, at::kComplexFloat)), {"z is", "wanted float32 as a"});
  expect_refused(with(0, at::ones({2, 5}, at::kBFloat16)), {"a is bfloat16 [2, 5]", "float32 or float64"});
  expect_refused(with(0, at::ones({2, 0})), {"a is float32 [2, 0]", "n > 0"});
  expect_refused(with(0, at::ones({2, 6})), {"b is float32 [2, 4]", "wanted [2, 5]"});
  expect_refused(with(1, at::ones({2, 5})), {"b is float32 [2, 5]", "wanted [2, 4]"});
  expect_refused(with(2, at::ones({2, 4}, at::kDouble)), {"c is float64 [2, 4]", "wanted float32 as a"});
  const auto of_documents = [&](const at::Tensor& ids) {
    return [=] { resolvent(in[0], in[1], in[2], in[3], true, ids); };
  };
  expect_refused(of_documents(at::zeros({5}, at::kInt)), {"documents is int32 [5]", "wanted int64 [5]"});
  expect_refused(of_documents(at::zeros({4}, at::kLong)), {"documents is int64 [4]", "wanted int64 [5]"});
  expect_refused(
      [&] {
        kernels::continued_resolvent(in[0], in[0], in[0], in[3], at::zeros({2, 2}));
      },
      {"[continued_resolvent] state is float32 [2, 2]", "wanted float64 [2, 2]", "zeros"});
  expect_refused([&] { kernels::check_resolvent_bounds(causal_of(in) * 9, in[3], 1e-6); }, {"wanted"});
  EXPECT_EQ(causal_of({at::ones({0, 5}), at::ones({0, 4}), at::ones({0, 4}), in[3]}).numel(), 0);
}

}  // namespace
}  // namespace limbeck::test
