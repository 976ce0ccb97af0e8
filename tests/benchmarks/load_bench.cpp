// Loading a 1 GB safetensors model against reading the same bytes, interleaved in one process.
//   limbeck_bench load [GIGABYTES] [FOLDER]     1 GB and the temporary folder by default; exit code 1 when a bar is
//   missed
//
// The bars of the foundation: load <= 1.3 x the time of reading the file's bytes into memory of that size, peak memory
// <= 1.1 x the model. "Reading" is a plain pread loop of one thread into fresh memory, as load needs; the same loop
// into a buffer that is already mapped is printed too, and is what no loader that keeps its tensors can reach on one
// thread. Load is measured with the check for NaN and infinities (the default of WeightsFolder) and without.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "benchmarks/benchmarks.h"
#include "benchmarks/timing.h"
#include "modules/errors.h"
#include "modules/io/safetensors.h"

namespace limbeck::bench::load_bench {
namespace {

namespace fs = std::filesystem;
using limbeck::io::NonFinite;

constexpr int kRounds = 9;
constexpr size_t kReadBytes = size_t{8} << 20;
constexpr double kTimeBar = 1.3, kMemoryBar = 1.1;

double seconds(const std::function<void()>& action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// One value of /proc/self/status, in bytes.
uint64_t status_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) == 0) return std::strtoull(line.c_str() + key.size() + 1, nullptr, 10) * 1024;
  }
  throw limbeck::IoError("/proc/self/status: no " + key);
}

void forget_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

// The tensors of a decoder with 22 layers: matrices of a few megabytes and many small norms.
void make_model(const fs::path& folder, uint64_t bytes) {
  limbeck::io::NamedTensors tensors;
  const int64_t width = 2048, layers = 22;
  const int64_t per_layer = static_cast<int64_t>(bytes) / 2 / (layers + 2);
  const int64_t rows = (per_layer - 2 * width) / width / 4;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(at::kBFloat16));
    auto* bits = static_cast<uint16_t*>(tensor.mutable_data_ptr());
    uint32_t state = static_cast<uint32_t>(tensors.size()) * 2654435761u + 1;
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      state = state * 1664525u + 1013904223u;
      bits[i] = static_cast<uint16_t>((state >> 16) & 0xBF7F);  // finite: below 2 in size
    }
    tensors.emplace_back(name, tensor);
  };
  add("model.embed_tokens.weight", {per_layer / width, width});
  for (int64_t layer = 0; layer < layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    for (const char* part : {"mlp.up_proj", "mlp.down_proj", "mlp.gate_proj", "self_attn.qkv_proj"}) {
      add(prefix + part + ".weight", {rows, width});
    }
    add(prefix + "input_layernorm.weight", {width});
    add(prefix + "post_attention_layernorm.weight", {width});
  }
  add("lm_head.weight", {per_layer / width, width});
  limbeck::io::write_weights_folder(folder, tensors, bytes * 2);
}

void read_plain(const fs::path& path, char* memory, uint64_t bytes) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  for (uint64_t at = 0; at < bytes;) {
    const ssize_t got = ::pread(file, memory + at, std::min<uint64_t>(kReadBytes, bytes - at), static_cast<off_t>(at));
    if (got <= 0) throw limbeck::IoError(path.string() + ": cannot be read");
    at += static_cast<uint64_t>(got);
  }
  ::close(file);
}

void read_fresh(const fs::path& path, uint64_t bytes) {
  const std::unique_ptr<char, decltype(&std::free)> memory(static_cast<char*>(std::malloc(bytes)), &std::free);
  if (!memory) throw limbeck::IoError("no memory");
  read_plain(path, memory.get(), bytes);
}

std::vector<at::Tensor> load(const fs::path& folder, NonFinite nonfinite) {
  const limbeck::io::WeightsFolder weights(folder, nonfinite);
  std::vector<at::Tensor> tensors;
  for (const std::string& name : weights.names()) tensors.push_back(weights.read(name));
  return tensors;
}

struct Memory {
  double growth = 0, whole = 0;  // over the model's bytes
};

Memory measure_memory(const fs::path& folder, uint64_t model_bytes) {
  forget_peak();
  const uint64_t before = status_bytes("VmRSS");
  const auto tensors = load(folder, NonFinite::kRefuse);
  const uint64_t peak = status_bytes("VmHWM");
  const auto model = static_cast<double>(model_bytes);
  return {static_cast<double>(peak - before) / model, static_cast<double>(peak) / model};
}

int run(uint64_t bytes, const fs::path& folder) {
  make_model(folder, bytes);
  const fs::path file = folder / "model.safetensors";
  const uint64_t file_bytes = fs::file_size(file);
  const Memory memory = measure_memory(folder, file_bytes);

  std::vector<double> fresh, reused, checked, unchecked;
  std::vector<double> against_fresh, against_reused;
  {
    std::vector<char> buffer(file_bytes, 1);
    for (int round = 0; round < kRounds; ++round) {
      fresh.push_back(seconds([&] { read_fresh(file, file_bytes); }));
      checked.push_back(seconds([&] { load(folder, NonFinite::kRefuse); }));
      reused.push_back(seconds([&] { read_plain(file, buffer.data(), file_bytes); }));
      unchecked.push_back(seconds([&] { load(folder, NonFinite::kAllow); }));
      against_fresh.push_back(checked.back() / fresh.back());
      against_reused.push_back(checked.back() / reused.back());
    }
  }
  const double ratio = median(against_fresh);
  std::printf("model %.0f MB, page cache warm, %d threads, medians of %d interleaved rounds\n",
              static_cast<double>(file_bytes) / 1e6, at::get_num_threads(), kRounds);
  std::printf("read into fresh memory    %.3f s   (the baseline)\n", median(fresh));
  std::printf("read into mapped memory   %.3f s\n", median(reused));
  std::printf("load, checked for NaN     %.3f s   %.2f x the baseline, %.2f x mapped\n", median(checked), ratio,
              median(against_reused));
  std::printf("load, unchecked           %.3f s\n", median(unchecked));
  std::printf("peak memory of the load   %.3f x the model (whole process %.3f x)\n", memory.growth, memory.whole);
  const bool held = ratio <= kTimeBar && memory.growth <= kMemoryBar;
  std::printf("%s: time %.2f <= %.1f, memory %.3f <= %.1f\n", held ? "held" : "MISSED", ratio, kTimeBar, memory.growth,
              kMemoryBar);
  return held ? 0 : 1;
}

}  // namespace

int main_of(int argc, char** argv) {
  const double gigabytes = argc > 1 ? std::strtod(argv[1], nullptr) : 1.0;
  if (!(gigabytes >= 0.01 && gigabytes <= 64)) {
    std::fprintf(stderr, "usage: limbeck_bench load [GIGABYTES, 0.01 to 64] [FOLDER]\n");
    return 2;
  }
  std::string pattern = (argc > 2 ? fs::path(argv[2]) : fs::temp_directory_path()) / "limbeck-load-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) {
    std::perror(pattern.c_str());
    return 6;
  }
  int code = 6;
  try {
    code = run(static_cast<uint64_t>(gigabytes * 1e9), pattern);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  fs::remove_all(pattern);
  return code;
}

}  // namespace limbeck::bench::load_bench
