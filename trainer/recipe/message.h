// The wording that recipe and command-line errors share.
#pragma once
#include <string>
#include <vector>

namespace limbeck::recipe {

// A value as it may stand in a one-line message: control characters escaped, the middle of a long one left out.
std::string shown(const std::string& text);

// "did you mean student.dtype?", or "" when nothing known is close
std::string did_you_mean(const std::string& wanted, const std::vector<std::string>& known);

// "a, b or c"
std::string any_of(const std::vector<std::string>& words);

// "wanted a, b or c", with "did you mean b? " before it where that is near.
std::string wanted_of(const std::string& given, const std::vector<std::string>& words);

}  // namespace limbeck::recipe
