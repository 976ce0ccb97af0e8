// adapter_config.json: what it says about each module, and what it asks for that is not supported.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "modules/io/json_file.h"

namespace limbeck::adapters {

enum class PeftKind { kLora, kIa3 };

class PeftConfig {
 public:
  explicit PeftConfig(const std::filesystem::path& path);

  PeftKind kind() const { return kind_; }
  bool dora() const { return dora_; }
  // By the module's name in the Hugging Face model, patterns first.
  int64_t rank(const std::string& module) const;
  double scale(const std::string& module) const;

 private:
  void refuse_unsupported(const io::JsonFile& file) const;

  PeftKind kind_ = PeftKind::kLora;
  bool dora_ = false, rslora_ = false;
  int64_t rank_ = 0;
  double alpha_ = 0;
  std::vector<std::pair<std::string, int64_t>> ranks_;
  std::vector<std::pair<std::string, double>> alphas_;
};

// PEFT's rule: the pattern, a regular expression, is the module's name or what follows a dot in it, to its end.
bool names_module(const std::string& pattern, const std::string& module);

}  // namespace limbeck::adapters
