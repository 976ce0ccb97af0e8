// What the passes of the fused head (head_loss.inc, compiled once for each instruction set) and their driver share. A
// tile is 224 columns of the vocabulary, a block 32 tokens; logits of a tile and a block lie as [column][token], so
// that sums over the vocabulary are sums of vectors and never of lanes.
#pragma once
#include <cstdint>

#include "kernels/cpu/tile_product.h"
#include "kernels/head_loss/head_loss.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

inline constexpr int64_t kHeadTile = 224;  // 7 x 32 for tile registers, 16 x 14 for vector registers
inline constexpr int64_t kHeadBlock = kProductBlock;
inline constexpr int64_t kHeadTileBlocks = kHeadTile / kHeadBlock;
inline constexpr int64_t kHeadArea = kHeadTile * kHeadBlock;  // logits of one tile and one block

// Hidden states or head weights as they came.
struct HeadOperand {
  const void* data = nullptr;
  int64_t row_stride = 0, depth = 0;
  Storage storage = Storage::kFloat32;
  bool pairs = false;  // multiplied as pairs of bfloat16; else widened to float32

  int64_t element() const { return pairs ? 2 : 4; }
  int64_t blocks() const { return (depth + kHeadBlock - 1) / kHeadBlock; }
};

struct HeadFormula {
  Divergence divergence = Divergence::kNone;
  bool has_ce = false;
  bool ce_shares = false;    // cross-entropy's softmax is that of the divergence
  bool has_softmax = false;  // of the divergence
  float mix = 0, inverse_temperature = 1, clamp = 0, smoothing = 0;
  float student_scale = 1, teacher_scale = 1, student_cap = 0, teacher_cap = 0;
  int64_t vocabulary = 0;

  bool has_divergence() const { return divergence != Divergence::kNone; }
};

// Whether the gradient needs a sum over the vocabulary beyond the log-sum-exps.
constexpr bool needs_mean_slope(Divergence d) {
  return d != Divergence::kNone && d != Divergence::kForwardKl && d != Divergence::kLogitMse;
}

// Of one tile and one block, [kHeadStatistics][32].
enum HeadStatistic : int64_t {
  kStudentMax,
  kStudentSum,   // of exp(logit - max)
  kStudentLost,  // what rounding has added to the sum
  kTeacherMax,
  kTeacherSum,
  kTeacherLost,
  kPlainMax,  // of the logits of cross-entropy
  kPlainSum,
  kPlainLost,
  kPlainTotal,  // of the logits themselves, for label smoothing
  kLabelLogit,
  kHeadStatistics
};

// Of one block, [kRowConstants][32].
enum RowConstant : int64_t {
  kRowStudentMax,
  kRowStudentInverse,  // 1 / sum
  kRowTeacherMax,
  kRowTeacherInverse,
  kRowShift,      // log-sum-exp of the student minus that of the teacher
  kRowMeanSlope,  // sum of p_s dD/dp_s
  kRowDivergenceWeight,
  kRowPlainMax,
  kRowPlainInverse,
  kRowCeWeight,
  kRowConstants
};

// Of one block, over the tiles merged so far.
struct HeadRunning {
  float max[3][kHeadBlock];  // student, teacher, plain
  double sum[3][kHeadBlock];
  double plain_total[kHeadBlock], label_logit[kHeadBlock];
  double value[kHeadBlock], mean_slope[kHeadBlock];
};

// One tile and one block in the passes after the statistics.
struct HeadChunk {
  const float* student;  // raw logits [kHeadTile][32]
  const float* teacher;
  const float* constants;
  const int32_t* labels;  // -1: none
  int64_t first_column;
  float* values;  // [2][32]: divergence, mean slope; nullptr where not asked for
  // dz for the two products, nullptr where not asked for. May overlay student and teacher.
  void* by_column;  // [kHeadTile][32 tokens]
  void* by_token;   // [7][32 tokens][32 columns]
  bool pairs;
};

}  // namespace limbeck::kernels
