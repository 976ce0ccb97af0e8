#include "trainer/check/dry_run.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cctype>
#include <map>

#include "modules/errors.h"
#include "modules/models/token_loss.h"
#include "modules/precision/casts.h"
#include "modules/precision/meta_memory.h"
#include "modules/precision/recorder.h"

namespace limbeck::check {

namespace {

using models::HeadKind;
using models::Transformer;
using precision::MetaMemory;

// The first line of an ATen error says what happened; the rest is its stack.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Runs one phase; a failure becomes a violation that names the module whose code was running.
template <typename Phase>
void run_phase(const std::string& name, CheckReport& report, Phase&& phase) {
  precision::CastLog casts;
  precision::OperatorRecorder recorder;
  try {
    phase();
  } catch (const Error& error) {
    report.ran_wrongly.push_back(error.what());
  } catch (const c10::Error& error) {
    report.ran_wrongly.push_back(
        fmt::format("[{}] {} ({})", precision::failed_module(), first_line(error.what_without_backtrace()), name));
  }
  report.operators += recorder.operator_count();
  for (const std::string& violation : recorder.violations()) report.ran_wrongly.push_back(violation);
  for (const auto& [key, cost] : casts.casts()) {
    report.casts.push_back(
        {key.place, precision::dtype_name(key.from), precision::dtype_name(key.to), name, cost.count, cost.bytes});
  }
}

// "teacher.layers.12.mlp.up_proj" -> "teacher.layers.*.mlp.up_proj"
std::string without_layer(const std::string& path) {
  const std::string marker = ".layers.";
  const size_t at = path.find(marker);
  if (at == std::string::npos) return path;
  const size_t begin = at + marker.size(), end = path.find_first_not_of("0123456789", begin);
  return path.substr(0, begin) + "*" + (end == std::string::npos ? "" : path.substr(end));
}

std::vector<ModuleRow> module_table(const Subjects& subjects) {
  std::vector<ModuleRow> rows;
  std::map<std::string, size_t> known;
  for (const auto& module : subjects.contract_modules()) {
    const precision::Precision& p = module->precision();
    ModuleRow row{without_layer(module->path()),
                  precision::role_name(module->role()),
                  precision::dtype_name(p.storage),
                  precision::dtype_name(p.input),
                  precision::dtype_name(p.compute),
                  precision::dtype_name(p.output),
                  p.device.str(),
                  p.source};
    row.modules = 1;
    for (const at::Tensor& parameter : module->parameters(/*recurse=*/false)) {
      row.parameters += parameter.numel();
      row.bytes += parameter.numel() * static_cast<int64_t>(parameter.element_size());
    }
    if (row.role == "embedding") row.input = "ids";
    const std::string key = fmt::format("{}|{}|{}|{}|{}|{}|{}", row.path, row.storage, row.input, row.compute,
                                        row.output, row.device, row.source);
    const auto [where, fresh] = known.emplace(key, rows.size());
    if (fresh) {
      rows.push_back(row);
    } else {
      ModuleRow& sum = rows[where->second];
      sum.modules += 1;
      sum.parameters += row.parameters;
      sum.bytes += row.bytes;
    }
  }
  return rows;
}

// Masters and moments of AdamW, as the optimizer will hold them: float32, masters only beside half weights.
struct OptimizerState {
  std::vector<at::Tensor> masters, moments;
};

OptimizerState optimizer_state(const Subjects& subjects) {
  OptimizerState state;
  for (const auto& module : subjects.contract_modules()) {
    for (const at::Tensor& parameter : module->parameters(/*recurse=*/false)) {
      if (!parameter.requires_grad()) continue;
      const auto wide = parameter.options().dtype(parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
      if (parameter.element_size() < 4) state.masters.push_back(at::empty(parameter.sizes(), wide));
      for (int i = 0; i < 2; ++i) state.moments.push_back(at::empty(parameter.sizes(), wide));
    }
  }
  return state;
}

struct Batch {
  at::Tensor ids, labels, classes;
};

Batch meta_batch(const CheckRequest& request) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(at::kMeta);
  const at::Tensor ids = at::empty({request.batch, request.length}, options);
  return {ids, at::empty_like(ids), at::empty({request.batch}, options)};
}

// The loss of one model on the batch: next tokens for decoders, the class for classifiers.
at::Tensor model_loss(const Transformer& model, const at::Tensor& last, const Batch& batch) {
  const std::string place = model.path() + ".loss (logits)";
  switch (model.architecture().head) {
    case HeadKind::kLanguageModel:
      return models::next_token_loss(model.head(last), batch.labels, place).sum();
    case HeadKind::kBertClassifier:
    case HeadKind::kDistilBertClassifier:
      return models::class_loss(model.head(last), batch.classes, place).sum();
    case HeadKind::kNone:
      break;
  }
  return last.sum();
}

models::ModelInput model_input(const Batch& batch) {
  models::ModelInput input;
  input.ids = batch.ids;
  return input;
}

// The student's loss, and that of the projected teacher read by the student's head. Training and evaluation share it.
at::Tensor forward_loss(const Subjects& subjects, const Batch& batch) {
  at::Tensor hidden;
  if (subjects.teacher) {
    const at::NoGradGuard no_gradient;
    hidden = subjects.teacher->model->encode(model_input(batch)).last;
  }
  at::Tensor loss;
  if (subjects.projector) {
    const Transformer& student = *subjects.student->model;
    loss = models::next_token_loss(student.head(subjects.projector->forward(hidden)), batch.labels,
                                   "projector.logit.loss (logits)")
               .sum();
  }
  if (subjects.student) {
    const Transformer& student = *subjects.student->model;
    const at::Tensor own = model_loss(student, student.encode(model_input(batch)).last, batch);
    loss = loss.defined() ? loss + own : own;
  }
  return loss;
}

void run_training(const Subjects& subjects, const Batch& batch, CheckReport& report) {
  const int64_t before = MetaMemory::live_bytes();
  int64_t kept = 0;
  run_phase("train", report, [&] {
    const at::Tensor loss = forward_loss(subjects, batch);
    kept = MetaMemory::live_bytes() - before;
    if (loss.defined() && loss.requires_grad()) loss.backward();
  });
  report.memory.push_back({"activations kept for backward", kept});
  int64_t gradients = 0;
  for (const auto& module : subjects.contract_modules()) {
    for (const at::Tensor& parameter : module->parameters(/*recurse=*/false)) {
      if (parameter.grad().defined()) gradients += static_cast<int64_t>(parameter.grad().nbytes());
      parameter.mutable_grad().reset();
    }
  }
  report.memory.push_back({"gradients", gradients});
}

void run_generation(const Transformer& model, const CheckRequest& request, CheckReport& report) {
  const int64_t room = request.length + request.new_tokens;
  const int64_t length = model.architecture().learned_positions > 0
                             ? std::min(request.length, model.architecture().learned_positions - 1)
                             : request.length;
  run_phase("generate", report, [&] {
    const c10::InferenceMode inference;
    models::KeyValueCache cache(model.architecture().layers, request.batch, room);
    const auto options = at::TensorOptions().dtype(at::kLong).device(at::kMeta);
    for (const int64_t tokens : {length, int64_t{1}}) {
      models::ModelInput input;
      input.ids = at::empty({request.batch, tokens}, options);
      input.attention_mask = at::empty({request.batch, tokens}, options);
      input.cache = &cache;
      const at::Tensor last = model.encode(input).last.narrow(1, tokens - 1, 1);
      const at::Tensor next = model.head(last).argmax(-1);
      (void)next;
    }
  });
}

}  // namespace

std::vector<std::shared_ptr<precision::ContractModule>> Subjects::contract_modules() const {
  std::vector<std::shared_ptr<precision::ContractModule>> found;
  auto collect = [&](const torch::nn::Module& root) {
    for (const auto& module : root.modules(/*include_self=*/false)) {
      if (auto owner = std::dynamic_pointer_cast<precision::ContractModule>(module)) found.push_back(owner);
    }
  };
  if (teacher) collect(*teacher->model);
  if (student) collect(*student->model);
  if (projector) collect(*projector);
  return found;
}

Subjects build_subjects(const CheckRequest& request) {
  Subjects subjects;
  if (request.teacher) subjects.teacher = models::build_on_meta(*request.teacher);
  if (request.student) subjects.student = models::build_on_meta(*request.student);
  if (!request.projector) return subjects;
  if (!subjects.teacher || !subjects.student) {
    throw UsageError("projector.kind = logit joins a teacher to a student: set teacher.model and student.model too");
  }
  const auto& teacher = *subjects.teacher->policy;
  const bool float32 = request.projector->float32;
  subjects.projector_policy =
      std::make_shared<precision::PrecisionPolicy>(float32 ? at::kFloat : teacher.stream_dtype(), teacher.device(),
                                                   float32 ? request.projector->source : "teacher dtype");
  const precision::Scope scope{subjects.projector_policy.get(), "projector.logit", c10::Device(c10::kMeta), true};
  subjects.projector = std::make_shared<projectors::LogitProjector>(
      scope, *subjects.teacher->model, *subjects.student->model, teacher, *subjects.student->policy);
  return subjects;
}

CheckReport dry_run(const CheckRequest& request, const std::function<void(Subjects&)>& tamper) {
  const MetaMemory memory;
  CheckReport report;
  Subjects subjects = build_subjects(request);
  if (tamper) tamper(subjects);
  for (const auto& module : subjects.contract_modules()) {
    for (const std::string& line : module->violations()) report.stored_wrongly.push_back(line);
  }
  report.modules = module_table(subjects);

  auto weights = [&](const char* name, const torch::nn::Module& module) {
    int64_t bytes = 0;
    for (const at::Tensor& parameter : module.parameters()) bytes += static_cast<int64_t>(parameter.nbytes());
    report.memory.push_back({name, bytes});
  };
  if (subjects.teacher) weights("teacher weights", *subjects.teacher->model);
  if (subjects.student) weights("student weights", *subjects.student->model);
  if (subjects.projector) weights("projector weights", *subjects.projector);

  const Batch batch = meta_batch(request);
  if (subjects.student) {
    const OptimizerState state = optimizer_state(subjects);
    auto bytes = [](const std::vector<at::Tensor>& tensors) {
      int64_t sum = 0;
      for (const at::Tensor& tensor : tensors) sum += static_cast<int64_t>(tensor.nbytes());
      return sum;
    };
    report.memory.push_back({"float32 masters (AdamW)", bytes(state.masters)});
    report.memory.push_back({"moments (AdamW)", bytes(state.moments)});
    MetaMemory::reset_peak();
    run_training(subjects, batch, report);
    report.memory.push_back({"peak of a training step, all of the above", MetaMemory::peak_bytes()});
  }
  MetaMemory::reset_peak();
  run_phase("evaluate", report, [&] {
    const at::NoGradGuard no_gradient;
    forward_loss(subjects, batch);
  });
  report.memory.push_back({"peak of an evaluation", MetaMemory::peak_bytes()});
  const auto& generating = subjects.student ? subjects.student : subjects.teacher;
  if (generating && generating->model->architecture().head == HeadKind::kLanguageModel) {
    MetaMemory::reset_peak();
    run_generation(*generating->model, request, report);
    report.memory.push_back({"peak of generation with its cache", MetaMemory::peak_bytes()});
  }
  return report;
}

}  // namespace limbeck::check
