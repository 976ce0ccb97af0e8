// Hears a forward module by module: how often each ran, for how long by itself (what runs inside of it apart), with
// what products and bytes, and when, for a trace. Products are counted from shapes: of linear modules, experts and
// attention; everything else is bytes.
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "modules/models/network/transformer.h"
#include "modules/precision/observer.h"

namespace limbeck::profile {

struct ModuleTime {
  std::string module, role;
  std::string operands;  // of its products: a dtype, or a format whose inputs are codes too; "": it has none
  int64_t calls = 0;
  double ms = 0;  // of all calls, by itself
  double flops = 0;
  int64_t bytes = 0;  // read and written: inputs, outputs, weights
};

struct TraceSpan {
  std::string module;
  double begin_us = 0, microseconds = 0;
};

class ModuleTimes : public precision::ModuleObserver {
 public:
  ModuleTimes(const models::Transformer& model, c10::Device device);

  void begin(const std::string& path) override;
  void end(const std::string& path) override;
  void input(const precision::ContractModule& module, const at::Tensor& x) override;
  void output(const precision::ContractModule& module, const at::Tensor& y) override;
  void routing(const precision::ContractModule& module, const at::Tensor& experts_nk,
               const at::Tensor& weights_nk) override;
  // Before each pass: keys of an earlier one are gone, and spans are of this one alone.
  void begin_pass();

  // In the order in which they first ran.
  std::vector<ModuleTime> modules() const;
  const std::vector<TraceSpan>& spans() const { return spans_; }  // of the last pass

 private:
  using SpanClock = std::chrono::steady_clock;
  struct Running {
    std::string path;
    SpanClock::time_point begin;
    double inside_ms = 0;  // of the modules that ran in it
    int64_t batch = 0, queries = 0;
  };
  struct Kept {
    ModuleTime time;
    size_t order = 0;
  };
  ModuleTime& of(const std::string& path);
  void add_attention(const Running& running, ModuleTime& time);

  const models::Transformer& model_;
  c10::Device device_;
  std::vector<Running> running_;
  std::map<std::string, Kept> kept_;
  std::map<std::string, int64_t> windows_;  // of the attention of each layer; 0: it sees everything
  std::map<std::string, int64_t> past_;     // tokens that the attention of a layer saw in this pass
  std::vector<TraceSpan> spans_;
  SpanClock::time_point pass_begin_;
};

}  // namespace limbeck::profile
