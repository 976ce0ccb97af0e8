#include "kernels/head_loss/head_loss_plan.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

#include "kernels/operator/rounded_up.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kScratchLimit = int64_t{88} << 20;  // what kept logits may use; issue: 96 MB in all
constexpr int64_t kChunksLimit = int64_t{30} << 20;   // dz of a group, where logits are made anew
constexpr int64_t kWeightsLimit = int64_t{16} << 20;  // weights and weight gradients of a group
constexpr int64_t kLeastRun = 4;                      // kept: fewer blocks read the weights too often
constexpr int64_t kMostGroup = 16;

constexpr int64_t kCudaLogitsLimit = int64_t{1} << 30;
constexpr int64_t kCudaLeastRun = 1024;  // fewer tokens do not hide reading the weights and the gradient's sums
constexpr int64_t kCudaColumns = 8;      // rows at multiples of 32 bytes: what cuBLAS is quick with
constexpr int64_t kCudaRowBytes = 36;    // HeadRow and a bound

HeadLossPath path_of_this_process() {
  const char* wish = std::getenv("LIMBECK_HEAD_LOSS");
  const std::string_view name = wish ? wish : "";
  TORCH_CHECK(name.empty() || name == "kept" || name == "anew", "[head_loss] LIMBECK_HEAD_LOSS=", name,
              ", wanted kept or anew");
  return name == "kept" ? HeadLossPath::kKept : name == "anew" ? HeadLossPath::kAnew : HeadLossPath::kAutomatic;
}
std::atomic<HeadLossPath>& chosen_head_path() {
  static std::atomic<HeadLossPath> path = path_of_this_process();
  return path;
}

std::atomic<int64_t>& wished_cuda_run() {
  static std::atomic<int64_t> run = 0;
  return run;
}

