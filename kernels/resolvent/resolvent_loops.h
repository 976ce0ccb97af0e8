// The loops of the resolvent on plain pointers, without torch's headers. A recurrence along a row is a chain of
// divisions that wait for each other, so sixteen chains run side by side: rows, and segments of long rows. A segment
// starts kWarmUp positions early from nothing: the maps contract, so by its first position it has, as a rule, the bits
// of the one recurrence over the whole row. Whether it has, `repair` looks, and runs the recurrence where not until the
// bits meet: always the recurrence's result, whatever the segments; what contracts slowly (small Im z) only costs time.
#pragma once
#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"
#include "kernels/resolvent/resolvent_formula.h"

namespace limbeck::kernels {

// Rows of a tridiagonal matrix each; complex numbers are pairs of doubles. Storage: float32 or float64.
struct Tridiagonals {
  const void* a;
  const void* b;
  const void* c;
  int64_t a_row, b_row, c_row;  // elements from one row to the next
  const double* z;              // [rows, 2]
  const int64_t* documents;     // [n] with documents_row, or null
  int64_t documents_row;
  const double* state;  // [rows, 2], to which b[0] and c[0] couple, or null where the first coupling is b[0] to a[1]
  int64_t n;

  template <class T>
  LIMBECK_INLINE Complex<double> point(int64_t row) const {
    return pair_at(z, row);
  }
};

// Each row in `per_row` segments of `length` positions, in the order of the sweep; the last one may be shorter.
struct RowSegments {
  int64_t rows;
  int64_t per_row;
  int64_t length;
};
inline constexpr int64_t kSegmentLanes = 16;  // segments in one group
inline constexpr int64_t kWarmUp = 64;

// One recurrence: states [rows, n, 2], entries [rows * per_row, 2] (what each segment started from).
//   Green functions: s_i = 1 / (a_i - z - p s_before), with p = b c of the two.
//   Sums of gradients (green not null): s_i = source_i + p green_i^2 s_before, both [rows, n, 2].
struct ResolventSweep {
  bool from_right;
  const double* green;
  const double* source;
  double* states;
  double* entries;
  void* out;  // the states in the storage too, or null
};

struct ResolventLoops {
  void (*sweep)(Storage, const Tridiagonals&, const RowSegments&, const ResolventSweep&, int64_t group_begin,
                int64_t group_end);
  // Returns how many positions were computed again.
  int64_t (*repair)(Storage, const Tridiagonals&, const RowSegments&, const ResolventSweep&, int64_t row);
  // out [rows, n, 2] in the storage, positions [begin, end) of a row: what both Green functions give.
  void (*diagonal)(Storage, const Tridiagonals&, const double* left, const double* right, void* out, int64_t row,
                   int64_t begin, int64_t end);
  // Fills `source`, resp. all that stands below the sums, for positions [begin, end) of a row.
  void (*gradient_source)(Storage, const Tridiagonals&, const ResolventGradients&, int64_t row, int64_t begin,
                          int64_t end);
  void (*gradients)(Storage, const Tridiagonals&, const ResolventGradients&, int64_t row, int64_t begin, int64_t end);
};

LIMBECK_LOOPS(ResolventLoops, resolvent_loops)

}  // namespace limbeck::kernels
