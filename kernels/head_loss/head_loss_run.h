// One computation of the fused head on the CPU. Its parts: head_loss_cpu.cpp (operands, logits, results),
// head_loss_values.cpp, head_loss_gradients.cpp.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>

#include "kernels/head_loss/head_loss_cpu.h"
#include "kernels/head_loss/head_loss_loops.h"
#include "kernels/head_loss/head_loss_plan.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {

// The whole computation on the CPU. Every number is computed by one task from a fixed set of others in a fixed order,
// so that its bits do not depend on the number of threads; values do not depend on what gradients are asked for either.
class HeadLossRun {
 public:
  HeadLossRun(const HeadLossInputs& in, const HeadLossOptions& options, const at::Tensor& counted, bool hidden_gradient,
              bool weight_gradient);
  HeadLossResults results();

 private:
  template <class Work>
  void each(int64_t count, const Work& work) const;  // work(task, worker)
  template <class T = float>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(scratch_.mutable_data_ptr<uint8_t>() + offset);
  }
  char* student_left(int64_t worker) const { return at<char>(plan_.workers + worker * plan_.worker_bytes); }
  char* teacher_left(int64_t worker) const { return student_left(worker) + plan_.left_student_bytes; }
  float* spare_logits(int64_t worker) const {
    return at(plan_.workers + (worker + 1) * plan_.worker_bytes - 2 * kHeadArea * 4);
  }
  float* constants(int64_t block) const { return at(plan_.constants) + block * kRowConstants * kHeadBlock; }
  HeadRunning& running(int64_t block) const { return at<HeadRunning>(plan_.running)[block]; }
  int64_t columns_of(int64_t tile) const { return std::min(kHeadTile, formula_.vocabulary - tile * kHeadTile); }
  // Where the chunk of a tile (counted from the first one held) and a block of the current run lies.
  char* chunk(int64_t tile, int64_t block) const {
    return at<char>(plan_.chunks) + (tile * plan_.run + block) * plan_.chunk_bytes;
  }
  int64_t rows_in(int64_t block) const { return std::min(kHeadBlock, counted_ - block * kHeadBlock); }
  bool two_steps() const { return needs_mean_slope(formula_.divergence); }
  bool gradients() const { return shape_.hidden_gradient || shape_.weight_gradient; }

  void product(bool pairs, const TileProduct& p) const { pairs ? bf16_tile_product(p) : loops_.float_tile_product(p); }
  void pack_hidden();
  void pack_weights(int64_t tile, int64_t worker) const;
  void make_logits(int64_t block, int64_t worker, float* student, float* teacher) const;
  void statistics(int64_t first_block, int64_t blocks);
  void finish_statistics(int64_t block);
  HeadChunk chunk_of(int64_t tile, int64_t block, const float* student, const float* teacher) const;
  void values(int64_t first_block, int64_t blocks);
  void merge_values(int64_t first_block, int64_t blocks, int64_t tiles);
  void finish_values(int64_t block);
  void gradients(int64_t first_block, int64_t blocks);
  void group_terms(int64_t first_tile, int64_t tiles, int64_t first_block, int64_t blocks);
  void sum_weight(int64_t slot, int64_t tile, int64_t first_block, int64_t blocks, bool first, bool last);
  void sum_hidden(int64_t first_slot, int64_t tiles, int64_t first_block, int64_t blocks, bool first);
  void store_hidden();
  void run_blocks(int64_t first_block, int64_t blocks);

  const HeadLoops& loops_ = head_loops_here();
  const HeadLossInputs& in_;
  const HeadLossOptions& options_;
  HeadFormula formula_;
  HeadShape shape_;
  HeadPlan plan_;
  int64_t counted_;
  const int64_t* index_;
  at::Tensor student_hidden_, student_weight_, teacher_hidden_, teacher_weight_, labels_, divergence_weight_,
      ce_weight_;
  HeadOperand student_rows_, teacher_rows_;  // hidden states
  at::Tensor scratch_;
  at::Tensor divergence_, cross_entropy_, hidden_gradient_, weight_gradient_;
};

// Tasks of unequal cost: each thread takes the next one when it is free. The results do not depend on who does what.
template <class Work>
void HeadLossRun::each(int64_t count, const Work& work) const {
  std::atomic<int64_t> next{0};
  const int64_t threads = at::in_parallel_region() ? 1 : std::min(shape_.threads, count);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i; (i = next.fetch_add(1)) < count;) work(i, worker);
    }
  });
}

}  // namespace limbeck::kernels
