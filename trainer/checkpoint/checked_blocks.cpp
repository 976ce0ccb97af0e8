#include "trainer/checkpoint/checked_blocks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/io/tensor_name.h"

namespace limbeck::checkpoint {
namespace {

[[noreturn]] void refuse_bytes(const io::InputFile& file, const std::string& what, uint64_t begin, uint64_t end) {
  throw WeightsError(
      fmt::format("{}: {}: bytes {} to {} of the file differ from what was saved (CRC-32C): damaged, use "
                  "another checkpoint",
                  file.path().string(), what, begin, end));
}

// The header that a safetensors tool would go by must say what the manifest says.
void check_header(const io::InputFile& file, const FileRecord& record, const std::string& head) {
  const std::string where = file.path().string();
  const auto header = io::parse_header(std::string_view(head).substr(std::min(head.size(), io::kHeaderPrefixBytes)),
                                       file.size(), where);
  bool same = header.entries.size() == record.chunks.size();
  for (size_t i = 0; same && i < record.chunks.size(); ++i) {
    const io::HeaderEntry& entry = header.entries[i];
    const ChunkRecord& chunk = record.chunks[i];
    same = entry.name == chunk.name && entry.dtype == chunk.dtype && entry.end - entry.begin == chunk.bytes;
  }
  if (!same) throw WeightsError(where + ": its header lists other tensors than the manifest");
}

}  // namespace

void read_chunk(const io::InputFile& file, const ChunkRecord& chunk, uint64_t from, uint64_t bytes, char* to) {
  if (bytes == 0) return;
  std::vector<char> scratch;
  const uint64_t until = from + bytes;
  for (uint64_t block = from / kBlockBytes; block * kBlockBytes < until; ++block) {
    const uint64_t begin = block * kBlockBytes, end = std::min(begin + kBlockBytes, chunk.bytes);
    const bool in_place = to != nullptr && begin >= from && end <= until;
    if (!in_place) scratch.resize(std::min(kBlockBytes, chunk.bytes));
    char* at = in_place ? to + (begin - from) : scratch.data();
    file.read(chunk.offset + begin, at, end - begin);
    if (io::crc32c(at, end - begin) != chunk.crc[block]) {
      refuse_bytes(file, "tensor " + io::in_quotes(chunk.name), chunk.offset + begin, chunk.offset + end);
    }
    if (in_place || to == nullptr) continue;
    const uint64_t first = std::max(begin, from), last = std::min(end, until);
    std::memcpy(to + (first - from), at + (first - begin), last - first);
  }
}

std::string read_head(const io::InputFile& file, const FileRecord& record) {
  if (record.head_bytes > io::kHeaderPrefixBytes + io::kMaxHeaderBytes) {
    throw WeightsError(fmt::format("{}: begins with {} bytes of text, at most {} are read", file.path().string(),
                                   record.head_bytes, io::kHeaderPrefixBytes + io::kMaxHeaderBytes));
  }
  std::string text(record.head_bytes, '\0');
  file.read(0, text.data(), text.size());
  if (io::crc32c(text.data(), text.size()) != record.head_crc) {
    refuse_bytes(file, record.chunks.empty() ? "its text" : "its header", 0, record.head_bytes);
  }
  if (record.name != kStateName) check_header(file, record, text);
  return text;
}

io::InputFile open_recorded(const std::filesystem::path& folder, const FileRecord& record) {
  io::InputFile file(folder / record.name);
  if (file.size() == record.bytes) return file;
  throw WeightsError(fmt::format("{}: has {} bytes, {} were saved: {}", file.path().string(), file.size(), record.bytes,
                                 file.size() < record.bytes ? "cut short" : "something was added"));
}

}  // namespace limbeck::checkpoint
