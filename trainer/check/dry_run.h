// `limbeck check`: builds every model of a recipe on meta, runs the real training forward and backward, the evaluation
// forward and generation there, and reports the contract, the casts, the memory plan and every violation.
// No weights are read: a 70B recipe takes seconds on a laptop.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "modules/models/load_model.h"
#include "modules/projectors/logit_projector.h"

namespace limbeck::check {

struct ProjectorRequest {
  bool float32 = false;  // else the teacher's dtype
  std::string source = "default";
};

struct CheckRequest {
  std::optional<models::ModelRequest> teacher, student;
  std::optional<ProjectorRequest> projector;
  int64_t batch = 1, length = 512;
  std::string batch_source = "default";
  int64_t new_tokens = 64;
};

// One row of the contract's table; modules that differ only in their layer number share a row.
struct ModuleRow {
  std::string path, role, storage, input, compute, output, device, source;
  int64_t modules = 0, parameters = 0, bytes = 0;
};

struct CastRow {
  std::string place, from, to, phase;
  int64_t count = 0, bytes = 0;
};

struct MemoryRow {
  std::string what;
  int64_t bytes = 0;
};

struct CheckReport {
  std::vector<ModuleRow> modules;
  std::vector<CastRow> casts;
  std::vector<MemoryRow> memory;
  int64_t operators = 0;                    // that the recorder saw
  std::vector<std::string> stored_wrongly;  // parameters outside their contract
  std::vector<std::string> ran_wrongly;     // what running it on meta showed
  bool passed() const { return stored_wrongly.empty() && ran_wrongly.empty(); }
};

// What a check is about, once built.
struct Subjects {
  std::optional<models::BuiltModel> teacher, student;
  std::shared_ptr<precision::PrecisionPolicy> projector_policy;
  std::shared_ptr<projectors::LogitProjector> projector;

  std::vector<std::shared_ptr<precision::ContractModule>> contract_modules() const;
};

Subjects build_subjects(const CheckRequest& request);
// `tamper` is called between building and checking; the mutation tests use it.
CheckReport dry_run(const CheckRequest& request, const std::function<void(Subjects&)>& tamper = {});

}  // namespace limbeck::check
