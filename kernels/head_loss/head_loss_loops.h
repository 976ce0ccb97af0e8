// The loops of the fused head on plain pointers, without torch's headers, and what they share with their driver. A
// tile is 224 columns of the vocabulary, a block 32 tokens; logits of a tile and a block lie as [column][token], so
// that sums over the vocabulary are sums of vectors and never of lanes.
#pragma once
#include <cstdint>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/tile_product.h"
#include "kernels/head_loss/logit_formula.h"
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

  LIMBECK_INLINE int64_t element() const { return pairs ? 2 : 4; }
  LIMBECK_INLINE int64_t blocks() const { return (depth + kHeadBlock - 1) / kHeadBlock; }
};

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

struct HeadLoops {
  void (*float_tile_product)(const TileProduct&);
  // Weight rows as the left operand: [depth / 32][kHeadTile][32], zeros behind the `count` rows.
  void (*pack_left)(const HeadOperand&, int64_t first, int64_t count, void* to);
  // 32 rows (zeros behind `count`) as one block of K of a right operand: for each 32 of depth a block, `stride`
  // elements apart. Rows are first + i, or index[i].
  void (*pack_right)(const HeadOperand&, const int64_t* index, int64_t first, int64_t count, void* to, int64_t stride);
  // 32 rows transposed, as the right operand over the depth: [depth / 32][32 / P][32 rows][P].
  void (*pack_right_transposed)(const HeadOperand&, const int64_t* index, int64_t count, void* to);
  // Blocks of columns, each [rows][32] and `stride` floats apart, rounded into one row of a tensor.
  void (*store_row)(const float* from, int64_t stride, int64_t width, Storage, void* to);
  // Maxima and sums of one tile.
  void (*tile_statistics)(const HeadFormula&, const float* student, const float* teacher, const int32_t* labels,
                          int64_t first_column, int64_t columns, float* out);
  void (*merge_statistics)(const float* tile, HeadRunning& all);
  // Values or gradients of one tile and one block, as the chunk asks.
  void (*tile_pass)(const HeadFormula&, const HeadChunk&);
};

LIMBECK_LOOPS(HeadLoops, head_loops)

}  // namespace limbeck::kernels
