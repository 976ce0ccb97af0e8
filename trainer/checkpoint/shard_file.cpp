#include "trainer/checkpoint/shard_file.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/io/tensor_dtype.h"
#include "modules/io/tensor_name.h"

namespace limbeck::checkpoint {
namespace {

io::StoredType checked_type(const Piece& piece) {
  const std::string what = fmt::format("checkpoint: tensor {}: ", io::in_quotes(piece.name));
  const at::Tensor& data = piece.data;
  if (!data.defined()) throw ContractError(what + "is undefined");
  if (!data.is_cpu() || data.layout() != at::kStrided || !data.is_contiguous() || data.is_neg() || data.is_conj()) {
    throw ContractError(what + "is " + data.toString() + ", wanted contiguous memory on cpu");
  }
  const auto type = io::stored_type(data.scalar_type());
  if (!type) throw ContractError(what + "dtype " + c10::toString(data.scalar_type()) + " has no place in safetensors");
  const auto bytes = io::tensor_bytes(piece.shape, *type);
  if (!bytes) throw ContractError(what + "its shape is negative or too large");
  const auto elements = static_cast<int64_t>(*bytes / io::stored_bytes(*type));
  if (piece.begin < 0 || piece.begin > elements || data.numel() > elements - piece.begin) {
    throw ContractError(
        fmt::format("{}a piece of {} elements from {} on, and it has {}", what, data.numel(), piece.begin, elements));
  }
  return *type;
}

bool is_whole(const ChunkRecord& chunk) {
  int64_t elements = 1;
  for (const int64_t size : chunk.shape) elements *= size;
  return chunk.count == elements;
}

// A rank may hold nothing of a tensor; a tensor without elements is kept all the same.
bool holds_nothing(const ChunkRecord& chunk) { return chunk.count == 0 && !is_whole(chunk); }

}  // namespace

ShardFile::ShardFile(Kind kind, int rank, const std::vector<Piece>& pieces) {
  record_.name = weights_file_name(kind, rank);
  for (const Piece& piece : pieces) {
    ChunkRecord chunk{piece.name, piece.shape, checked_type(piece), piece.begin, piece.data.numel(), 0, 0, {}};
    if (holds_nothing(chunk)) continue;
    chunk.bytes = piece.data.nbytes();
    chunk.crc.resize(block_count(chunk.bytes));
    record_.chunks.push_back(std::move(chunk));
    pieces_.push_back(&piece);
  }
  // Widest dtype first, so that every tensor is aligned for readers that map.
  std::vector<size_t> order(pieces_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return pieces_[a]->data.element_size() > pieces_[b]->data.element_size();
  });
  std::vector<io::HeaderEntry> entries;
  std::vector<ChunkRecord> chunks;
  std::vector<const Piece*> sorted;
  for (const size_t i : order) {
    chunks.push_back(std::move(record_.chunks[i]));
    sorted.push_back(pieces_[i]);
    const ChunkRecord& chunk = chunks.back();
    entries.push_back({chunk.name, chunk.dtype, is_whole(chunk) ? chunk.shape : std::vector<int64_t>{chunk.count}});
  }
  head_ = io::build_header(entries, {{"format", "pt"}}, record_.name);
  for (size_t i = 0; i < chunks.size(); ++i) chunks[i].offset = entries[i].begin;
  record_.chunks = std::move(chunks);
  pieces_ = std::move(sorted);
  record_.head_bytes = head_.size();
  record_.head_crc = io::crc32c(head_.data(), head_.size());
  record_.bytes = entries.empty() ? head_.size() : entries.back().end;
}

void ShardFile::write(io::Disk& disk, const std::filesystem::path& folder, io::DirectBuffer& buffer) {
  const std::filesystem::path path = folder / record_.name;
  file_ = std::make_unique<io::NewFile>(disk, path, record_.bytes, path.string(), &buffer);
  file_->write(head_.data(), head_.size());
  for (size_t i = 0; i < pieces_.size(); ++i) {
    ChunkRecord& chunk = record_.chunks[i];
    const auto* data = static_cast<const char*>(pieces_[i]->data.const_data_ptr());
    for (uint64_t block = 0; block < chunk.crc.size(); ++block) {
      // Written while it is still in the cache from the checksum: memory is read once.
      const uint64_t at = block * kBlockBytes, bytes = std::min(kBlockBytes, chunk.bytes - at);
      chunk.crc[block] = io::crc32c(data + at, bytes);
      file_->write(data + at, bytes);
    }
  }
}

void ShardFile::flush() { file_->flush(); }

void ShardFile::finish() { file_->finish(); }

}  // namespace limbeck::checkpoint
