#include "fake_cuda/graph.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "fake_cuda/counters.h"
#include "fake_cuda/device_memory.h"

namespace limbeck::fake_cuda {
namespace {

constexpr unsigned char kFresh = 0xff;  // as of memory that was just given out

// One at a time.
struct Capture {
  std::mutex mutex;
  Graph* graph = nullptr;
  Stream stream = -1;
};

Capture& capture() {
  static auto& one = *new Capture;
  return one;
}

[[noreturn]] void refuse(const char* what) {
  TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing: ", what);
}

}  // namespace

Graph* capturing(Stream stream) {
  const std::lock_guard lock(capture().mutex);
  return capture().stream == stream ? capture().graph : nullptr;
}

void refuse_while_capturing(const char* what) {
  const std::lock_guard lock(capture().mutex);
  Graph* graph = capture().graph;
  if (graph == nullptr || (graph->alone_ && graph->thread_ != std::this_thread::get_id())) return;
  graph->refused_ = true;
  refuse(what);
}

void refuse_on_captured(Stream stream, const char* what) {
  const std::lock_guard lock(capture().mutex);
  if (capture().graph == nullptr || capture().stream != stream) return;
  capture().graph->refused_ = true;
  refuse(what);
}

std::shared_ptr<GraphMemory> GraphMemory::of(uint64_t number) {
  static auto& mutex = *new std::mutex;
  static auto& all = *new std::map<uint64_t, std::weak_ptr<GraphMemory>>;
  static uint64_t last = 0;
  const std::lock_guard lock(mutex);
  if (const auto found = all[number].lock()) return found;
  const auto fresh = std::make_shared<GraphMemory>(number != 0 ? number : ++last);
  all[fresh->number()] = fresh;
  return fresh;
}

GraphMemory::~GraphMemory() {
  for (const auto& [device, block] : blocks_) release(device);
}

void* GraphMemory::take(size_t bytes, Stream stream) {
  const std::lock_guard lock(mutex_);
  bytes_ += static_cast<int64_t>(bytes);
  most_bytes_ = std::max(most_bytes_, bytes_);
  for (auto& [device, block] : blocks_) {
    if (block.taken || block.bytes != bytes || block.stream != stream) continue;
    block.taken = true;
    take_back(device);
    return device;
  }
  void* device = allocate(bytes, stream);
  blocks_[device] = {bytes, stream, true};
  return device;
}

void GraphMemory::give_back(void* device) {
  const std::lock_guard lock(mutex_);
  Block& block = blocks_.at(device);
  block.taken = false;
  bytes_ -= static_cast<int64_t>(block.bytes);
  set_aside(device);
}

bool GraphMemory::holds(const void* device) const {
  const std::lock_guard lock(mutex_);
  return blocks_.contains(const_cast<void*>(device));
}

Graph::~Graph() {
  if (stream_ >= 0) make_host_wait(moment_of_device(device_of(stream_)));
}

void Graph::begin(Stream stream, std::shared_ptr<GraphMemory> memory, bool alone) {
  const std::lock_guard lock(capture().mutex);
  if (capture().graph != nullptr) refuse("another capture");
  if (stream < kMostDevices) refuse("the capture of a default stream");
  memory_ = std::move(memory);
  stream_ = stream, alone_ = alone, thread_ = std::this_thread::get_id();
  capture().graph = this, capture().stream = stream;
}

void Graph::end() {
  {
    const std::lock_guard lock(capture().mutex);
    if (capture().graph != this) refuse("the end of a capture that has not begun");
    capture().graph = nullptr, capture().stream = -1;
  }
  for (const Memory& one : taken_) std::memset(host_address(one.device), kFresh, one.bytes);
  for (const Before& one : before_) {
    if (is_device_address(one.device)) std::memcpy(host_address(one.device), one.bytes.data(), one.bytes.size());
  }
  before_.clear();
  TORCH_CHECK(!refused_, "CUDA error: operation failed due to a previous error during capture");
  ended_ = true;
}

void Graph::replay(Stream stream) const {
  TORCH_CHECK(ended_, "a graph is replayed whose capture has not ended well");
  ++counters().graphs;
  for (const Node& node : nodes_) node(stream);
}

void Graph::add(Node node) {
  const std::lock_guard lock(capture().mutex);
  nodes_.push_back(std::move(node));
}

void* Graph::take(size_t bytes, Stream stream) {
  const std::lock_guard lock(capture().mutex);
  void* device = memory_->take(bytes, stream);
  taken_.push_back({device, bytes});
  return device;
}

void Graph::forget_later(void* device, size_t bytes) {
  const std::lock_guard lock(capture().mutex);
  if (device == nullptr || memory_->holds(device)) return;
  const auto known = [&](const Before& one) { return one.device == device; };
  if (std::any_of(before_.begin(), before_.end(), known)) return;
  const char* from = static_cast<const char*>(host_address(device));
  before_.push_back({device, std::vector<char>(from, from + bytes)});
}

}  // namespace limbeck::fake_cuda
