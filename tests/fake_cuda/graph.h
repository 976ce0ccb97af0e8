// Stream capture as CUDA has it: between begin() and end() what the stream is given is recorded, not done, and every
// replay() does it again with the addresses and numbers that it was given. Kernels of ours do not run meanwhile;
// operators of ATen are computed for the sake of their results' shapes, and what they have written is forgotten at the
// end: memory of the graph is no number until the first replay, other memory is as it was.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "fake_cuda/streams.h"

namespace limbeck::fake_cuda {

class Graph {
 public:
  // On the stream that it is replayed on.
  using Node = std::function<void(Stream stream)>;

  Graph() = default;
  ~Graph();  // waits for the device: its memory goes
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // `alone`: other threads may wait for the device and take memory meanwhile.
  void begin(Stream stream, bool alone);
  // Throws where something was refused meanwhile.
  void end();
  void replay(Stream stream) const;

  void add(Node node);
  // Memory of the graph, which it keeps as long as it lives.
  void keep(std::shared_ptr<void> device, size_t bytes);
  // An operator is about to write there, now.
  void forget_later(void* device, size_t bytes);

 private:
  struct Memory {
    std::shared_ptr<void> device;
    size_t bytes;
  };
  struct Before {
    void* device;
    std::vector<char> bytes;
  };
  bool holds(const void* device) const;

  friend void refuse_while_capturing(const char* what);
  friend void refuse_on_captured(Stream stream, const char* what);

  Stream stream_ = -1;
  bool alone_ = false, refused_ = false, ended_ = false;
  std::thread::id thread_;
  std::vector<Memory> kept_;  // before the nodes, whose tensors are part of it
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
