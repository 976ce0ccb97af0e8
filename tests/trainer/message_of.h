// Runs something that must throw an Error and gives back what the user would see: "2: message".
#pragma once
#include <gtest/gtest.h>

#include <string>

#include "modules/errors.h"

namespace limbeck::test {

template <class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return std::to_string(static_cast<int>(error.code())) + ": " + error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace limbeck::test
