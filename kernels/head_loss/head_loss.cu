// The fused head on CUDA: a thread block a token. Sums run over a thread's own ids, then over the block in an order
// that depends on the vocabulary alone (no atomics).
#include <cfloat>

#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/head_loss/divergence_numbers.h"
#include "kernels/head_loss/head_loss_cuda.h"

namespace limbeck::kernels {
namespace {

using Ops = NumberOps<float>;

constexpr int kMostThreads = 512;
constexpr int kBlocksAtOnce = 2;  // of a multiprocessor: at most 64 registers a thread

// The largest of a thread's logits and the sum of exp(logit - largest). It begins at the least number, not at minus
// infinity, which minus itself is none.
struct Softmax {
  float max = -FLT_MAX, sum = 0.0f;

  __device__ __forceinline__ void add(float x) {
    if (x > max) {
      sum = sum * expf(max - x) + 1.0f;
      max = x;
    } else {
      sum += expf(x - max);
    }
  }
};

struct BlockSoftmax {
  float max;
  double sum;
};
__device__ __forceinline__ BlockSoftmax over_block(const Softmax& mine) {
  const float max = block_max(mine.max);
  return {max, block_sum(static_cast<double>(mine.sum * expf(mine.max - max)))};
}

struct TokenLogits {
  float plain, plain_slope;  // of the student, after scale and softcap
  float student, teacher;    // tempered
  float slope;               // of the student's by its plain one
};
template <Divergence Kind>
__device__ __forceinline__ TokenLogits logits_at(const HeadTokens& a, const float* student, const float* teacher,
                                                 int64_t v) {
  TokenLogits z{};
  z.plain = plain_logit<Ops>(student[v], a.formula.student_scale, a.formula.student_cap, &z.plain_slope);
  if constexpr (Kind != Divergence::kNone) {
    float unused;
    z.student = tempered_logit<Ops>(z.plain, a.formula, &z.slope);
    const float other = plain_logit<Ops>(teacher[v], a.formula.teacher_scale, a.formula.teacher_cap, &unused);
    z.teacher = tempered_logit<Ops>(other, a.formula, &unused);
  }
  return z;
}

// What a token counts for, and where its logits lie.
struct Token {
  const float *student, *teacher;
  float divergence_weight, ce_weight;
  int64_t label;

