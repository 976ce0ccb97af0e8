// limbeck_bench NAME [ARGUMENTS]: one benchmark, alone on the machine.
#include <array>
#include <cstdio>
#include <string_view>

#include "benchmarks/benchmarks.h"

namespace {

struct Benchmark {
  std::string_view name;
  const char* about;
  int (*main_of)(int argc, char** argv);
};

namespace bench = limbeck::bench;
constexpr std::array kBenchmarks = {
    Benchmark{"adamw", "one update and the global norm against ATen's fused ones", bench::adamw_bench::main_of},
    Benchmark{"checkpoint", "saving and restoring against torch.distributed.checkpoint",
              bench::checkpoint_bench::main_of},
    Benchmark{"head_loss", "the fused head against whole logits: time and memory", bench::head_loss_bench::main_of},
    Benchmark{"kernels", "norm, rotary and gated activations against ATen's operators", bench::kernels_bench::main_of},
    Benchmark{"linear", "half products against ATen's", bench::linear_bench::main_of},
    Benchmark{"load", "reading safetensors against the bytes alone", bench::load_bench::main_of},
    Benchmark{"quantized", "linears with packed weights beside float ones", bench::quantized_bench::main_of},
    Benchmark{"resolvent", "the resolvent's diagonal beside the plain recurrence: time a position, by length",
              bench::resolvent_bench::main_of},
};

}  // namespace

int main(int argc, char** argv) {
  for (const Benchmark& benchmark : kBenchmarks) {
    if (argc > 1 && benchmark.name == argv[1]) return benchmark.main_of(argc - 1, argv + 1);
  }
  std::fprintf(stderr, "usage: limbeck_bench NAME [ARGUMENTS]\n");
  for (const Benchmark& benchmark : kBenchmarks)
    std::fprintf(stderr, "  %-11s %s\n", benchmark.name.data(), benchmark.about);
  return 2;
}
