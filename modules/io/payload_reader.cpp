#include "modules/io/payload_reader.h"

#include <ATen/Parallel.h>
#include <sys/mman.h>

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

#include "modules/io/finite_check.h"

namespace limbeck::io {
namespace {

constexpr uint64_t kPiece = uint64_t{512} << 10;    // read, then checked, within the second-level cache
constexpr uint64_t kPerThread = uint64_t{2} << 20;  // less is not worth starting a thread
constexpr uint64_t kHugePage = uint64_t{2} << 20;
constexpr int kMostThreads = 8;  // by then memory is the limit

// Fresh memory costs a fault for every 4 KiB, more than the copy itself. Advice only: ignored where it does not apply,
// and limited to pages wholly inside the tensor, so nothing grows.
void advise_huge_pages(void* data, uint64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage,
                  end = (address + bytes) / kHugePage * kHugePage;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

struct Part {
  uint64_t begin = 0, end = 0;  // bytes of the tensor
  std::optional<int64_t> nonfinite;
  std::exception_ptr error;
};

void read_part(const InputFile& file, uint64_t offset, char* data, at::ScalarType type, bool check_finite, Part& part) {
  const uint64_t item = c10::elementSize(type);
  for (uint64_t at = part.begin; at < part.end; at += kPiece) {
    const uint64_t bytes = std::min(kPiece, part.end - at);
    file.read(offset + at, data + at, bytes);
    if (!check_finite || part.nonfinite) continue;
    if (const auto found = first_nonfinite(data + at, static_cast<int64_t>(bytes / item), type)) {
      part.nonfinite = static_cast<int64_t>(at / item) + *found;
    }
  }
}

}  // namespace

std::optional<int64_t> read_payload(const InputFile& file, uint64_t offset, at::Tensor& destination,
                                    bool check_finite) {
  const uint64_t bytes = destination.nbytes();
  if (bytes == 0) return std::nullopt;
  auto* data = static_cast<char*>(destination.mutable_data_ptr());
  const at::ScalarType type = destination.scalar_type();
  advise_huge_pages(data, bytes);

  const uint64_t allowed = static_cast<uint64_t>(std::clamp(at::get_num_threads(), 1, kMostThreads));
  const uint64_t count = std::clamp<uint64_t>(bytes / kPerThread, 1, allowed);
  std::vector<Part> parts(count);
  for (uint64_t i = 0; i < count; ++i) {
    // Cut at pieces, hence at whole elements.
    parts[i].begin = i == 0 ? 0 : parts[i - 1].end;
    parts[i].end = i + 1 == count ? bytes : bytes / kPiece * (i + 1) / count * kPiece;
  }
  const auto work = [&](Part& part) {
    try {
      read_part(file, offset, data, type, check_finite, part);
    } catch (...) {
      part.error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> threads;  // joined here, also when one cannot be started
    for (uint64_t i = 1; i < count; ++i) threads.emplace_back(work, std::ref(parts[i]));
    work(parts[0]);
  }
  for (const Part& part : parts) {
    if (part.error) std::rethrow_exception(part.error);
  }
  for (const Part& part : parts) {
    if (part.nonfinite) return part.nonfinite;
  }
  return std::nullopt;
}

}  // namespace limbeck::io