  __device__ __forceinline__ bool counts() const { return divergence_weight != 0.0f || ce_weight != 0.0f; }
};
template <Divergence Kind>
__device__ __forceinline__ Token token_of(const HeadTokens& a, int64_t row) {
  Token t{a.student + row * a.stride, nullptr, 0.0f, 0.0f, -1};
  if constexpr (Kind != Divergence::kNone) {
    t.teacher = a.teacher + row * a.stride;
    t.divergence_weight = a.divergence_weight[row];
  }
  if (a.labels != nullptr) t.label = a.labels[row];
  if (t.label >= 0) t.ce_weight = a.ce_weight[row];
  return t;
}

// The first pass over the logits.
template <Divergence Kind>
__device__ __forceinline__ HeadRow softmax_row(const HeadTokens& a, const Token& token, float* cross_entropy) {
  constexpr bool kSoftmax = Kind != Divergence::kNone && Kind != Divergence::kLogitMse;
  const HeadFormula& f = a.formula;
  const bool plain_softmax = token.ce_weight != 0.0f && !f.ce_shares;
  Softmax student, teacher, plain;
  float total = 0.0f, label_logit = 0.0f;
  for (int64_t v = threadIdx.x; v < f.vocabulary; v += blockDim.x) {
    const TokenLogits z = logits_at<Kind>(a, token.student, token.teacher, v);
    if constexpr (kSoftmax) {
      student.add(z.student);
      teacher.add(z.teacher);
    }
    if (plain_softmax) plain.add(z.plain);
    total += z.plain;
    if (v == token.label) label_logit = z.plain;
  }
  HeadRow row{};
  BlockSoftmax of_plain{};
  if constexpr (kSoftmax) {
    const BlockSoftmax s = over_block(student), t = over_block(teacher);
    row.divergence.student_max = s.max;
    row.divergence.teacher_max = t.max;
    row.divergence.student_inverse = static_cast<float>(1.0 / s.sum);
    row.divergence.teacher_inverse = static_cast<float>(1.0 / t.sum);
    row.divergence.shift =
        static_cast<float>((static_cast<double>(s.max) - static_cast<double>(t.max)) + log(s.sum / t.sum));
    of_plain = s;
  }
  if (plain_softmax) of_plain = over_block(plain);
  *cross_entropy = 0.0f;
  if (token.ce_weight == 0.0f) return row;
  row.plain_max = of_plain.max;
  row.plain_inverse = static_cast<float>(1.0 / of_plain.sum);
  const double all = block_sum(static_cast<double>(total)), of_label = block_sum(static_cast<double>(label_logit));
  const double smoothing = f.smoothing;
  *cross_entropy =
      static_cast<float>(static_cast<double>(of_plain.max) + log(of_plain.sum) - (1.0 - smoothing) * of_label -
                         smoothing * all / static_cast<double>(f.vocabulary));
  return row;
}

// The second one: value, mean slope, and a bound of the gradient.
template <Divergence Kind>
__device__ __forceinline__ float divergence_row(const HeadTokens& a, const Token& token, LogitRow<float>& row,
                                                float* largest) {
  float value = 0.0f, mean_slope = 0.0f, most = 0.0f;
  for (int64_t v = threadIdx.x; v < a.formula.vocabulary; v += blockDim.x) {
    const TokenLogits z = logits_at<Kind>(a, token.student, token.teacher, v);
    const auto t = logit_terms<Kind, Ops>(z.student, z.teacher, row, a.formula.mix, false);
    value += t.value;
    if constexpr (needs_mean_slope(Kind)) mean_slope += t.slope;
    most = fmaxf(most, fabsf(t.gradient));  // the mean slope is 0 so far
  }
  most = block_max(most);
  if constexpr (needs_mean_slope(Kind)) {
    row.mean_slope = static_cast<float>(block_sum(static_cast<double>(mean_slope)));
    most += fabsf(row.mean_slope) * row.student_inverse;  // no probability is larger
  }
  *largest = fabsf(token.divergence_weight * a.gradient_factor) * a.formula.inverse_temperature * most;
  return static_cast<float>(block_sum(static_cast<double>(value)) * static_cast<double>(a.value_factor));
}

template <Divergence Kind>
__global__ void __launch_bounds__(kMostThreads, kBlocksAtOnce)
    head_statistics(HeadTokens a, float* divergence, float* cross_entropy, float* largest) {
  const int64_t at = blockIdx.x;
  const Token token = token_of<Kind>(a, at);
  HeadRow row{};
  float value = 0.0f, ce = 0.0f, bound = 0.0f;
  if (token.counts()) {
    row = softmax_row<Kind>(a, token, &ce);
    if constexpr (Kind != Divergence::kNone) {
      if (token.divergence_weight != 0.0f) value = divergence_row<Kind>(a, token, row.divergence, &bound);
    }
    bound = (bound + fabsf(token.ce_weight * a.ce_factor)) * fabsf(a.formula.student_scale);
  }
  if (threadIdx.x != 0) return;
  a.rows[at] = row;
  divergence[at] = value;
  cross_entropy[at] = ce;
  largest[at] = bound;
}

template <Divergence Kind, class T>
__global__ void __launch_bounds__(kMostThreads, kBlocksAtOnce) head_gradients(HeadTokens a, const float* largest) {
  const int64_t at = blockIdx.x;
  const HeadFormula& f = a.formula;
  const Token token = token_of<Kind>(a, at);
  const HeadRow row = a.rows[at];
  const bool counts = token.counts();
  const float weight = token.divergence_weight * a.gradient_factor, ce_weight = token.ce_weight * a.ce_factor;
  const float even_share = f.smoothing / static_cast<float>(f.vocabulary);
  const float units = largest != nullptr ? kHalfUnits / fmaxf(*largest, 1e-30f) : 1.0f;
  T* out = reinterpret_cast<T*>(const_cast<float*>(token.student));
  for (int64_t begin = 0; begin < f.vocabulary; begin += blockDim.x) {
    const int64_t v = begin + threadIdx.x;
    float g = 0.0f;
    if (counts && v < f.vocabulary) {
      const TokenLogits z = logits_at<Kind>(a, token.student, token.teacher, v);
      const bool shares = ce_weight != 0.0f && f.ce_shares;
      LogitTerms<float> t{};
      if constexpr (Kind != Divergence::kNone) {
        if (weight != 0.0f || shares) {
          t = logit_terms<Kind, Ops>(z.student, z.teacher, row.divergence, f.mix, shares);
        }
        if (weight != 0.0f) g = z.slope * (weight * t.gradient);
      }
      if (ce_weight != 0.0f) {
        const float p = shares ? t.student : expf(z.plain - row.plain_max) * row.plain_inverse;
        g += ce_weight * (p - (v == token.label ? (1.0f - f.smoothing) + even_share : even_share));
      }
      g *= z.plain_slope * units;
    }
    // Halves lie over this round's logits and those before it, never over the next one's: all read, then all write.
    if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
    if (v < f.vocabulary) put(out + v, g);
  }
}

}  // namespace

void launch_head_statistics(const HeadTokens& args, int64_t tokens, float* divergence, float* cross_entropy,
                            float* largest, cudaStream_t stream) {
  if (tokens == 0) return;
  const int threads = threads_of_row(args.formula.vocabulary, kMostThreads);
  const auto grid = static_cast<unsigned>(tokens);
  with_divergence(args.formula.divergence, [&](auto tag) {
    constexpr Divergence kKind = decltype(tag)::kKind;
    head_statistics<kKind><<<grid, threads, 0, stream>>>(args, divergence, cross_entropy, largest);
  });
}

void launch_head_gradients(const HeadTokens& args, int64_t tokens, Storage storage, const float* largest,
                           cudaStream_t stream) {
  if (tokens == 0) return;
  const int threads = threads_of_row(args.formula.vocabulary, kMostThreads);
  const auto grid = static_cast<unsigned>(tokens);
  with_divergence(args.formula.divergence, [&](auto tag) {
    constexpr Divergence kKind = decltype(tag)::kKind;
    with_narrow_device_type(storage, [&](auto type) {
      using T = typename decltype(type)::Type;
      head_gradients<kKind, T><<<grid, threads, 0, stream>>>(args, largest);
    });
  });
}

}  // namespace limbeck::kernels
