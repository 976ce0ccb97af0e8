// A stand-in for a library of FlashAttention 3: the same two operators under the same schemas, plain. It refuses what
// the real one refuses, what would be other bits each time, and what nobody here asks for; and it takes what the real
// one takes of the device's memory (hopper/flash_api_stable.cpp of Dao-AILab/flash-attention, read on 2026-11-29).
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cstdlib>
#include <stdexcept>
#include <tuple>

#include "fake_cuda/fake_device.h"
#include "fake_cuda/plain_attention.h"

namespace limbeck::fake_cuda {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
using OptionalNumber = std::optional<int64_t>;

void check_hopper() {
  TORCH_CHECK(compute_capability() == 90, "no kernel image is available for execution on the device");
}

// As the real one where it was built without: in words that are no error of LibTorch's.
void check_built_with(double softcap) {
  if (softcap > 0 && std::getenv("LIMBECK_FAKE_FLASH_ATTENTION_3_WITHOUT_SOFTCAPS") != nullptr) {
    throw std::runtime_error("This flash attention build does not support tanh softcapping.");
  }
}

std::optional<int64_t> some(int64_t side) { return side < 0 ? std::nullopt : std::optional(side); }

// Of [B, L, H, D], or of [total, H, D] by cumulative lengths.
struct Sequences {
  int64_t count, longest, total;

  Sequences(const Tensor& t, const Optional& cumulative, const OptionalNumber& longest_said)
      : count(cumulative ? cumulative->numel() - 1 : t.size(0)), total(t.numel() / (t.size(-1) * t.size(-2))) {
    TORCH_CHECK(!cumulative || longest_said, "max_seqlen must be provided if cu_seqlens is");
    longest = cumulative ? *longest_said : t.size(1);
  }

  std::vector<int64_t> ends(const Tensor& cumulative, const Tensor& t) const {
    std::vector<int64_t> found = ends_of(cumulative, t);
    for (size_t i = 1; i < found.size(); ++i) {  // the real one leaves out what is beyond
      TORCH_CHECK(found[i] - found[i - 1] <= longest, "max_seqlen is ", longest, ", and a sequence has ",
                  found[i] - found[i - 1]);
    }
    return found;
  }
};

Tensor floats(at::IntArrayRef sizes, const Tensor& q) { return at::empty(sizes, q.options().dtype(at::kFloat)); }
Tensor integers(at::IntArrayRef sizes, const Tensor& q) { return at::empty(sizes, q.options().dtype(at::kInt)); }

int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// As its source changes them: what reaches everything is no window.
struct Mask {
  int64_t left, right;
  bool causal, local;

