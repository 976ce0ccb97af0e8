// The "decoder" of a tokenizer.json: tokens back to text, one at a time. What push() and finish() return, put together,
// is what decoding all at once gives: a stage keeps back what a later token could still change.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "modules/io/json_file.h"

namespace limbeck::text {

// One step of decoding. Texts that belong to one token of its output carry `begins` on the first only.
class DecodeStage {
 public:
  struct Part {
    std::string text;
    bool begins = true;
  };
  using Sink = std::function<void(Part)>;
  virtual ~DecodeStage() = default;
  virtual void push(Part part, const Sink& out) = 0;
  virtual void finish(const Sink& out) = 0;
};

using DecodePlan = std::function<std::vector<std::unique_ptr<DecodeStage>>()>;  // fresh stages for one text

DecodePlan read_decoder(const io::JsonFile& from, int depth = 0);

}  // namespace limbeck::text
