#include "trainer/metrics/tensorboard_writer.h"

#include <unistd.h>

#include <bit>
#include <chrono>
#include <cstring>

#include "modules/io/crc32c.h"

namespace limbeck::metrics {
namespace {

namespace fs = std::filesystem;

// Field numbers of event.proto and summary.proto.
constexpr int kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5, kEventSessionLog = 7;
constexpr int kSummaryValue = 1, kValueTag = 1, kValueSimple = 2, kSessionStatus = 1;
constexpr uint64_t kSessionStart = 1;

// Wire types of the protobuf encoding.
constexpr int kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>((value & 0x7F) | 0x80));
  out.push_back(static_cast<char>(value));
}

void append_key(std::string& out, int field, int wire_type) {
  append_varint(out, static_cast<uint64_t>(field << 3 | wire_type));
}

template <typename Value>
void append_fixed(std::string& out, Value value) {
  static_assert(std::endian::native == std::endian::little);
  char bytes[sizeof(Value)];
  std::memcpy(bytes, &value, sizeof(Value));
  out.append(bytes, sizeof(Value));
}

void append_bytes(std::string& out, int field, const std::string& value) {
  append_key(out, field, kBytes);
  append_varint(out, value.size());
  out += value;
}

std::string begin_event() {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  append_key(event, kEventWallTime, kFixed64);
  append_fixed(event, now.count());
  return event;
}

void append_step(std::string& event, int64_t step) {
  append_key(event, kEventStep, kVarint);
  append_varint(event, static_cast<uint64_t>(step));
}

// The rotation and offset keep a checksum of data that holds checksums from being degenerate.
uint32_t masked_crc(const void* data, size_t bytes) { return std::rotr(io::crc32c(data, bytes), 15) + 0xA282EAD8u; }

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 && name[0] != '\0' ? name : "localhost";
}

// TensorBoard takes what has "tfevents" in its name and reads the files of a folder in the order of their names.
fs::path new_file(const fs::path& folder) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  const std::string stem = "events.out.tfevents." + std::to_string(seconds) + "." + host_name() + ".";
  for (int number = 0;; ++number) {
    fs::path path = folder / (stem + std::to_string(::getpid()) + "." + std::to_string(number));
    if (!fs::exists(path)) return path;
  }
}

}  // namespace

TensorboardWriter::TensorboardWriter(const fs::path& folder, int64_t resume_step) : file_(new_file(folder)) {
  std::string version = begin_event();
  append_bytes(version, kEventFileVersion, "brain.Event:2");
  write_record(version);
  if (resume_step <= 0) return;
  // A session that starts at step N: TensorBoard drops what it has read of steps N and later.
  std::string status, start = begin_event();
  append_key(status, kSessionStatus, kVarint);
  append_varint(status, kSessionStart);
  append_step(start, resume_step + 1);
  append_bytes(start, kEventSessionLog, status);
  write_record(start);
}

void TensorboardWriter::write(int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  std::string summary;
  for (const auto& [tag, number] : values) {
    std::string value;
    append_bytes(value, kValueTag, tag);
    append_key(value, kValueSimple, kFixed32);
    append_fixed(value, static_cast<float>(number));
    append_bytes(summary, kSummaryValue, value);
  }
  std::string event = begin_event();
  append_step(event, step);
  append_bytes(event, kEventSummary, summary);
  write_record(event);
}

void TensorboardWriter::write_record(const std::string& event) {
  std::string record;
  append_fixed(record, static_cast<uint64_t>(event.size()));
  append_fixed(record, masked_crc(record.data(), record.size()));
  record += event;
  append_fixed(record, masked_crc(event.data(), event.size()));
  file_.write(record);
}

}  // namespace limbeck::metrics
