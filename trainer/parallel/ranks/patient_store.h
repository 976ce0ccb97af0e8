// A store asked with patience that ends: its answers come from another machine, which may have stopped, and a client of
// TCPStore would wait for it for ever. Every call is back within kPatience, with an answer or with an IoError.
#pragma once
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <functional>
#include <memory>
#include <string>
#include <thread>

namespace limbeck::parallel {

class PatientStore {
 public:
  // `store`: a connection of its own.
  explicit PatientStore(c10::intrusive_ptr<c10d::Store> store);
  ~PatientStore();
  PatientStore(const PatientStore&) = delete;
  PatientStore& operator=(const PatientStore&) = delete;

  void set(const std::string& key, const std::string& text);
  std::string get(const std::string& key);  // "" when nobody has set it

 private:
  struct Desk;
  std::string ask(std::function<std::string(c10d::Store&)> question);

  std::shared_ptr<Desk> desk_;  // of the thread too, which outlives this where the store never answers
  std::thread thread_;
};

}  // namespace limbeck::parallel
