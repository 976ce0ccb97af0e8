// The last passes: the gradients by the logits, and the two products that make those of hidden states and weights.
#include "kernels/head_loss/head_loss_run.h"

namespace limbeck::kernels {

void HeadLossRun::gradients(int64_t first_block, int64_t blocks) {
  for (int64_t first = 0; first < plan_.tiles; first += plan_.group) {
    const int64_t tiles = std::min(plan_.group, plan_.tiles - first);
    for (int64_t b = 0; b < blocks; b += plan_.run) {
      const int64_t some = std::min(plan_.run, blocks - b);
      group_terms(first, tiles, first_block + b, some);
      if (shape_.hidden_gradient) sum_hidden(plan_.kept ? first : 0, tiles, first_block + b, some, first == 0);
      if (!two_steps() && formula_.has_divergence()) merge_values(first_block + b, some, tiles);
    }
  }
}

// dz of a group of tiles for a run of blocks, and the weight's gradient, which belongs to the tile.
void HeadLossRun::group_terms(int64_t first_tile, int64_t tiles, int64_t first_block, int64_t blocks) {
  each(tiles, [&](int64_t t, int64_t worker) {
    const int64_t tile = first_tile + t, slot = plan_.kept ? tile : t;
    if (!plan_.kept) pack_weights(tile, worker);
    for (int64_t b = 0; b < blocks; ++b) {
      char* held = chunk(slot, b);
      float* student = plan_.kept ? reinterpret_cast<float*>(held) : spare_logits(worker);
      if (!plan_.kept) make_logits(first_block + b, worker, student, student + kHeadArea);
      auto c = chunk_of(tile, first_block + b, student, student + kHeadArea);
      c.values = at(plan_.values) + (t * blocks + b) * 2 * kHeadBlock;
      if (shape_.weight_gradient) c.by_column = held;
      if (shape_.hidden_gradient) c.by_token = held + plan_.chunk_bytes / 2;
      loops_.tile_pass(formula_, c);
    }
    if (shape_.hidden_gradient) {
      const int64_t element = shape_.student.element(), depth = shape_.student.blocks();
      char* right = at<char>(plan_.weight_right) + t * depth * kHeadArea * element;
      for (int64_t v = 0; v < kHeadTileBlocks; ++v) {
        const int64_t row = tile * kHeadTile + v * kHeadBlock;
        const int64_t count = std::clamp<int64_t>(formula_.vocabulary - row, 0, kHeadBlock);
        loops_.pack_right(shape_.student, nullptr, row, count, right + v * kProductArea * element, kHeadArea);
      }
    }
    if (shape_.weight_gradient) {
      sum_weight(slot, tile, first_block, blocks, first_block == 0, first_block + blocks == plan_.blocks);
    }
  });
}

void HeadLossRun::sum_weight(int64_t slot, int64_t tile, int64_t first_block, int64_t blocks, bool first, bool last) {
  const int64_t depth = shape_.student.blocks(), element = shape_.student.element(), width = shape_.student.depth;
  const int64_t bytes = weight_gradient_.element_size(), columns = columns_of(tile);
  auto* rows = static_cast<char*>(weight_gradient_.mutable_data_ptr()) + tile * kHeadTile * width * bytes;
  const bool in_place = shape_.sums_in_place();
  float* sums = in_place ? reinterpret_cast<float*>(rows) : at(plan_.weight_sums) + slot * depth * kHeadArea;
  for (int64_t d = 0; d < depth; ++d) {
    product(shape_.student.pairs,
            {.c = sums + d * (in_place ? kProductBlock : kHeadArea),
             .a = chunk(slot, 0),
             .a_block_stride = 0,
             .a_segment_stride = plan_.chunk_bytes / element,
             .b = at<char>(plan_.student_rows) + (d * plan_.blocks + first_block) * kProductArea * element,
             .b_segment_stride = kProductArea,
             .rows = in_place ? columns : kHeadTile,
             .blocks = 1,
             .segments = blocks,
             .accumulate = !first,
             .c_stride = in_place ? width : kProductBlock});
  }
  if (!last || in_place) return;
  for (int64_t v = 0; v < columns; ++v) {
    loops_.store_row(sums + v * kHeadBlock, kHeadArea, width, shape_.student.storage, rows + v * width * bytes);
  }
}

void HeadLossRun::sum_hidden(int64_t first_slot, int64_t tiles, int64_t first_block, int64_t blocks, bool first) {
  constexpr int64_t kPanels = 4;  // of 32 columns a task
  const int64_t depth = shape_.student.blocks(), element = shape_.student.element();
  const int64_t parts = (depth + kPanels - 1) / kPanels;
  each(blocks * parts, [&](int64_t task, int64_t) {
    const int64_t b = task / parts, from = task % parts * kPanels;
    for (int64_t d = from; d < std::min(from + kPanels, depth); ++d) {
      product(shape_.student.pairs, {.c = at(plan_.hidden_sums) + ((first_block + b) * depth + d) * kProductArea,
                                     .a = chunk(first_slot, b) + plan_.chunk_bytes / 2,
                                     .a_block_stride = kProductArea,
                                     .a_segment_stride = plan_.run * plan_.chunk_bytes / element,
                                     .b = at<char>(plan_.weight_right) + d * kHeadArea * element,
                                     .b_segment_stride = depth * kHeadArea,
                                     .rows = kHeadBlock,
                                     .blocks = kHeadTileBlocks,
                                     .segments = tiles,
                                     .accumulate = !first});
    }
  });
}

void HeadLossRun::store_hidden() {
  const int64_t width = hidden_gradient_.size(1), bytes = hidden_gradient_.element_size();
  if (counted_ < hidden_gradient_.size(0)) hidden_gradient_.zero_();
  auto* to = static_cast<char*>(hidden_gradient_.mutable_data_ptr());
  each(plan_.blocks, [&](int64_t b, int64_t) {
    const float* sums = at(plan_.hidden_sums) + b * shape_.student.blocks() * kProductArea;
    for (int64_t i = 0; i < rows_in(b); ++i) {
      loops_.store_row(sums + i * kHeadBlock, kProductArea, width, student_rows_.storage,
                       to + index_[b * kHeadBlock + i] * width * bytes);
    }
  });
}

}  // namespace limbeck::kernels
