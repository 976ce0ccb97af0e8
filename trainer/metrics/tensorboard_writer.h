// Scalars as a TensorBoard event file: records with masked CRC-32C around Event messages. A run continued after step N
// tells TensorBoard to forget what an earlier file says of later steps.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "trainer/metrics/append_file.h"

namespace limbeck::metrics {

class TensorboardWriter {
 public:
  // A new file in the folder; never one that is there already. resume_step 0: a run from its beginning.
  TensorboardWriter(const std::filesystem::path& folder, int64_t resume_step);

  // One event with all values, written at once. Not-finite values are kept: TensorBoard shows where they are.
  void write(int64_t step, const std::vector<std::pair<std::string, double>>& values);
  const std::filesystem::path& path() const { return file_.path(); }
  const std::string& fault() const { return file_.fault(); }

 private:
  void write_record(const std::string& event);

  AppendFile file_;
};

}  // namespace limbeck::metrics