  Mask(const Sequences& q, const Sequences& k, bool asked, int64_t left_asked, int64_t right_asked)
      : left(left_asked >= k.longest - 1 ? -1 : left_asked), right(right_asked >= q.longest - 1 ? -1 : right_asked) {
    if (asked) right = 0;
    causal = left < 0 && right == 0;
    local = (left >= 0 || right >= 0) && !causal;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Optional& k_new, const Optional& v_new,
    const Optional& q_v, const Optional& out_given, const Optional& ends_q, const Optional& ends_k,
    const Optional& ends_k_new, const Optional& used_q, const Optional& used_k, OptionalNumber longest_q,
    OptionalNumber longest_k, const Optional& page_table, const Optional& kv_batch, const Optional& leftpad,
    const Optional& rotary_cos, const Optional& rotary_sin, const Optional& rotary_lengths, const Optional& q_descale,
    const Optional& k_descale, const Optional& v_descale, std::optional<double> scale, bool causal, int64_t left,
    int64_t right, int64_t chunk, double softcap, bool interleaved, const Optional& scheduler, int64_t splits,
    std::optional<bool> pack_gqa, int64_t margin) {
  check_hopper();
  check_built_with(softcap);
  for (const auto& [name, t] : {std::pair{"query", q}, {"key", k}, {"value", v}}) {
    check_flash_operand(name, t, q, 256);
  }
  for (const Optional* unknown :
       {&k_new, &v_new, &q_v, &out_given, &ends_k_new, &used_q, &used_k, &page_table, &kv_batch, &leftpad, &rotary_cos,
        &rotary_sin, &rotary_lengths, &q_descale, &k_descale, &v_descale, &scheduler}) {
    TORCH_CHECK(!unknown->has_value(), "the fake FlashAttention 3 knows no such tensor");
  }
  TORCH_CHECK(scale && chunk == 0 && !interleaved && !pack_gqa && margin == 0,
              "the fake FlashAttention 3 knows none of these");
  TORCH_CHECK(splits == 1, "num_splits is ", splits, ": the number of processors would decide the order of sums");
  TORCH_CHECK(q.size(-2) % k.size(-2) == 0, "Number of heads in key/value must divide number of heads in query");
  const Sequences of_q(q, ends_q, longest_q), of_k(k, ends_k, longest_k);
  TORCH_CHECK(of_q.count == of_k.count, "batch_size must be equal to batch_size_k");
  const bool flat = ends_q.has_value();
  const Mask mask(of_q, of_k, causal && of_q.longest > 1, left, right);
  const Tensor out = at::empty(q.sizes(), q.options());
  const Tensor lse = flat ? floats({q.size(1), of_q.total}, q) : floats({q.size(0), q.size(2), q.size(1)}, q);
  const int64_t vectors = flat ? 2 + (mask.local ? 0 : 1) + (mask.causal || mask.local ? 1 : 0) : 0;
  const Tensor order =
      flat || mask.causal || mask.local ? integers({1 + vectors * rounded(of_q.count, 4)}, q) : Tensor();
  const PlainAttention attention{*scale, softcap, causal, some(left), some(right)};
  const auto attend = [=, q = place_of(q), k = place_of(k), v = place_of(v), out = place_of(out), lse = place_of(lse),
                       ends_q = place_of(ends_q.value_or(Tensor())), ends_k = place_of(ends_k.value_or(Tensor()))] {
    const Tensor by_head = flat ? lse : at::empty({q.size(-2), of_q.total}, at::kFloat);
    attention.forward(q, k, v, of_q.ends(ends_q, q), of_k.ends(ends_k, k), out, by_head);
    if (!flat) on_host(lse).copy_(by_head.unflatten(1, {q.size(0), q.size(1)}).transpose(0, 1));
  };
  count_operator(q);
  give("flash_attn_3::fwd", q.device(), {q, k, v, ends_q.value_or(Tensor()), ends_k.value_or(Tensor())}, {out, lse},
       attend);
  return {out, lse, Tensor(), Tensor()};
}

// What its backward takes beside the gradients.
struct Scratch {
  Tensor row_sums, row_maxima, dq_sums, dk_sums, dv_sums, dq_turns, dk_turns, dv_turns;

