#include "kernels/attention/attention_loops.h"

#include "kernels/attention/attention_backward.h"
#include "kernels/attention/attention_forward.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

template <class T>
void forward(const AttentionForward<T>& f, int64_t batch, int64_t head, int64_t q0, int64_t q1) {
  ForwardRun<T>(f, batch, head, q0, q1).run();
}
template <class T>
void backward(const AttentionBackward<T>& f, int64_t batch, int64_t head) {
  BackwardRun<T>(f, batch, head).run();
}

template <class T>
constexpr AttentionRuns<T> kRuns = {forward<T>, backward<T>};

}  // namespace

const AttentionLoops attention_loops = {kRuns<float>, kRuns<BFloat16Bits>, kRuns<Float16Bits>, kRuns<double>};

}  // namespace limbeck::kernels::LIMBECK_ISA
