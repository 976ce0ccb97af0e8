// The only casts of Limbeck. Each has a place, a source and a target; `check` lists them with their cost per step.
// A lint refuses every other dtype change in modules/ and trainer/, and the recorder refuses those it sees at run time.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>

namespace limbeck::precision {

// Casts `x`, which must have dtype `from`, to `to`; the gradient is cast back. Same dtype: `x` itself.
// `place` names the spot in the contract's table, for example "student.layers.3.mlp.up_proj (input)".
at::Tensor cast(const at::Tensor& x, at::ScalarType from, at::ScalarType to, const std::string& place);

// Fills `destination` (a parameter) from `source` of any floating dtype: the explicit cast of loading weights.
void cast_into(at::Tensor& destination, const at::Tensor& source);

// The same while a step runs: listed under its place where the dtypes differ.
void cast_into(at::Tensor& destination, const at::Tensor& source, std::string_view place);

// Lists a change that an operator of ours makes inside itself, in registers and tiles: no tensor of the other dtype
// exists, so no bytes move.
void name_inner_cast(std::string_view place, at::ScalarType from, at::ScalarType to);

// Integers carry no precision: masks, ids and segments in the integer type that an operator wants.
at::Tensor integers(const at::Tensor& x, at::ScalarType to);

// Moves a batch or a weight to a device, its dtype untouched.
at::Tensor move(const at::Tensor& x, c10::Device device);

// move() of what the CPU has just made. To a GPU it goes through pinned memory, and the call returns before the copy is
// done: later work on the same stream comes after it, and the pinned block is kept until then by its allocator.
at::Tensor upload(const at::Tensor& x, c10::Device device);

// True while a named cast runs on this thread.
bool inside_named_cast();

// Collects the casts made on this thread while it lives.
class CastLog {
 public:
  struct Key {
    std::string place;
    at::ScalarType from, to;
    auto operator<=>(const Key& other) const {
      return std::tie(place, from, to) <=> std::tie(other.place, other.from, other.to);
    }
  };
  struct Cost {
    int64_t count = 0;
    int64_t bytes = 0;  // read and written
  };
  CastLog();
  ~CastLog();
  CastLog(const CastLog&) = delete;
  CastLog& operator=(const CastLog&) = delete;
  const std::map<Key, Cost>& casts() const { return casts_; }

 private:
  friend void log_cast(std::string_view place, at::ScalarType from, at::ScalarType to, int64_t bytes);
  std::map<Key, Cost> casts_;
  CastLog* outer_;
};

}  // namespace limbeck::precision
