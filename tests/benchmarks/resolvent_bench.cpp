// The resolvent's diagonal, by length and batch: nanoseconds a position (linear: a line of them stays level), forward
// and with its gradients, on 1 and 2 threads, beside the plain recurrence (one row, one position after another, in
// scalar code); how much faster the scan is on all threads than on one and than that; and the bytes that it reads and
// writes (20 a position) by its time, also as a share of a plain read of memory. limbeck_bench resolvent [rounds [Im z
// [spread of the elements]]]: with both near zero the maps hardly contract, which is the worst case. Figures are
// medians.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "benchmarks/benchmarks.h"
#include "benchmarks/plain_read.h"
#include "benchmarks/timing.h"
#include "kernels/resolvent/resolvent.h"

namespace limbeck::bench::resolvent_bench {
namespace {

struct Matrices {
  at::Tensor a, b, c, z;
  Matrices(int64_t batch, int64_t n, double height, double spread)
      : a(at::randn({batch, n}) * spread - 2.0),
        b(at::randn({batch, n - 1}) * (0.2 * spread) + 1.0),
        c(at::randn({batch, n - 1}) * (0.2 * spread) + 1.0),
        z(at::tensor({0.0f, static_cast<float>(height)})) {}
};

// What anybody would write first; of all rows, one after another.
void plain_recurrence(const Matrices& m, const at::Tensor& out) {
  const int64_t batch = m.a.size(0), n = m.a.size(1);
  const float *a = m.a.const_data_ptr<float>(), *b = m.b.const_data_ptr<float>(), *c = m.c.const_data_ptr<float>();
  const float* point = m.z.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t row = 0; row < batch; ++row, a += n, b += n - 1, c += n - 1, to += 2 * n) {
    double re = 0, im = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double p = i == 0 ? 0 : static_cast<double>(b[i - 1]) * c[i - 1];
      const double x = a[i] - point[0] - p * re, y = -point[1] - p * im, scale = 1 / (x * x + y * y);
      re = x * scale;
      im = -y * scale;
      to[2 * i] = static_cast<float>(re);
      to[2 * i + 1] = static_cast<float>(im);
    }
  }
}

double nanoseconds(int threads, int rounds, double positions, const std::function<void()>& work) {
  at::set_num_threads(threads);
  work();
  std::vector<double> times;
  const int repeats = std::max(1, static_cast<int>(2e5 / positions));
  for (int round = 0; round < rounds; ++round) {
    times.push_back(seconds([&] {
                      for (int k = 0; k < repeats; ++k) work();
                    }) /
                    repeats);
  }
  return 1e9 * median(times) / positions;
}

struct Point {
  double height, spread;
};

// Gigabytes a second of a block larger than the last cache, as fast as it comes in any round.
double plain_read(int threads, int rounds) {
  const at::Tensor block = at::full({int64_t{64} << 20}, 2.0F);
  at::set_num_threads(threads);
  double least = seconds([&] { search_in_vain(block); });
  for (int round = 0; round < rounds; ++round) least = std::min(least, seconds([&] { search_in_vain(block); }));
  return 1e-9 * static_cast<double>(block.nbytes()) / least;
}

void measure(int64_t batch, int64_t n, const Point& point, int rounds, int threads, double read) {
  const Matrices m(batch, n, point.height, point.spread);
  const at::Tensor out = at::empty({batch, n, 2}), grad = at::randn({batch, n, 2});
  const double positions = static_cast<double>(batch * n);
  const auto run = [&](int on, bool causal) {
    return nanoseconds(on, rounds, positions, [&] { kernels::resolvent(m.a, m.b, m.c, m.z, causal); });
  };
  const auto train = [&](int on, bool causal) {
    at::Tensor a = m.a.detach().requires_grad_(), b = m.b.detach().requires_grad_(), c = m.c.detach().requires_grad_();
    return nanoseconds(on, rounds, positions, [&] {
      kernels::resolvent(a, b, c, m.z, causal).backward(grad);
      for (at::Tensor* x : {&a, &b, &c}) x->mutable_grad() = at::Tensor();
    });
  };
  const double plain = nanoseconds(1, rounds, positions, [&] { plain_recurrence(m, out); });
  const double one = run(1, true), all = run(threads, true), moved = 20 / all;
  std::printf(
      "%5ld %8ld   plain %6.2f   causal %6.2f %6.2f   both ways %6.2f %6.2f   trained %6.2f %6.2f   "
      "%d threads / 1 %5.2f x   / plain %5.2f x   %6.2f GB/s, %4.0f %% of a read\n",
      static_cast<long>(batch), static_cast<long>(n), plain, one, all, run(1, false), run(threads, false),
      train(threads, true), train(threads, false), threads, one / all, plain / all, moved, 100 * moved / read);
}

}  // namespace

int main_of(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7, threads = at::get_num_threads();
  const Point point{argc > 2 ? std::atof(argv[2]) : 1.0, argc > 3 ? std::atof(argv[3]) : 0.5};
  mallopt(M_MMAP_MAX, 0);  // pages that were faulted in stay, as in a run
  mallopt(M_TRIM_THRESHOLD, 2147483647);
  at::manual_seed(5);
  const double read = plain_read(threads, rounds);
  std::printf(
      "ns a position; causal and both ways on 1 and %d threads, trained (causal, both ways) on %d; Im z %g, spread "
      "%g; a plain read %.1f GB/s\n",
      threads, threads, point.height, point.spread, read);
  for (const int64_t batch : {1, 16}) {
    for (const int64_t n : {1024, 4096, 16384, 131072}) measure(batch, n, point, rounds, threads, read);
  }
  return 0;
}

}  // namespace limbeck::bench::resolvent_bench