class Layout {
 public:
  int64_t take(int64_t bytes) {
    const int64_t at = bytes_;
    bytes_ += rounded_up_quotient(bytes, 64) * 64;
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

void lay_out(const HeadShape& s, HeadPlan& p) {
  const int64_t area = kProductArea, element = s.student.element(), depth = s.student.blocks();
  Layout layout;
  p.student_columns = layout.take(p.blocks * depth * area * element);
  p.teacher_columns = layout.take(p.blocks * s.teacher.blocks() * area * s.teacher.element());
  p.student_rows = layout.take(s.weight_gradient ? p.blocks * depth * area * element : 0);
  p.running = layout.take(p.blocks * static_cast<int64_t>(sizeof(HeadRunning)));
  p.constants = layout.take(p.blocks * kRowConstants * kHeadBlock * 4);
  p.labels = layout.take(p.blocks * kHeadBlock * 4);
  p.statistics = layout.take(p.statistics_tiles * (p.kept ? p.run : p.blocks) * kHeadStatistics * kHeadBlock * 4);
  const int64_t values = std::max(p.statistics_tiles * (p.kept ? p.run : p.blocks), p.group * p.run);
  p.values = layout.take(values * 2 * kHeadBlock * 4);
  p.hidden_sums = layout.take(s.hidden_gradient ? p.blocks * depth * area * 4 : 0);
  const bool gradients = s.hidden_gradient || s.weight_gradient;
  p.chunks = layout.take(p.kept ? p.tiles * p.run * p.chunk_bytes : gradients ? p.group * p.run * p.chunk_bytes : 0);
  p.weight_right = layout.take(s.hidden_gradient ? p.group * depth * kHeadArea * element : 0);
  const bool panel_sums = s.weight_gradient && !s.sums_in_place();
  p.weight_sums = layout.take(panel_sums ? (p.kept ? p.tiles : p.group) * depth * kHeadArea * 4 : 0);
  p.left_student_bytes = depth * kHeadArea * element;
  p.worker_bytes = p.left_student_bytes + s.teacher.blocks() * kHeadArea * s.teacher.element() + 2 * kHeadArea * 4;
  p.workers = layout.take(s.threads * p.worker_bytes);
  p.bytes = layout.bytes();
}

HeadPlan kept_plan(const HeadShape& s, int64_t group) {
  HeadPlan p;
  p.kept = true;
  p.tiles = rounded_up_quotient(s.vocabulary, kHeadTile);
  p.blocks = rounded_up_quotient(s.tokens, kHeadBlock);
  p.group = std::min(group, p.tiles);
  p.statistics_tiles = p.tiles;
  p.chunk_bytes = 2 * kHeadArea * 4;
  lay_out(s, p);  // with a run of 0: what does not depend on it
  const int64_t per_block = p.tiles * (p.chunk_bytes + (kHeadStatistics + 2) * kHeadBlock * 4);
  // Equal runs: 2,048 tokens at 7 blocks a run are 10 runs of 7 blocks, not 9 and a rest of 1.
  const int64_t most = std::clamp<int64_t>((kScratchLimit - p.bytes) / per_block, 1, p.blocks);
  p.run = rounded_up_quotient(p.blocks, rounded_up_quotient(p.blocks, most));
  lay_out(s, p);
  return p;
}

HeadPlan anew_plan(const HeadShape& s, int64_t group) {
  HeadPlan p;
  p.tiles = rounded_up_quotient(s.vocabulary, kHeadTile);
  p.blocks = rounded_up_quotient(s.tokens, kHeadBlock);
  p.chunk_bytes = 2 * kHeadArea * s.student.element();
  p.run = std::clamp<int64_t>(kChunksLimit / (4 * p.chunk_bytes), 1, p.blocks);
  p.group = std::min({group, p.tiles, std::max<int64_t>(kChunksLimit / (p.run * p.chunk_bytes), 1)});
  p.statistics_tiles = std::min<int64_t>(p.tiles, std::clamp<int64_t>(2048 / p.blocks, 4, 64));
  lay_out(s, p);
  return p;
}

}  // namespace

void set_head_loss_path(HeadLossPath path) { chosen_head_path().store(path, std::memory_order_relaxed); }

HeadOperand head_operand(Storage storage, int64_t depth) {
  return {.depth = depth,
          .storage = storage,
          .pairs = storage == Storage::kBFloat16 && product_isa() >= CpuIsa::kAvx512Bf16};
}

HeadPlan head_plan(const HeadShape& s) {
  const int64_t per_tile = s.student.blocks() * kHeadArea * (s.student.element() + 4);
  const int64_t group = std::clamp<int64_t>(kWeightsLimit / per_tile, 1, kMostGroup);
  const HeadPlan kept = kept_plan(s, group), anew = anew_plan(s, group);
  const auto path = chosen_head_path().load(std::memory_order_relaxed);
  if (path != HeadLossPath::kAutomatic) return path == HeadLossPath::kKept ? kept : anew;
  // Tile registers multiply faster than memory gives the logits back: 1.5 against 1.8 times the products alone. With
  // vector registers it is 1.6 against 1.2.
  const bool tiles =
      s.student.pairs && product_isa() == CpuIsa::kAmx && !s.two_steps && (s.teacher.depth == 0 || s.teacher.pairs);
  const bool fits = kept.bytes <= kScratchLimit && kept.run >= std::min(kLeastRun, kept.blocks);
  return fits && !tiles ? kept : anew;
}

void set_cuda_head_run(int64_t most_tokens) { wished_cuda_run().store(most_tokens, std::memory_order_relaxed); }

CudaHeadPlan cuda_head_plan(int64_t tokens, int64_t vocabulary, bool teacher) {
  CudaHeadPlan plan;
  plan.stride = rounded_up_quotient(vocabulary, kCudaColumns) * kCudaColumns;
  const int64_t per_token = plan.stride * 4 * (teacher ? 2 : 1);
  const int64_t wish = wished_cuda_run().load(std::memory_order_relaxed), all = std::max<int64_t>(tokens, 1);
  const int64_t most = wish > 0 ? wish : std::max(kCudaLogitsLimit / per_token, kCudaLeastRun);
  plan.run = rounded_up_quotient(all, rounded_up_quotient(all, most));
  plan.bytes = plan.run * (per_token + kCudaRowBytes);
  return plan;
}

int64_t cuda_head_scratch(const HeadShape& s) {
  const CudaHeadPlan plan = cuda_head_plan(s.tokens, s.vocabulary, s.teacher.depth > 0);
  const int64_t run_elements = plan.run * s.student.depth, weight_elements = s.vocabulary * s.student.depth;
  const bool wide = s.student.storage == Storage::kFloat32;
  // In turn: the float32 gradient of a run's hidden states; the counted hidden states, and in float16's units a product
  // that cannot be added in place.
  const int64_t hidden = s.hidden_gradient ? 4 * run_elements : 0;
  int64_t weight = s.weight_gradient ? run_elements * (wide ? 4 : 2) : 0;
  if (s.weight_gradient && s.student.storage == Storage::kFloat16) weight += 4 * weight_elements;
  const int64_t in_turn = std::max(hidden, weight);
  if (wide || !s.weight_gradient) return plan.bytes + in_turn;  // float32 sums are the result themselves
  // Half types: the result is made of the sums when all else is gone.
  return plan.bytes + 4 * weight_elements + std::max<int64_t>(in_turn - 2 * weight_elements, 0);
}

}  // namespace limbeck::kernels
