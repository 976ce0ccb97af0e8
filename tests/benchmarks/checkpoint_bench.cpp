// Saving and restoring the state of a training run, in turn with what others do in the same time on the same disk.
//   limbeck_bench checkpoint [GIGABYTES] [FOLDER] [ROUNDS]    1 GB, the temporary folder, 7 rounds; exit code 1: a bar
//   is missed
//
// Save: checkpoint::Saver (checksums, fsync of files and folders) against torch.distributed.checkpoint saving the same
// tensors from a process of its own that keeps them: as it comes (FileSystemWriter fsyncs its file), with two threads,
// and without fsync; bar: not slower than it as it comes. "As a plain file" is one thread that writes the same bytes
// with large writes and fsyncs: what the disk allows.
// Restore: open and read every tensor, each byte held against its CRC-32C, against plain pread of the same bytes into
// fresh memory; page cache warm; bar 1.5 x. verify() reads and judges everything and keeps nothing.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "benchmarks/benchmarks.h"
#include "benchmarks/python_peer.h"
#include "benchmarks/timing.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/saver.h"
#include "trainer/checkpoint/verify.h"

namespace limbeck::bench::checkpoint_bench {
namespace {

namespace fs = std::filesystem;
namespace checkpoint = limbeck::checkpoint;

constexpr size_t kLargeBytes = size_t{8} << 20;
constexpr double kSaveBar = 1.0, kRestoreBar = 1.5;

double seconds(const std::function<void()>& action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Times {
  std::vector<double> each = {};
  void print(const char* what, const Times& base) const {
    std::vector<double> ratios;
    for (size_t i = 0; i < each.size(); ++i) ratios.push_back(each[i] / base.each[i]);
    const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
    std::printf("  %-34s %7.3f s   %5.2f x  (%.2f to %.2f)\n", what, median(each), median(ratios), *least, *most);
  }
  double over(const Times& base) const {
    std::vector<double> ratios;
    for (size_t i = 0; i < each.size(); ++i) ratios.push_back(each[i] / base.each[i]);
    return median(ratios);
  }
};

at::Tensor numbers(std::vector<int64_t> shape, uint32_t seed) {
  at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(at::kFloat));
  auto* values = tensor.mutable_data_ptr<float>();
  uint32_t state = seed * 2654435761u + 1;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    values[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return tensor;
}

// Layers of width 2,048 (matrices of 16 and 64 MiB, two norms) and a few hundred small tensors, weights and both
// moments, until there are so many bytes.
checkpoint::SaveRequest make_state(uint64_t bytes) {
  checkpoint::SaveRequest request;
  request.run_id = "bench";
  request.state = nlohmann::json::object();
  uint64_t sum = 0;
  uint32_t seed = 0;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    for (const char* kind : {"", "first_moment.", "second_moment."}) {
      const at::Tensor data = numbers(shape, ++seed);
      sum += data.nbytes();
      (*kind == 0 ? request.model : request.optimizer).push_back(checkpoint::whole_tensor(kind + name, data));
    }
  };
  for (int i = 0; i < 100; ++i) add("student.small." + std::to_string(i), {2048});
  const std::vector<std::vector<int64_t>> shapes = {{2048, 2048}, {8192, 2048}, {2048}, {2048, 8192}, {2048}};
  for (size_t i = 0; sum < bytes; ++i) {
    add("student.layers." + std::to_string(i / shapes.size()) + "." + std::to_string(i % shapes.size()),
        shapes[i % shapes.size()]);
  }
  return request;
}

std::vector<const at::Tensor*> tensors_of(const checkpoint::SaveRequest& request) {
  std::vector<const at::Tensor*> tensors;
  for (const auto* pieces : {&request.model, &request.optimizer}) {
    for (const checkpoint::Piece& piece : *pieces) tensors.push_back(&piece.data);
  }
  return tensors;
}

void write_plain(const fs::path& path, const checkpoint::SaveRequest& request) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  for (const at::Tensor* tensor : tensors_of(request)) {
    const auto* data = static_cast<const char*>(tensor->const_data_ptr());
    for (size_t at = 0; at < tensor->nbytes();) {
      const ssize_t done = ::write(file, data + at, std::min(kLargeBytes, tensor->nbytes() - at));
      if (done <= 0) throw std::runtime_error(path.string() + ": cannot be written");
      at += static_cast<size_t>(done);
    }
  }
  if (::fsync(file) != 0 || ::close(file) != 0) throw std::runtime_error(path.string() + ": cannot be flushed");
}

using Memory = std::unique_ptr<char, decltype(&std::free)>;

Memory read_plain(const fs::path& path) {
  const uint64_t bytes = fs::file_size(path);
  Memory memory(static_cast<char*>(std::malloc(bytes)), &std::free);
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  for (uint64_t at = 0; at < bytes;) {
    const ssize_t got =
        ::pread(file, memory.get() + at, std::min<uint64_t>(kLargeBytes, bytes - at), static_cast<off_t>(at));
    if (got <= 0) throw std::runtime_error(path.string() + ": cannot be read");
    at += static_cast<uint64_t>(got);
  }
  ::close(file);
  return memory;
}

bool measure_save(const fs::path& folder, checkpoint::SaveRequest& request, int rounds) {
  const auto ranks = limbeck::parallel::make_solo();
  checkpoint::Saver saver(folder / "ours", *ranks);
  const fs::path first = saver.save(request).path;
  std::vector<std::string> command = {LIMBECK_BENCH_PYTHON, LIMBECK_BENCH_PEER};
  for (const auto& entry : fs::directory_iterator(first)) {
    if (entry.path().extension() == ".safetensors") command.push_back(entry.path().string());
  }
  limbeck::bench::PythonPeer peer(command);
  const fs::path theirs = folder / "theirs";
  const auto ask = [&](const char* how) {
    const double time = std::stod(peer.ask(fmt::format("{} {}", how, theirs.string())));
    fs::remove_all(theirs);
    ::sync();  // what the next one finds must not depend on who came before it
    return time;
  };
  Times ours, plain, dcp, dcp_two, dcp_unsynced, write_part, flush_part, commit_part;
  const auto save = [&] {
    ++request.step;
    checkpoint::SaveReport report;
    ours.each.push_back(seconds([&] { report = saver.save(request); }));
    write_part.each.push_back(report.write_seconds);
    flush_part.each.push_back(report.fsync_seconds);
    commit_part.each.push_back(report.commit_seconds);
    fs::remove_all(report.path);
    ::sync();
  };
  const auto write = [&] {
    plain.each.push_back(seconds([&] { write_plain(folder / "plain", request); }));
    fs::remove(folder / "plain");
    ::sync();
  };
  std::vector<std::function<void()>> contenders = {save, [&] { dcp.each.push_back(ask("1 1")); }, write,
                                                   [&] { dcp_two.each.push_back(ask("1 2")); },
                                                   [&] { dcp_unsynced.each.push_back(ask("0 1")); }};
  std::mt19937 order(0);
  for (int round = 0; round < rounds + 1; ++round) {
    // In a new order each round, and nobody's data is on its way to the disk when the next begins: on a virtual machine
    // the page cache may get memory that the host has yet to find, which costs whoever meets it several times the
    // write itself, and who comes after whom decides who meets it.
    std::shuffle(contenders.begin(), contenders.end(), order);
    for (const auto& contender : contenders) {
      ::sync();
      contender();
    }
    if (round > 0) continue;
    for (Times* times : {&ours, &plain, &dcp, &dcp_two, &dcp_unsynced, &write_part, &flush_part, &commit_part}) {
      times->each.clear();
    }
  }
  std::printf("save, medians, ratios to torch.distributed.checkpoint as it comes (%s):\n", peer.greeting().c_str());
  dcp.print("DCP, FileSystemWriter as it comes", dcp);
  dcp_two.print("DCP, thread_count=2", dcp);
  dcp_unsynced.print("DCP, sync_files=False", dcp);
  plain.print("as a plain file, fsync", dcp);
  ours.print("Saver::save", dcp);
  std::printf("    of which writing %.3f s, fsync %.3f s, commit %.3f s\n", median(write_part.each),
              median(flush_part.each), median(commit_part.each));
  const bool held = ours.over(dcp) <= kSaveBar;
  std::printf("%s: save %.2f <= %.1f\n", held ? "held" : "MISSED", ours.over(dcp), kSaveBar);
  return held;
}

bool measure_restore(const fs::path& path, int rounds) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path)) files.push_back(entry.path());
  Times plain, restored, verified;
  for (int round = 0; round < rounds + 1; ++round) {
    ::malloc_trim(0);  // all memory is fresh, on either side
    plain.each.push_back(seconds([&] {
      std::vector<Memory> kept;
      for (const fs::path& file : files) kept.push_back(read_plain(file));
    }));
    ::malloc_trim(0);
    restored.each.push_back(seconds([&] {
      const auto saved = checkpoint::Checkpoint::open(path);
      std::vector<at::Tensor> kept;
      for (const auto& tensor : saved.tensors()) kept.push_back(saved.read(tensor.kind, tensor.name));
    }));
    verified.each.push_back(seconds([&] {
      const std::string fault = checkpoint::first_fault(checkpoint::verify(path));
      if (!fault.empty()) throw std::runtime_error(fault);
    }));
    if (round > 0) continue;
    for (Times* times : {&plain, &restored, &verified}) times->each.clear();
  }
  std::printf("restore, page cache warm, ratios to plain reading:\n");
  plain.print("pread into fresh memory", plain);
  restored.print("open, read and check all tensors", plain);
  verified.print("verify()", plain);
  const bool held = restored.over(plain) <= kRestoreBar;
  std::printf("%s: restore %.2f <= %.1f\n", held ? "held" : "MISSED", restored.over(plain), kRestoreBar);
  return held;
}

