// Names of the lines that a communicator gives out. Lines meet in the store by their names: one that was given before
// gets a number, on every rank the same, because all ask in the same order.
#pragma once
#include <map>
#include <string>

namespace limbeck::parallel {

class LineNames {
 public:
  std::string fresh(const std::string& name) {
    const int number = ++given_[name];
    return number == 1 ? name : name + " " + std::to_string(number);
  }

 private:
  std::map<std::string, int> given_;
};

}  // namespace limbeck::parallel
