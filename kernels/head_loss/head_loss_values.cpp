// The first passes: log-sum-exps of all rows, then the values.
#include <cmath>
#include <cstring>

#include "kernels/head_loss/head_loss_run.h"

namespace limbeck::kernels {

using at::Tensor;

void HeadLossRun::statistics(int64_t first_block, int64_t blocks) {
  const bool wanted = formula_.has_softmax || formula_.has_ce || plan_.kept;  // kept: this pass makes the logits
  constexpr int64_t size = kHeadStatistics * kHeadBlock;
  float* partial = at(plan_.statistics);
  for (int64_t first = 0; wanted && first < plan_.tiles; first += plan_.statistics_tiles) {
    const int64_t tiles = std::min(plan_.statistics_tiles, plan_.tiles - first);
    each(tiles, [&](int64_t t, int64_t worker) {
      pack_weights(first + t, worker);
      for (int64_t b = 0; b < blocks; ++b) {
        float* student = plan_.kept ? reinterpret_cast<float*>(chunk(first + t, b)) : spare_logits(worker);
        make_logits(first_block + b, worker, student, student + kHeadArea);
        const auto* labels = at<int32_t>(plan_.labels) + (first_block + b) * kHeadBlock;
        loops_.tile_statistics(formula_, student, student + kHeadArea, labels, (first + t) * kHeadTile,
                               columns_of(first + t), partial + (t * blocks + b) * size);
      }
    });
    each(blocks, [&](int64_t b, int64_t) {
      for (int64_t t = 0; t < tiles; ++t) {
        loops_.merge_statistics(partial + (t * blocks + b) * size, running(first_block + b));
      }
    });
  }
  for (int64_t b = 0; b < blocks; ++b) finish_statistics(first_block + b);
}

void HeadLossRun::finish_statistics(int64_t block) {
  const auto& all = running(block);
  float* row = constants(block);
  std::memset(row, 0, kRowConstants * kHeadBlock * sizeof(float));
  const double divergence_factor = options_.gradient_scale * (formula_.divergence == Divergence::kLogitMse
                                                                  ? 2.0 / static_cast<double>(formula_.vocabulary)
                                                                  : options_.temperature * options_.temperature);
  for (int64_t i = 0; i < rows_in(block); ++i) {
    const auto put = [&](RowConstant what, double x) { row[what * kHeadBlock + i] = static_cast<float>(x); };
    const int64_t token = index_[block * kHeadBlock + i];
    const auto max = [&](int64_t which) { return static_cast<double>(all.max[which][i]); };
    const auto weight_of = [&](const Tensor& t) { return static_cast<double>(t.const_data_ptr<float>()[token]); };
    if (formula_.has_softmax) {
      put(kRowStudentMax, max(0));
      put(kRowStudentInverse, 1.0 / all.sum[0][i]);
      put(kRowTeacherMax, max(1));
      put(kRowTeacherInverse, 1.0 / all.sum[1][i]);
      put(kRowShift, (max(0) - max(1)) + (std::log(all.sum[0][i]) - std::log(all.sum[1][i])));
    }
    if (formula_.has_divergence()) put(kRowDivergenceWeight, weight_of(divergence_weight_) * divergence_factor);
    if (!formula_.has_ce || labels_.const_data_ptr<int64_t>()[token] < 0) continue;
    const int64_t which = formula_.ce_shares ? 0 : 2;
    put(kRowPlainMax, max(which));
    put(kRowPlainInverse, 1.0 / all.sum[which][i]);
    put(kRowCeWeight, weight_of(ce_weight_) * options_.gradient_scale);
    if (weight_of(ce_weight_) == 0.0) continue;
    const double smoothing = options_.label_smoothing;
    const double value = max(which) + std::log(all.sum[which][i]) - (1.0 - smoothing) * all.label_logit[i] -
                         smoothing * all.plain_total[i] / static_cast<double>(formula_.vocabulary);
    cross_entropy_.mutable_data_ptr<float>()[token] = static_cast<float>(value);
  }
}

// ---- values --------------------------------------------------------------------------------------------------------

HeadChunk HeadLossRun::chunk_of(int64_t tile, int64_t block, const float* student, const float* teacher) const {
  return {.student = student,
          .teacher = teacher,
          .constants = constants(block),
          .labels = at<int32_t>(plan_.labels) + block * kHeadBlock,
          .first_column = tile * kHeadTile,
          .values = nullptr,
          .by_column = nullptr,
          .by_token = nullptr,
          .pairs = shape_.student.pairs};
}

void HeadLossRun::values(int64_t first_block, int64_t blocks) {
  for (int64_t first = 0; first < plan_.tiles; first += plan_.statistics_tiles) {
    const int64_t tiles = std::min(plan_.statistics_tiles, plan_.tiles - first);
    each(tiles, [&](int64_t t, int64_t worker) {
      if (!plan_.kept) pack_weights(first + t, worker);
      for (int64_t b = 0; b < blocks; ++b) {
        float* student = plan_.kept ? reinterpret_cast<float*>(chunk(first + t, b)) : spare_logits(worker);
        if (!plan_.kept) make_logits(first_block + b, worker, student, student + kHeadArea);
        auto c = chunk_of(first + t, first_block + b, student, student + kHeadArea);
        c.values = at(plan_.values) + (t * blocks + b) * 2 * kHeadBlock;
        loops_.tile_pass(formula_, c);
      }
    });
    merge_values(first_block, blocks, tiles);
  }
}

void HeadLossRun::merge_values(int64_t first_block, int64_t blocks, int64_t tiles) {
  for (int64_t t = 0; t < tiles; ++t) {
    for (int64_t b = 0; b < blocks; ++b) {
      const float* from = at(plan_.values) + (t * blocks + b) * 2 * kHeadBlock;
      auto& all = running(first_block + b);
      for (int64_t i = 0; i < kHeadBlock; ++i) {
        all.value[i] += static_cast<double>(from[i]);
        all.mean_slope[i] += static_cast<double>(from[kHeadBlock + i]);
      }
    }
  }
}

void HeadLossRun::finish_values(int64_t block) {
  const double factor = formula_.divergence == Divergence::kLogitMse ? 1.0 / static_cast<double>(formula_.vocabulary)
                                                                     : options_.temperature * options_.temperature;
  for (int64_t i = 0; i < rows_in(block); ++i) {
    const int64_t token = index_[block * kHeadBlock + i];
    if (divergence_weight_.const_data_ptr<float>()[token] == 0.0f) continue;
    divergence_.mutable_data_ptr<float>()[token] = static_cast<float>(running(block).value[i] * factor);
    constants(block)[kRowMeanSlope * kHeadBlock + i] = static_cast<float>(running(block).mean_slope[i]);
  }
}

}  // namespace limbeck::kernels
