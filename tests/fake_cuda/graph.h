// Stream capture as CUDA has it: between begin() and end() what the stream is given is recorded, not done, and every
// replay() does it again with the addresses and numbers that it was given. Kernels of ours do not run meanwhile;
// operators of ATen are computed for the sake of their results' shapes, and what they have written is forgotten at the
// end: memory of the graph is no number until the first replay, other memory is as it was. What is recorded keeps no
// memory, as no kernel does: the graph keeps its own.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "fake_cuda/streams.h"

namespace limbeck::fake_cuda {

// The memory of one graph, or of several that say so. What a tensor leaves goes to later ones of the same size and
// stream, of whichever graph; all of it goes when no graph and no tensor is left.
class GraphMemory {
 public:
  // The one of this number, while there is one; else a new one.
  static std::shared_ptr<GraphMemory> of(uint64_t number);
  explicit GraphMemory(uint64_t number) : number_(number) {}
  ~GraphMemory();
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;

  void* take(size_t bytes, Stream stream);
  void give_back(void* device);
  bool holds(const void* device) const;
  int64_t most_bytes() const { return most_bytes_; }  // that tensors had at one time: without fragments
  uint64_t number() const { return number_; }

 private:
  struct Block {
    size_t bytes;
    Stream stream;
    bool taken;
  };
  const uint64_t number_;
  mutable std::mutex mutex_;
  std::map<void*, Block> blocks_;
  int64_t bytes_ = 0, most_bytes_ = 0;
};

class Graph {
 public:
  // On the stream that it is replayed on.
  using Node = std::function<void(Stream stream)>;

  Graph() = default;
  ~Graph();  // waits for the device: its memory goes
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // `alone`: other threads may wait for the device and take memory meanwhile.
  void begin(Stream stream, std::shared_ptr<GraphMemory> memory, bool alone);
  // Throws where something was refused meanwhile.
  void end();
  void replay(Stream stream) const;

  void add(Node node);
  // For a tensor that is made meanwhile.
  void* take(size_t bytes, Stream stream);
  const std::shared_ptr<GraphMemory>& memory() const { return memory_; }
  // An operator is about to write there, now.
  void forget_later(void* device, size_t bytes);

 private:
  struct Memory {
    void* device;
    size_t bytes;
  };
  struct Before {
    void* device;
    std::vector<char> bytes;
  };

  friend void refuse_while_capturing(const char* what);
  friend void refuse_on_captured(Stream stream, const char* what);

  Stream stream_ = -1;
  bool alone_ = false, refused_ = false, ended_ = false;
  std::thread::id thread_;
  std::shared_ptr<GraphMemory> memory_;
  std::vector<Memory> taken_;
  std::vector<Before> before_;
  std::vector<Node> nodes_;
};

// The graph that records what this stream is given; nullptr: it is done.
Graph* capturing(Stream stream);
// Throws, as CUDA does, and spoils the graph: a wait of the host, or memory from elsewhere, by a thread that must not.
void refuse_while_capturing(const char* what);
// The same where the stream itself is recorded, whoever asks.
void refuse_on_captured(Stream stream, const char* what);

}  // namespace limbeck::fake_cuda
