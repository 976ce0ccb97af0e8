// What a run is, as far as it decides its bits: what a checkpoint says of itself, what a resumed run must have in
// common with it, and what all ranks must have in common.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "trainer/recipe/settings.h"

namespace limbeck::session {

struct RunIdentity {
  // Recipe keys that decide what is computed, with their values; digests of data and models; versions of the program
  // and its libraries, processor and threads.
  std::map<std::string, std::string> recipe, data, build;
  // What keys of `recipe` mean where nobody sets them; no part of what is saved.
  std::map<std::string, std::string> defaults;
};

// `train`, `validation`: digests of the data sets in use.
RunIdentity identity_of(const recipe::Settings& settings, const std::string& train, const std::string& validation);

// WeightsError listing every difference in recipe or data that `allowed` does not name; those it names, and other
// builds, are lines of `notes`. A key that the saving program did not have yet is no difference at its default: what is
// new in a recipe does nothing unless it is asked for.
void require_same_run(const RunIdentity& saved, const RunIdentity& now, const std::vector<std::string>& allowed,
                      const std::string& where, std::vector<std::string>& notes);

}  // namespace limbeck::session
