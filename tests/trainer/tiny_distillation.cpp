#include "tests/trainer/tiny_distillation.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "modules/io/safetensors.h"
#include "tests/support/recipe_settings.h"
#include "tests/support/tiny_models.h"
#include "trainer/build/recipe_pair.h"
#include "trainer/recipe/recipe_options.h"

namespace limbeck::test {

namespace {

at::Generator generator_of(uint64_t seed) { return at::make_generator<at::CPUGeneratorImpl>(seed); }

}  // namespace

std::filesystem::path weighted_model(const std::string& family, const std::string& changes, uint64_t seed) {
  const std::filesystem::path folder = tiny_model(family);
  nlohmann::json config = nlohmann::json::parse(std::ifstream(folder / "config.json"));
  config.update(nlohmann::json::parse(changes));
  std::ofstream(folder / "config.json") << config.dump();
  models::ModelRequest request;
  request.folder = folder;
  request.dtype = at::kFloat;
  const models::BuiltModel built = models::build_on_meta(request);
  const at::Generator generator = generator_of(seed);
  io::NamedTensors tensors;
  for (const auto& binding : models::bind_weights(*built.model, *built.config.family)) {
    const at::Tensor part = binding.part_of(binding.parameter);
    at::Tensor value = at::empty(part.sizes(), at::kFloat).normal_(0, part.dim() > 1 ? 0.25 : 0.05, generator);
    if (binding.path.ends_with("norm.weight")) value += 1;
    tensors.emplace_back(binding.name, value);
  }
  io::write_safetensors(folder / "model.safetensors", tensors);
  return folder;
}

recipe::Settings settings_of(const std::string& ini) {
  recipe::OptionTable table;
  recipe::declare_recipe_options(table);
  table.add({.name = "device", .kind = recipe::OptionKind::kDevice, .fallback = "cpu", .help = "x"});
  // A recipe must set something; the tests' may ask for the defaults alone.
  table.add({.name = "threads_of_the_test", .kind = recipe::OptionKind::kInteger, .fallback = "1", .help = "x"});
  const recipe::RecipeFile file("threads_of_the_test = 1\n" + ini, "/r/my.ini");
  return recipe::Settings(table, &file, {});
}

data::TokenStream random_stream(const BatchShape& shape, uint64_t seed) {
  data::TokenStream stream;
  stream.ids = at::empty({shape.rows, shape.length}, at::kLong).random_(3, shape.vocabulary, generator_of(seed));
  stream.labels = stream.ids.clone();
  stream.labels.select(1, 0).fill_(-100);
  stream.labels.select(1, 1).fill_(-100);
  if (shape.packed) {
    const int64_t first = shape.length / 3;
    stream.document_ids = at::ones_like(stream.ids);
    stream.document_ids->narrow(1, first, shape.length - first).fill_(2);
    stream.document_ids->select(1, shape.length - 1).fill_(0);
    stream.labels.select(1, first).fill_(-100);
    stream.labels.select(1, shape.length - 1).fill_(-100);
  } else {
    stream.attention_mask = at::ones_like(stream.ids);
    stream.attention_mask->select(0, shape.rows - 1).narrow(0, shape.length - 3, 3).fill_(0);
    stream.labels.select(0, shape.rows - 1).narrow(0, shape.length - 3, 3).fill_(-100);
  }
  return stream;
}

data::Batch random_batch(const BatchShape& shape, uint64_t seed) {
  data::Batch batch;
  batch.student = random_stream(shape, seed);
  return batch;
}

namespace {

template <class Change>
data::TokenStream changed(const data::TokenStream& stream, Change&& change) {
  data::TokenStream result;
  result.ids = change(stream.ids);
  if (stream.labels.defined()) result.labels = change(stream.labels);
  if (stream.attention_mask) result.attention_mask = change(*stream.attention_mask);
  if (stream.document_ids) result.document_ids = change(*stream.document_ids);
  return result;
}

template <class Change>
data::Batch changed(const data::Batch& batch, Change&& change) {
  data::Batch result;
  result.student = changed(batch.student, change);
  if (batch.teacher) result.teacher = changed(*batch.teacher, change);
  if (batch.teacher_position.defined()) result.teacher_position = change(batch.teacher_position);
  if (batch.classes.defined()) result.classes = change(batch.classes);
  return result;
}

}  // namespace

data::Batch on_meta(const data::Batch& batch) { return data::place(batch, at::kMeta); }

data::Batch rows_of(const data::Batch& batch, int64_t begin, int64_t count) {
  return changed(batch, [&](const at::Tensor& x) { return x.narrow(0, begin, count).contiguous(); });
}

RecipePair::RecipePair(const std::string& ini, objective::Materialize how)
    : settings(settings_of(ini)),
      pair(build::build_pair(settings, how)),
      options(objective::read_options(settings, builtin_registries(), *pair)),
      agreement(settings, options, *pair) {}

objective::Distillation distillation_of(const std::string& ini, objective::Materialize how) {
  RecipePair built(ini, how);
  return objective::Distillation(built.options, built.pair, built.agreement.vocabulary({}));
}

}  // namespace limbeck::test