  Scratch(const Tensor& q, const Tensor& k, const Sequences& of_q, const Sequences& of_k, const Mask& mask,
          bool softcap, bool flat) {
    const int64_t depth = q.size(-1), width = depth <= 64 ? 64 : depth <= 96 ? 96 : depth <= 128 ? 128 : 192;
    const bool plain = !mask.causal && !mask.local && !softcap;
    const int64_t block = width == 64 ? (mask.causal && softcap ? 96 : 128) : width == 128 && plain ? 80 : 64;
    const int64_t key_block = width <= 128 ? 128 : 96;
    const auto rows = [&](const Sequences& s, int64_t of) {
      return flat ? rounded(s.total + s.count * of, of) : s.count * rounded(s.longest, of);
    };
    const int64_t heads = q.size(-2), key_heads = k.size(-2);
    row_sums = floats({heads, rows(of_q, block)}, q), row_maxima = floats({heads, rows(of_q, block)}, q);
    dq_sums = floats({heads, rows(of_q, block), width}, q);
    if (heads != key_heads) {
      dk_sums = floats({key_heads, rows(of_k, key_block), width}, q);
      dv_sums = floats({key_heads, rows(of_k, key_block), width}, q);
      dk_turns = integers({rounded(of_k.longest, key_block) / key_block, of_k.count, key_heads}, q);
      dv_turns = integers({rounded(of_k.longest, key_block) / key_block, of_k.count, key_heads}, q);
    }
    dq_turns = integers({rounded(of_q.longest, block) / block, of_q.count, heads}, q);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
    const Optional& dq_given, const Optional& dk_given, const Optional& dv_given, const Optional& ends_q,
    const Optional& ends_k, const Optional& used_q, const Optional& used_k, OptionalNumber longest_q,
    OptionalNumber longest_k, std::optional<double> scale, bool causal, int64_t left, int64_t right, double softcap,
    bool deterministic, int64_t margin) {
  check_hopper();
  check_built_with(softcap);
  TORCH_CHECK(dq_given && dk_given && dv_given && !used_q && !used_k && scale && margin == 0,
              "the fake FlashAttention 3 knows none of these");
  const Tensor dq = *dq_given, dk = *dk_given, dv = *dv_given;
  for (const auto& [name, t] : {std::pair{"query", q},
                                {"key", k},
                                {"value", v},
                                {"out", out},
                                {"dout", dout},
                                {"dq", dq},
                                {"dk", dk},
                                {"dv", dv}}) {
    check_flash_operand(name, t, q, 256);
  }
  TORCH_CHECK(deterministic, "FlashAttention 3's backward would add up in any order");
  TORCH_CHECK(q.size(-1) <= 192, "Deterministic backward not supported for hdim 256.");
  TORCH_CHECK(dq.sizes() == q.sizes() && dk.sizes() == k.sizes() && dv.sizes() == v.sizes(), "gradients are ",
              dq.sizes(), ", ", dk.sizes(), ", ", dv.sizes());
  const Sequences of_q(q, ends_q, longest_q), of_k(k, ends_k, longest_k);
  const bool flat = ends_q.has_value();
  const auto wanted =
      flat ? std::vector<int64_t>{q.size(1), of_q.total} : std::vector<int64_t>{q.size(0), q.size(2), q.size(1)};
  TORCH_CHECK(lse.is_cuda() && lse.scalar_type() == at::kFloat && lse.sizes() == wanted && lse.is_contiguous(),
              "softmax_lse is ", lse.sizes(), " of ", lse.scalar_type(), ", wanted dense ", at::IntArrayRef(wanted));
  const Scratch held(q, k, of_q, of_k, Mask(of_q, of_k, causal, left, right), softcap > 0, flat);
  const PlainAttention attention{*scale, softcap, causal, some(left), some(right)};
  const auto attend = [=, dout = place_of(dout), q = place_of(q), k = place_of(k), v = place_of(v), out = place_of(out),
                       lse = place_of(lse), dq = place_of(dq), dk = place_of(dk), dv = place_of(dv),
                       ends_q = place_of(ends_q.value_or(Tensor())), ends_k = place_of(ends_k.value_or(Tensor()))] {
    const Tensor sums = flat ? lse : on_host(lse).transpose(0, 1).reshape({q.size(-2), -1});
    attention.backward(dout, q, k, v, out, sums, of_q.ends(ends_q, q), of_k.ends(ends_k, k), dq, dk, dv);
  };
  count_operator(q);
  give("flash_attn_3::bwd", q.device(), {dout, q, k, v, out, lse, ends_q.value_or(Tensor()), ends_k.value_or(Tensor())},
       {dq, dk, dv}, attend);
  return {dq, dk, dv, held.row_sums, held.row_maxima, held.dq_sums, held.dk_sums, held.dv_sums};
}

TORCH_LIBRARY(flash_attn_3, m) {
  m.def(
      "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None, Tensor? q_v=None, "
      "Tensor(out!)? out=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None, "
      "Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None, "
      "Tensor? page_table=None, Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, Tensor? rotary_cos=None, "
      "Tensor? rotary_sin=None, Tensor? seqlens_rotary=None, Tensor? q_descale=None, Tensor? k_descale=None, "
      "Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, "
      "int window_size_right=-1, int attention_chunk=0, float softcap=0.0, bool is_rotary_interleaved=False, "
      "Tensor? scheduler_metadata=None, int num_splits=0, bool? pack_gqa=None, int sm_margin=0) "
      "-> (Tensor(out!), Tensor, Tensor, Tensor)");
  m.def(
      "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? dq=None, "
      "Tensor(dk!)? dk=None, Tensor(dv!)? dv=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, "
      "Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None, "
      "float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, int window_size_right=-1, "
      "float softcap=0.0, bool deterministic=False, int sm_margin=0) "
      "-> (Tensor(dq!), Tensor(dk!), Tensor(dv!), Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flash_attn_3, CUDA, m) {
  m.impl("fwd", forward);
  m.impl("bwd", backward);
}

}  // namespace
}  // namespace limbeck::fake_cuda
