// Files of a data set are read with the hardened readers of modules/io, whose refusals speak of weights (exit code 4);
// here the same refusal is about input data (3).
#pragma once
#include <utility>

#include "modules/errors.h"

namespace limbeck::data {

template <class Action>
auto as_input_data(Action&& action) {
  try {
    return std::forward<Action>(action)();
  } catch (const WeightsError& error) {
    throw InputDataError(error.what());
  }
}

}  // namespace limbeck::data
