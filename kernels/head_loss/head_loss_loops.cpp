#include "kernels/head_loss/head_loss_loops.h"

#include "kernels/head_loss/head_loss_packing.h"
#include "kernels/head_loss/head_loss_tile.h"

namespace limbeck::kernels::LIMBECK_ISA {

const HeadLoops head_loops = {float_tile_product, pack_left,       pack_right,       pack_right_transposed,
                              store_row,          tile_statistics, merge_statistics, tile_pass};

}  // namespace limbeck::kernels::LIMBECK_ISA
