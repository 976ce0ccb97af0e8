#include "trainer/objective/recipe_models.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "trainer/objective/head_terms.h"

namespace limbeck::objective {

namespace {

std::string source_of(const recipe::Settings& settings, const std::string& key) {
  return settings.given(key) ? settings.origin(key).to_string() : "default";
}

// Quantized weights are frozen: the copy has the student's own.
void share_quantized(const models::BuiltModel& student, models::BuiltModel& copy) {
  const auto from = student.model->modules(), to = copy.model->modules();
  for (size_t i = 0; i < to.size(); ++i) {
    auto* own = dynamic_cast<models::Linear*>(to[i].get());
    if (own == nullptr || !own->is_quantized()) continue;
    const auto& theirs = dynamic_cast<const models::Linear&>(*from[i]);
    if (!theirs.is_quantized()) {
      throw UsageError(
          fmt::format("teacher.kind = self or ema with a precision.rule that keeps [{}] out of "
                      "student.quantize: name the teacher's folder (teacher.model), or drop the rule",
                      theirs.path()));
    }
    own->set_quantized_weight(theirs.quantized_weight());
  }
}

// The student's structure under another root, filled with its present weights.
models::BuiltModel copy_of(const models::BuiltModel& student, const recipe::Settings& settings, bool meta) {
  models::BuiltModel copy;
  copy.config = student.config;
  const auto asked = settings.dtype("teacher.dtype");
  const at::ScalarType dtype = asked ? *asked : student.policy->stream_dtype();
  copy.policy = std::make_shared<precision::PrecisionPolicy>(
      dtype, student.policy->device(), asked ? source_of(settings, "teacher.dtype") : "student dtype",
      std::vector<precision::Rule>{}, student.policy->quantization());
  const precision::Scope scope{copy.policy.get(), "teacher",
                               meta ? std::optional<c10::Device>(c10::kMeta) : std::nullopt, /*trainable=*/false};
  copy.model = std::make_shared<models::Transformer>(scope, student.config.architecture);
  if (meta) return copy;
  const at::NoGradGuard no_gradient;
  const auto theirs = student.model->named_parameters();
  for (auto& entry : copy.model->named_parameters()) precision::cast_into(entry.value(), theirs[entry.key()]);
  share_quantized(student, copy);
  return copy;
}

}  // namespace

std::optional<models::ModelRequest> model_request(const recipe::Settings& settings, const std::string& role) {
  if (!settings.given(role + ".model")) return std::nullopt;
  models::ModelRequest request;
  request.folder = settings.path(role + ".model");
  request.root = role;
  request.dtype = settings.dtype(role + ".dtype");
  request.dtype_source = source_of(settings, role + ".dtype");
  const auto device = settings.device(role + ".device");
  request.device = device ? *device : *settings.device("device");
  request.trainable = role == "student";
  request.for_training = role == "student";
  const std::string& format = settings.text(role + ".quantize");
  if (format != "none") {
    request.quantize = {kernels::format_named(format), source_of(settings, role + ".quantize")};
  }
  request.random_init = settings.text(role + ".init") == "random";
  request.seed = settings.integer("seed");
  for (const recipe::Value& rule : settings.values("precision.rule")) {
    request.rules.push_back(precision::parse_rule(rule.text, rule.origin.to_string()));
  }
  return request;
}

models::BuiltModel build_student(const recipe::Settings& settings, bool meta) {
  settings.required_path("student.model");
  const models::ModelRequest request = *model_request(settings, "student");
  return meta ? models::build_on_meta(request) : models::load_model(request);
}

std::optional<models::BuiltModel> build_teacher(const recipe::Settings& settings, const models::BuiltModel& student,
                                                bool meta) {
  const std::string& kind = settings.text("teacher.kind");
  if (kind != "model") {
    if (settings.given("teacher.model")) {
      throw UsageError(
          fmt::format("teacher.kind = {} {} and teacher.model {} exclude each other: the teacher is made "
                      "from the student; remove one of the two",
                      kind, settings.where("teacher.kind"), settings.where("teacher.model")));
    }
    if (settings.given("teacher.quantize")) {
      throw UsageError(
          fmt::format("teacher.kind = {} {} makes the teacher from the student, and stores it as the student "
                      "is: remove teacher.quantize {}",
                      kind, settings.where("teacher.kind"), settings.where("teacher.quantize")));
    }
    return copy_of(student, settings, meta);
  }
  const auto request = model_request(settings, "teacher");
  if (!request) return std::nullopt;
  return meta ? models::build_on_meta(*request) : models::load_model(*request);
}

MovingAverage::MovingAverage(models::BuiltModel& teacher, const models::BuiltModel& student, double decay)
    : decay_(decay) {
  const at::NoGradGuard no_gradient;
  const auto theirs = student.model->named_parameters();
  for (auto& entry : teacher.model->named_parameters()) {
    const at::Tensor& own = entry.value();
    const at::ScalarType wide = wide_type(own.scalar_type());
    at::Tensor average = own;
    if (own.scalar_type() != wide) {
      average = at::empty(own.sizes(), own.options().dtype(wide));
      precision::cast_into(average, theirs[entry.key()]);
    }
    entries_.push_back({"teacher_ema." + entry.key(), own, theirs[entry.key()], average, average._version()});
  }
}

void MovingAverage::follow() {
  const at::NoGradGuard no_gradient;
  for (Entry& entry : entries_) {
    at::Tensor now = entry.student.detach();
    if (now.scalar_type() != entry.average.scalar_type()) {
      now = at::empty(entry.average.sizes(), entry.average.options());
      precision::cast_into(now, entry.student);
    }
    entry.average.lerp_(now, 1.0 - decay_);
  }
}

void MovingAverage::refresh() {
  const at::NoGradGuard no_gradient;
  for (Entry& entry : entries_) {
    if (entry.average._version() == entry.version) continue;
    entry.version = entry.average._version();
    if (!entry.average.is_same(entry.teacher)) precision::cast_into(entry.teacher, entry.average);
  }
}

std::vector<std::pair<std::string, at::Tensor>> MovingAverage::tensors() const {
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (const Entry& entry : entries_) found.emplace_back(entry.name, entry.average);
  return found;
}

}  // namespace limbeck::objective
