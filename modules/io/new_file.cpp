#include "modules/io/new_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "modules/errors.h"

namespace limbeck::io {

namespace fs = std::filesystem;
namespace {

constexpr size_t kGathered = DirectBuffer::kBytes;  // of one direct write
static_assert(kGathered % kDirectBlock == 0);
constexpr uint64_t kLargeFile = uint64_t{1} << 20;

}  // namespace

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

std::string space_text(Disk& disk, const fs::path& folder, uint64_t needed, int error) {
  uint64_t available = 0;
  if ((error != ENOSPC && error != EDQUOT) || disk.free_bytes(folder, available) != 0) return "";
  return ": " + std::to_string(needed) + " bytes are needed, " + std::to_string(available) + " are available";
}

char* DirectBuffer::data() {
  if (!memory_) memory_.reset(static_cast<char*>(std::aligned_alloc(kDirectBlock, kBytes)));
  return memory_.get();
}

NewFile::NewFile(Disk& disk, const fs::path& path, uint64_t bytes, std::string shown, DirectBuffer* buffer)
    : disk_(disk), path_(path), shown_(std::move(shown)), promised_(bytes) {
  if (const int error = disk_.create(path_, descriptor_); error != 0) {
    descriptor_ = -1;
    fail("cannot be created", error);
  }
  try {
    // Asked first, so that a hopeless save does not fill the disk for everyone else before it fails.
    uint64_t available = 0;
    if (disk_.free_bytes(folder_of(path_), available) == 0 && promised_ > available) fail("cannot be written", ENOSPC);
    if (const int error = disk_.reserve(descriptor_, promised_); error != 0) fail("space cannot be reserved", error);
  } catch (...) {
    discard();
    throw;
  }
  if (promised_ >= kLargeFile && disk_.set_direct(descriptor_, true) == 0) {
    gathered_ = (buffer != nullptr ? *buffer : own_).data();
    if (!gathered_) disk_.set_direct(descriptor_, false);
  }
}

NewFile::~NewFile() { discard(); }

void NewFile::discard() {
  if (descriptor_ < 0) return;
  disk_.close(std::exchange(descriptor_, -1));
  disk_.remove_file(path_);
}

void NewFile::fail(const char* doing, int error) const {
  throw IoError(shown_ + ": " + doing + ": " + std::strerror(error) +
                space_text(disk_, folder_of(path_), promised_, error));
}

void NewFile::put(const void* data, size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  bool direct = gathered_ != nullptr;
  while (bytes > 0) {
    size_t done = 0;
    int error = disk_.write(descriptor_, at, bytes, done);
    if (error == EINVAL && std::exchange(direct, false)) {  // a disk of larger blocks, or a write cut short
      error = disk_.set_direct(descriptor_, false);
      if (error == 0) continue;
    }
    if (error != 0) fail("cannot be written", error);
    if (done == 0) fail("cannot be written", ENOSPC);
    at += done;
    bytes -= done;
  }
}

void NewFile::write(const void* data, size_t bytes) {
  written_ += bytes;
  if (!gathered_) return put(data, bytes);
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const size_t part = std::min(bytes, kGathered - filled_);
    std::memcpy(gathered_ + filled_, at, part);
    at += part;
    bytes -= part;
    filled_ += part;
    if (filled_ == kGathered) put(gathered_, std::exchange(filled_, 0));
  }
  if (written_ == promised_) put_gathered();
}

// The last of a file: what is no whole block goes through the cache. Then the buffer is free for the next file.
void NewFile::put_gathered() {
  const size_t blocks = filled_ / kDirectBlock * kDirectBlock, rest = std::exchange(filled_, 0) - blocks;
  put(gathered_, blocks);
  if (const int error = disk_.set_direct(descriptor_, false); error != 0) fail("cannot be written", error);
  put(gathered_ + blocks, rest);
  gathered_ = nullptr;
}

void NewFile::flush() {
  if (written_ != promised_) {
    throw IoError(shown_ + ": " + std::to_string(written_) + " bytes were written, " + std::to_string(promised_) +
                  " announced");
  }
  if (const int error = disk_.flush(descriptor_); error != 0) fail("cannot be flushed to disk", error);
}

void NewFile::finish() {
  if (const int error = disk_.close(std::exchange(descriptor_, -1)); error != 0) {
    disk_.remove_file(path_);
    fail("cannot be closed", error);
  }
}

}  // namespace limbeck::io
