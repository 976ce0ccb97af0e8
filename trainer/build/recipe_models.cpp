#include "trainer/build/recipe_models.h"

#include <fmt/format.h>

#include <map>
#include <utility>
#include <variant>

#include "modules/adapters/trained_codes/trained_codes.h"
#include "modules/errors.h"
#include "modules/models/weights/shared_weights.h"
#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"
#include "trainer/build/adapter_options.h"

namespace limbeck::build {

namespace {

std::string source_of(const recipe::Settings& settings, const std::string& key) {
  const recipe::Origin origin = settings.origin(key);
  return origin.flag.empty() ? origin.to_string() : "--" + origin.flag;
}

std::optional<models::ChosenResolvents> chosen_resolvents(const recipe::Settings& settings, const std::string& role) {
  const std::string key = role + ".bk_activations", &word = settings.text(key);
  if (word == "auto") return std::nullopt;
  return models::ChosenResolvents{word == "int8", fmt::format("{} = {} ({})", key, word, source_of(settings, key))};
}

std::vector<precision::Rule> rules_of(const recipe::Settings& settings) {
  std::vector<precision::Rule> rules;
  for (const recipe::Value& rule : settings.values("precision.rule")) {
    if (rule.text.starts_with("projector")) {
      throw UsageError(
          fmt::format("precision.rule \"{}\" ({}): a projector takes the dtype of the model it attaches to: "
                      "set projector.dtype = float32 for another, or remove the rule",
                      rule.text, rule.origin.to_string()));
    }
    rules.push_back(precision::parse_rule(rule.text, rule.origin.to_string()));
  }
  precision::require_roots(rules, {"student", "teacher"});
  return rules;
}

// Packed as it is, module by module.
precision::Packing packing_of(const models::BuiltModel& model) {
  std::map<std::string, kernels::QuantizedFormat> formats;
  const size_t root = model.model->path().size() + 1;
  for (const auto& module : precision::contract_modules(*model.model)) {
    const auto& format = module->precision().quantized;
    if (format) formats[module->path().substr(root)] = *format;
  }
  const auto format_of = [formats](const std::string& path, precision::Role) {
    const auto found = formats.find(path);
    return found == formats.end() ? std::nullopt : std::optional(found->second);
  };
  return {format_of, "as the student's"};
}

// The student's structure under another root.
models::BuiltModel structure_of(const models::BuiltModel& student, const recipe::Settings& settings, bool meta) {
  models::BuiltModel copy;
  copy.config = student.config;
  if (const auto resolvents = chosen_resolvents(settings, "teacher")) resolvents->put(copy.config, "teacher");
  const auto asked = settings.dtype("teacher.dtype");
  const at::ScalarType dtype = asked ? *asked : student.policy->stream_dtype();
  copy.policy = std::make_shared<precision::PrecisionPolicy>(
      dtype, student.policy->device(), asked ? source_of(settings, "teacher.dtype") : "student dtype",
      rules_of(settings), packing_of(student));
  const precision::Scope scope{copy.policy.get(), "teacher",
                               meta ? std::optional<c10::Device>(c10::kMeta) : std::nullopt, /*trainable=*/false};
  copy.model = std::make_shared<models::Transformer>(scope, copy.config.architecture);
  copy.policy->require_all_rules_used("teacher");
  return copy;
}

// Filled with the student's present weights.
models::BuiltModel copy_of(const models::BuiltModel& student, const recipe::Settings& settings, bool meta) {
  models::BuiltModel copy = structure_of(student, settings, meta);
  if (meta) return copy;
  const at::NoGradGuard no_gradient;
  const auto theirs = student.model->named_parameters();
  for (auto& entry : copy.model->named_parameters()) precision::cast_into(entry.value(), theirs[entry.key()]);
  const std::string unlike = models::share_packed_weights(copy, student);
  if (!unlike.empty()) {
    throw UsageError(fmt::format(
        "teacher.kind = {} takes packed weights as they are, and a precision.rule wants [{}] otherwise than "
        "the student has it: name the teacher's folder (teacher.model), or drop the rule",
        settings.text("teacher.kind"), unlike));
  }
  return copy;
}

// `borrower`, built on meta, with the student's weights where it can have them.
std::optional<models::BuiltModel> sharing(models::BuiltModel borrower, const models::BuiltModel& student) {
  if (!models::can_share_weights(borrower, student)) return std::nullopt;
  models::share_weights(borrower, student);
  return borrower;
}

// In floats, each module that `asked` packs seen through its format.
models::BuiltModel student_of_codes(const recipe::Settings& settings, const models::ModelRequest& asked, bool meta) {
  if (trains_adapter(settings)) {
    throw UsageError(fmt::format(
        "student.train_codes {} trains the weights themselves, and an adapter {} trains beside them: leave one of the "
        "two out (an adapter on frozen codes wants student.quantize alone)",
        settings.where("student.train_codes"),
        settings.where(settings.given("adapter.from") ? "adapter.from" : "adapter.kind")));
  }
  models::ModelRequest floats = asked, folder = asked;
  floats.packing = {};
  std::erase_if(floats.rules, [](const precision::Rule& rule) {
    return std::holds_alternative<kernels::QuantizedFormat>(rule.storage);
  });
  models::BuiltModel student = meta ? models::build_on_meta(floats) : models::load_model(floats);
  folder.dtype = student.policy->stream_dtype();
  adapters::see_through_formats(student, folder);
  return student;
}

// Beside an adapter nothing else trains: a head as it was drawn would stay so.
void refuse_untrained_head(const recipe::Settings& settings, const models::ModelRequest& request) {
  if (!request.new_head || !request.adapted) return;
  throw UsageError(fmt::format(
      "student.init = new_head {} draws a head that must be trained, and an adapter {} leaves all else as it is: train "
      "the head without the adapter first, then name that run's final/ as student.model",
      settings.where("student.init"),
      settings.where(settings.given("adapter.from") ? "adapter.from" : "adapter.kind")));
}

bool same_weights(const models::ModelRequest& teacher, const models::ModelRequest& student) {
  std::error_code absent;
  return !teacher.random_init && !student.random_init && teacher.device == student.device &&
         std::filesystem::equivalent(teacher.folder, student.folder, absent);
}

}  // namespace

std::optional<models::ModelRequest> model_request(const recipe::Settings& settings, const std::string& role) {
  if (!settings.given(role + ".model")) return std::nullopt;
  models::ModelRequest request;
  request.folder = settings.path_here(role + ".model");
  request.root = role;
  request.dtype = settings.dtype(role + ".dtype");
  request.dtype_source = source_of(settings, role + ".dtype");
  request.device = settings.device_of(role);
  request.adapted = role == "student" && trains_adapter(settings);
  request.trainable = role == "student" && !request.adapted;
  request.for_training = role == "student";
  const std::string& format = settings.text(role + ".quantize");
  if (format != "none") {
    request.packing = precision::pack_all(kernels::format_named(format), source_of(settings, role + ".quantize"));
  }
  request.resolvents = chosen_resolvents(settings, role);
  request.random_init = settings.text(role + ".init") == "random";
  request.new_head = settings.text(role + ".init") == "new_head";
  request.seed = settings.integer("seed");
  request.rules = rules_of(settings);
  return request;
}

models::BuiltModel build_student(const recipe::Settings& settings, bool meta) {
  settings.required_path("student.model");
  const models::ModelRequest request = *model_request(settings, "student");
  refuse_untrained_head(settings, request);
  if (settings.enabled("student.train_codes")) return student_of_codes(settings, request, meta);
  return meta ? models::build_on_meta(request) : models::load_model(request);
}

BuiltTeacher build_teacher(const recipe::Settings& settings, const models::BuiltModel& student, bool meta) {
  const std::string& kind = settings.text("teacher.kind");
  if (kind == "none") return {};
  const bool frozen_student = trains_adapter(settings);
  if (kind != "model") {
    if (settings.given("teacher.model")) {
      throw UsageError(
          fmt::format("teacher.kind = {} {} and teacher.model {} exclude each other: the teacher is made "
                      "from the student; remove one of the two",
                      kind, settings.where("teacher.kind"), settings.where("teacher.model")));
    }
    if (settings.text("teacher.quantize") != "none") {
      throw UsageError(
          fmt::format("teacher.kind = {} {} makes the teacher from the student, and stores it as the student "
                      "is: remove teacher.quantize {}",
                      kind, settings.where("teacher.kind"), settings.where("teacher.quantize")));
    }
    auto shared = frozen_student ? sharing(structure_of(student, settings, /*meta=*/true), student) : std::nullopt;
    if (shared) return {std::move(shared), /*shares_weights=*/true};
    return {copy_of(student, settings, meta)};
  }
  const auto request = model_request(settings, "teacher");
  if (!request) return {};
  if (frozen_student && same_weights(*request, *model_request(settings, "student"))) {
    auto shared = sharing(models::build_on_meta(*request), student);
    if (shared) return {std::move(shared), /*shares_weights=*/true};
  }
  return {meta ? models::build_on_meta(*request) : models::load_model(*request)};
}

}  // namespace limbeck::build
