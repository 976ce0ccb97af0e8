// Work in a process of its own, forked from this one before anything was computed here: its peak of memory is nobody
// else's, and its death ends nothing but itself.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

namespace limbeck::profile {

struct ChildOutcome {
  std::string text;        // what `work` gave back
  std::string fault;       // why there is no text: an error's message, or the signal that ended the child
  int64_t peak_bytes = 0;  // of resident memory, over its whole life, as the system accounts it
};

// Errors of `work` come back as their message.
ChildOutcome run_in_child(const std::function<std::string()>& work);

}  // namespace limbeck::profile
