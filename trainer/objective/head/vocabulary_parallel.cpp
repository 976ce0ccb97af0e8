#include "trainer/objective/head/vocabulary_parallel.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/models/network/token_loss.h"
#include "trainer/objective/head/chunked_head.h"
#include "trainer/objective/head/row_chunks.h"
#include "trainer/parallel/parallel_options.h"

namespace limbeck::objective {

namespace {

using parallel::Communicator;

// The ranks' slices of a vocabulary: as equal as whole ids allow, in rank order.
class DividedVocabulary : public VocabularySums {
 public:
  DividedVocabulary(Communicator& ranks, int64_t ids) : ranks_(ranks), ids_(ids) {
    if (ids >= ranks.size()) return;
    throw UsageError(
        fmt::format("objective.vocabulary_parallel divides {} ids among {} ranks: set it to false", ids, ranks.size()));
  }

  int64_t ids(int64_t) const override { return ids_; }
  int64_t widest(int64_t) const override { return (ids_ + ranks_.size() - 1) / ranks_.size(); }
  int64_t first() const override { return begin(ranks_.rank()); }
  int64_t count() const { return begin(ranks_.rank() + 1) - first(); }

  // Both add what all ranks say in rank order, so that every rank gets the same bits.
  at::Tensor total(const at::Tensor& of_slice_nk) const override {
    const at::Tensor each = of_all(of_slice_nk);
    at::Tensor sum = each.select(0, 0);
    for (int64_t rank = 1; rank < each.size(0); ++rank) sum = sum + each.select(0, rank);
    return sum;
  }
  at::Tensor most(const at::Tensor& of_slice_nk) const override { return of_all(of_slice_nk).amax(0); }

 private:
  int64_t begin(int64_t rank) const { return ids_ * rank / ranks_.size(); }

  at::Tensor of_all(const at::Tensor& mine_nk) const {
    const at::Tensor all = at::empty({ranks_.size() * mine_nk.numel()}, mine_nk.options());
    ranks_.all_gather(all, mine_nk.detach().contiguous().view(-1), "sums over the vocabulary")->wait();
    return all.view({ranks_.size(), mine_nk.size(0), mine_nk.size(1)});
  }

  Communicator& ranks_;
  int64_t ids_;
};

// The tokens of all ranks, in rank order: each rank's filled up to the longest with rows of no weight.
class AllTokens {
 public:
  AllTokens(Communicator& ranks, int64_t own) : ranks_(ranks), own_(own) {
    std::vector<int64_t> longest{own};
    ranks.all_reduce(longest, parallel::Reduce::kMax);
    each_ = longest[0];
  }

  at::Tensor gathered(const at::Tensor& own, int64_t filling, const std::string& what) const {
    at::Tensor mine = own.detach().contiguous();
    std::vector<int64_t> shape = own.sizes().vec();
    if (own_ < each_) {
      shape[0] = each_;
      mine = at::empty(shape, own.options()).fill_(filling);
      mine.narrow(0, 0, own_).copy_(own.detach());
    }
    shape[0] = each_ * ranks_.size();
    const at::Tensor all = at::empty(shape, own.options());
    ranks_.all_gather(all.view(-1), mine.view(-1), what)->wait();
    return all;
  }

  // Of numbers that every rank has for all tokens.
  at::Tensor own(const at::Tensor& all) const { return all.narrow(0, each_ * ranks_.rank(), own_); }

  // Of parts that add up over the ranks; `parts` is scratch afterwards.
  at::Tensor summed(const at::Tensor& parts, parallel::Order order, const std::string& what) const {
    std::vector<int64_t> shape = parts.sizes().vec();
    shape[0] = each_;
    const at::Tensor mine = at::empty(shape, parts.options());
    ranks_.reduce_scatter(mine.view(-1), parts.view(-1), order, what)->wait();
    return mine.narrow(0, 0, own_);
  }

