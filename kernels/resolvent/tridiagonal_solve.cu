// Tridiagonal systems on CUDA, each recurrence a scan along the rows (row_scan.cuh): the pivots, which are the
// resolvent's Green functions from the left, then of each column the elimination, and from the right what is put in.
#include "kernels/resolvent/row_scan.cuh"
#include "kernels/resolvent/tridiagonal_solve_cuda.h"

namespace limbeck::kernels {
namespace {

// Where a leading matrix is singular at z the resolvent has 2^400, which would be a wrong number here.
struct PivotRow : GreenRow<double> {
  using GreenRow::GreenRow;
  __device__ __forceinline__ void put(int64_t i, Complex<double> state) const {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    GreenRow::put(i, size_of_pair(state) < 0x1p399 ? state : Complex<double>{kNan, kNan});
  }
};

// One column of a system.
struct ColumnRow {
  using Product = SumProduct;
  struct Of {
    TridiagonalSystems systems;
    double* pivots;
  };
  TridiagonalSystem system;
  int64_t column;

  __device__ __forceinline__ ColumnRow(const Of& of, int64_t which) : column(which % of.systems.columns) {
    const int64_t row = which / of.systems.columns;
    system = of.systems.at(row, {0.0, 0.0}, of.pivots + 2 * row * of.systems.n);  // z is in the pivots
  }
  static __device__ __forceinline__ Product none() { return no_sum_step(); }
  __device__ __forceinline__ void put(int64_t i, Complex<double> state) const {
    put_pair(system.x, i * system.columns + column, state);
  }
};

struct EliminationRow : ColumnRow {
  using ColumnRow::ColumnRow;
  __device__ __forceinline__ void extend_by(Product& product, int64_t i) const {
    extend(product, scaled(system.factor(i), -1.0), step(i, product.sum));
  }
  __device__ __forceinline__ Complex<double> step(int64_t i, Complex<double> before) const {
    return system.eliminated(i, column, before);
  }
};

struct PuttingInRow : ColumnRow {
  using ColumnRow::ColumnRow;
  __device__ __forceinline__ void extend_by(Product& product, int64_t i) const {
    const double taken = i + 1 < system.n ? -system.b[i] : 0.0;
    extend(product, scaled(pair_at(system.pivots, i), taken), step(i, product.sum));
  }
  __device__ __forceinline__ Complex<double> step(int64_t i, Complex<double> after) const {
    return system.solved(i, column, after);
  }
};

}  // namespace

void launch_tridiagonal_solve(const TridiagonalSystems& systems, double* scratch, cudaStream_t stream) {
  const int64_t rows = systems.rows, n = systems.n, chains = rows * systems.columns;
  if (chains == 0) return;
  const DeviceTridiagonals m{systems.a, systems.b, systems.c, systems.z, n,    n - 1, n - 1,
                             2,         nullptr,   0,         nullptr,   rows, n};
  double *pivots = scratch, *products = pivots + 2 * rows * n;
  const auto scan = [&](int64_t of_rows, bool from_right, int64_t product_numbers) {
    const int64_t segments = of_rows * device_segments(n);
    return RowScan{of_rows, n, from_right, nullptr, nullptr, products, products + segments * product_numbers};
  };
  launch_scan<PivotRow>(scan(rows, false, kGreenProductNumbers), {m, false, pivots, nullptr}, stream);
  launch_scan<EliminationRow>(scan(chains, false, kSumProductNumbers), {systems, pivots}, stream);
  launch_scan<PuttingInRow>(scan(chains, true, kSumProductNumbers), {systems, pivots}, stream);
}

}  // namespace limbeck::kernels