bool run(uint64_t bytes, const fs::path& folder, int rounds) {
  checkpoint::SaveRequest request = make_state(bytes);
  uint64_t sum = 0;
  for (const at::Tensor* tensor : tensors_of(request)) sum += tensor->nbytes();
  std::printf("%zu float32 tensors, %.0f MB, %d rounds in turn, %s\n", tensors_of(request).size(),
              static_cast<double>(sum) / 1e6, rounds, folder.c_str());
  bool held = measure_save(folder, request, rounds);
  return measure_restore(folder / "ours" / "step-00000000", rounds) && held;
}

}  // namespace

int main_of(int argc, char** argv) {
  const double gigabytes = argc > 1 ? std::strtod(argv[1], nullptr) : 1.0;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 7;
  if (!(gigabytes >= 0.01 && gigabytes <= 64) || rounds < 1) {
    std::fprintf(stderr, "usage: limbeck_bench checkpoint [GIGABYTES, 0.01 to 64] [FOLDER] [ROUNDS]\n");
    return 2;
  }
  std::string pattern = (argc > 2 ? fs::path(argv[2]) : fs::temp_directory_path()) / "limbeck-checkpoint-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) {
    std::perror(pattern.c_str());
    return 6;
  }
  int code = 6;
  try {
    code = run(static_cast<uint64_t>(gigabytes * 1e9), pattern, rounds) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  fs::remove_all(pattern);
  return code;
}

}  // namespace limbeck::bench::checkpoint_bench
