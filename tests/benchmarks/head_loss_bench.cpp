// The fused head and divergence, forward and backward, beside its four matrix products alone, beside eager PyTorch and
// beside PyTorch over runs of tokens; each pair in turn in one process. Run it also with MALLOC_TOP_PAD_=268435456
// MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184, which is how a tuned PyTorch runs, and with
// LIMBECK_VECTOR=avx512_bf16 (no AMX) and LIMBECK_HEAD_LOSS=kept|anew.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <string>
#include <vector>

#include "benchmarks/benchmarks.h"
#include "benchmarks/paired.h"
#include "kernels/head_loss/head_loss.h"
#include "support/cpu_memory.h"

namespace limbeck::bench::head_loss_bench {
namespace {

using at::Tensor;
namespace kernels = limbeck::kernels;

struct Problem {
  Tensor student_hidden, student_weight, teacher_hidden, teacher_weight, weight, none;

  Problem(int64_t tokens, int64_t vocabulary, int64_t student, int64_t teacher, at::ScalarType dtype) {
    const auto make = [&](int64_t rows, int64_t width, double scale) {
      return at::randn({rows, width}).mul_(scale).to(dtype);
    };
    student_hidden = make(tokens, student, 1.0).requires_grad_();
    student_weight = make(vocabulary, student, 0.06).requires_grad_();
    teacher_hidden = make(tokens, teacher, 1.0);
    teacher_weight = make(vocabulary, teacher, 0.06);
    weight = at::full({tokens}, 1.0 / static_cast<double>(tokens));
    none = at::zeros({tokens});
  }
};

void gradients(const Tensor& loss, const Problem& p) {
  torch::autograd::grad({loss}, {p.student_hidden, p.student_weight});
}

void ours(const Problem& p) {
  gradients(kernels::head_loss(p.student_hidden, p.student_weight, p.teacher_hidden, p.teacher_weight, std::nullopt,
                               p.weight, p.none, {.divergence = kernels::Divergence::kForwardKl})
                .loss,
            p);
}

// Into outputs that are there already: no time of the allocator's is counted against them.
struct Products {
  Tensor student, teacher, hidden, weight;
  explicit Products(const Problem& p)
      : student(
            at::empty({p.weight.size(0), p.student_weight.size(0)}, p.student_weight.options().requires_grad(false))),
        teacher(at::empty_like(student)),
        hidden(at::empty_like(p.student_hidden.detach())),
        weight(at::empty_like(p.student_weight.detach())) {}
  void run(const Problem& p) {
    const c10::AutoGradMode no_grad(false);
    at::mm_out(student, p.student_hidden, p.student_weight.t());
    at::mm_out(teacher, p.teacher_hidden, p.teacher_weight.t());
    at::mm_out(hidden, student, p.student_weight);
    at::mm_out(weight, student.t(), p.student_hidden);
  }
};

Tensor eager_loss(const Problem& p, const Tensor& student_hidden, const Tensor& teacher_hidden, const Tensor& weight) {
  const auto student = at::mm(student_hidden, p.student_weight.t()).log_softmax(-1);
  Tensor teacher;
  {
    const c10::AutoGradMode no_grad(false);
    teacher = at::mm(teacher_hidden, p.teacher_weight.t()).log_softmax(-1);
  }
  return at::kl_div(student, teacher, at::Reduction::Sum, /*log_target=*/true) * weight[0];
}

void eager(const Problem& p) { gradients(eager_loss(p, p.student_hidden, p.teacher_hidden, p.weight), p); }

void chunked(const Problem& p) {
  constexpr int64_t kRun = 256;
  p.student_hidden.mutable_grad() = Tensor();
  p.student_weight.mutable_grad() = Tensor();
  for (int64_t i = 0; i < p.weight.size(0); i += kRun) {
    torch::autograd::backward(
        {eager_loss(p, p.student_hidden.narrow(0, i, kRun), p.teacher_hidden.narrow(0, i, kRun), p.weight)}, {});
  }
}

void add(const std::string& name, Problem p) {
  const auto run = [p] { ours(p); };
  add_pair(name + " / products alone", run, [p, out = std::make_shared<Products>(p)] { out->run(p); });
  add_pair(name + " / eager", run, [p] { eager(p); });
  add_pair(name + " / runs of 256", run, [p] { chunked(p); });
}

void print_memory(const char* name, const Problem& p) {
  const limbeck::test::CpuMemory memory;
  ours(p);
  const auto outputs = static_cast<int64_t>(p.student_hidden.nbytes() + p.student_weight.nbytes());
  fmt::print("{}: {:.1f} MB beyond inputs and gradients\n", name, static_cast<double>(memory.peak() - outputs) / 1e6);
}

}  // namespace

int main_of(int argc, char** argv) {
  at::set_num_threads(2);
  const bool large = argc > 1 && std::string(argv[1]).find("152k") != std::string::npos;
  add("32k bf16", Problem(2048, 32000, 256, 512, at::kBFloat16));
  print_memory("32k bf16", Problem(2048, 32000, 256, 512, at::kBFloat16));
  print_memory("152k bf16", Problem(2048, 151936, 256, 512, at::kBFloat16));
  print_memory("152k float32", Problem(2048, 151936, 256, 512, at::kFloat));
  add("32k float32", Problem(2048, 32000, 256, 512, at::kFloat));
  if (large) add("152k bf16", Problem(2048, 151936, 256, 512, at::kBFloat16));
  return run_pairs(argc, argv);
}

}  // namespace limbeck::bench::head_loss_bench