 private:
  Communicator& ranks_;
  int64_t own_, each_ = 0;
};

HeadSide slice_of(const HeadSide& side, const DividedVocabulary& vocabulary, const AllTokens& tokens) {
  HeadSide slice = side;
  slice.hidden_nd = tokens.gathered(side.hidden_nd, 0, "hidden states of " + side.place);
  slice.hidden_nd.set_requires_grad(side.hidden_nd.requires_grad());
  slice.weight_vd = side.weight_vd.narrow(0, vocabulary.first(), vocabulary.count());
  slice.vocabulary = 0;
  return slice;
}

}  // namespace

kernels::HeadLoss vocabulary_parallel_terms(const HeadRequest& request, const VocabularyRanks& ranks) {
  const bool compares = request.divergence != nullptr && request.teacher.has_value();
  if (request.teacher_learns ||
      (compares && (!request.divergence->sliced || real_rows(*request.teacher) != real_rows(request.student)))) {
    throw std::logic_error("a vocabulary was divided that require_divisible_vocabulary() refuses");
  }
  const DividedVocabulary vocabulary(*ranks.line, real_rows(request.student));
  const AllTokens tokens(*ranks.line, request.student.hidden_nd.size(0));
  HeadRequest all = request;
  all.student = slice_of(request.student, vocabulary, tokens);
  if (compares) all.teacher = slice_of(*request.teacher, vocabulary, tokens);
  if (request.labels_n.defined()) all.labels_n = tokens.gathered(request.labels_n, models::kIgnoredLabel, "labels");
  all.divergence_weight_n = tokens.gathered(request.divergence_weight_n, 0, "token weights");
  all.ce_weight_n = tokens.gathered(request.ce_weight_n, 0, "token weights");

  ChunkedHead head = chunked_head(all, vocabulary);
  kernels::HeadLoss result;
  result.divergence_n = tokens.own(head.divergence_n);
  result.cross_entropy_n = tokens.own(head.cross_entropy_n);
  {
    const at::NoGradGuard no_gradient;
    if (head.student.hidden) {
      head.student.hidden_nd = tokens.summed(head.student.hidden_nd, ranks.order, "gradients of hidden states");
    }
    result.loss = (result.divergence_n * request.divergence_weight_n).sum() +
                  (result.cross_entropy_n * request.ce_weight_n).sum();
  }
  // The gradient goes to the rank's own hidden states, and by the slice to its rows of the weight.
  all.student.hidden_nd = request.student.hidden_nd;
  result.loss = loss_with_gradients(result.loss, all, head.student, head.teacher);
  return result;
}

VocabularyRanks vocabulary_ranks(const recipe::Settings& settings, Communicator& ranks) {
  if (ranks.size() == 1 || !settings.enabled("objective.vocabulary_parallel")) return {};
  return {ranks.line("vocabulary"), parallel::read_parallel_options(settings).order};
}

void require_divisible_vocabulary(const recipe::Settings& settings, const Divergence& divergence,
                                  bool has_language_head) {
  const std::string key =
      fmt::format("objective.vocabulary_parallel {}", settings.where("objective.vocabulary_parallel"));
  if (!has_language_head) {
    throw UsageError(key +
                     " divides the vocabulary of a language-model head, and student.model has none: set it to "
                     "false");
  }
  if (settings.text("projector.kind") == "logit") {
    throw UsageError(
        fmt::format("{} does not divide the logit projector's head: set projector.kind = none {}, or "
                    "objective.vocabulary_parallel = false",
                    key, settings.where("projector.kind")));
  }
  if (divergence.sliced && !divergence.dual_space && !divergence.crosses_vocabularies) return;
  throw UsageError(
      fmt::format("{} needs a divergence that is a sum over ids, and objective.divergence = {} {} is none: set it to "
                  "forward_kl, reverse_kl, jsd, skew_forward_kl, skew_reverse_kl, total_variation or logit_mse, or "
                  "objective.vocabulary_parallel = false",
                  key, settings.text("objective.divergence"), settings.where("objective.divergence")));
}

}  // namespace limbeck::objective
