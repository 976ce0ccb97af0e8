#include "modules/models/weights/save_model.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>
#include <system_error>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/io/input_file.h"
#include "modules/io/temporary_folder.h"
#include "modules/precision/contract_modules.h"

namespace limbeck::models {

namespace {

namespace fs = std::filesystem;

// Everything else of a folder is about its weights.
constexpr const char* kOfTokenizer[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "vocab.txt",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "spiece.model",
                                        "chat_template.json",
                                        "chat_template.jinja"};
constexpr const char* kOfGeneration = "generation_config.json";

void copy_if_there(const fs::path& from, const fs::path& to, const char* name) {
  std::error_code absent;
  if (fs::is_regular_file(from / name, absent)) io::write_atomically(to / name, io::InputFile(from / name).whole());
}

struct StoredModel {
  std::vector<io::PromisedTensor> tensors;
  // That holds every plain value: the one of all tensors, or where rules mix them the one that loses nothing.
  at::ScalarType dtype = at::kFloat;
  nlohmann::json quantization;  // null: nothing is packed
};

StoredModel plain(const std::vector<WeightBinding>& bindings, const SaveOptions& options) {
  StoredModel stored;
  for (const WeightBinding& binding : bindings) {
    if (options.packed && binding.is_packed()) continue;
    if (options.source != nullptr) {
      stored.tensors.push_back({binding.name, binding.parameter.scalar_type(), binding.shape(),
                                [&binding, &source = *options.source] { return source.floats(binding); }});
    } else if (!binding.is_packed()) {
      // Ranks may hold a share of it alone until then.
      stored.tensors.push_back(
          {binding.name, binding.parameter.scalar_type(), binding.shape(), [&binding, before = options.before] {
             if (before) before(binding.parameter.detach());
             return binding.values();
           }});
    } else {
      for (auto& tensor : io::promised({{binding.name, binding.values()}}, binding.path, options.before))
        stored.tensors.push_back(std::move(tensor));
    }
    const at::ScalarType dtype = stored.tensors.back().dtype;
    stored.dtype = stored.tensors.size() == 1 ? dtype : c10::promoteTypes(stored.dtype, dtype);
  }
  return stored;
}

struct PackedFolder {
  std::shared_ptr<const quantization::WrittenLayout> layout;
  quantization::StoredModules modules;
};

// The head that has no weight of its own, as the checkpoint calls it, or "".
std::string tied_head_of(const BuiltModel& built) {
  const Architecture& a = built.model->architecture();
  return a.tied && a.head == HeadKind::kLanguageModel ? stored_head_name(*built.config.family) : "";
}

quantization::StoredWeight stored_weight(const BuiltModel& built, const WeightBinding& binding) {
  const bool tokens = binding.path == built.model->path() + ".embed_tokens.weight";
  return {binding.name, binding.owner->role() == Role::kEmbedding, tokens ? tied_head_of(built) : ""};
}

// The experts of a layer are in one format: their first matrix stands for all.
void add_experts(quantization::StoredModules& modules, const WeightBinding& binding) {
  if (binding.expert > 0 || binding.stack != "down_proj" || binding.leaf != "weight") return;
  const std::string begin = binding.name.substr(0, binding.name.rfind(fmt::format(".{}.", binding.expert)));
  if (const auto packed = binding.packed()) {
    modules.experts[begin] = packed->format();
  } else {
    modules.plain_experts.push_back(begin);
  }
}

quantization::StoredModules stored_modules(const BuiltModel& built, const std::vector<WeightBinding>& bindings) {
  quantization::StoredModules modules;
  for (const WeightBinding& binding : bindings) {
    if (binding.expert >= 0) {
      add_experts(modules, binding);
      continue;
    }
    const auto [name, embedding, tied_head] = stored_weight(built, binding);
    const std::string module = binding.name.substr(0, binding.name.rfind('.'));
    // What reads the folder goes by classes, and must leave a plain head alone even where it has no weight of its own.
    if (!tied_head.empty() && !binding.is_packed()) modules.plain.push_back(tied_head);
    if (binding.is_packed()) {
      (embedding ? modules.embeddings : modules.packed)[module] = binding.packed()->format();
      if (!tied_head.empty()) modules.tied_head = tied_head;
    } else if (binding.leaf == "weight" && dynamic_cast<const Linear*>(binding.owner) != nullptr) {
      modules.plain.push_back(module);
    }
  }
  return modules;
}

void refuse_heads_in_nf4(const std::vector<WeightBinding>& bindings) {
  for (const WeightBinding& binding : bindings) {
    const Role role = binding.owner->role();
    if (!binding.is_packed() || (role != Role::kHead && role != Role::kEmbedding)) continue;
    if (binding.packed()->format().kind != kernels::CodeKind::kNf4) continue;
    throw UsageError(fmt::format(
        "[{}] is in {}, and bitsandbytes, which alone has that, keeps heads and embeddings in floats: leave "
        "it out, or take int8 for it and int8 or int4 for the others (compressed-tensors)",
        binding.owner->path(), kernels::format_name(binding.packed()->format())));
  }
}

PackedFolder packed_folder(const BuiltModel& built, const std::vector<WeightBinding>& bindings) {
  refuse_heads_in_nf4(bindings);
  quantization::StoredModules modules = stored_modules(built, bindings);
  if (modules.packed.empty() && modules.embeddings.empty() && modules.experts.empty())
    throw UsageError(fmt::format("[{}] has no packed weight to save", built.model->path()));
  auto layout = quantization::layout_for(modules);
  if (layout == nullptr) {
    std::set<std::string> formats;
    for (const auto* kind : {&modules.packed, &modules.experts, &modules.embeddings}) {
      for (const auto& [module, format] : *kind) formats.insert(kernels::format_name(format));
    }
    throw UsageError(
        fmt::format("[{}] weights in {} have no folder in common that others read: nf4 is of bitsandbytes, int8 "
                    "to int2 are of compressed-tensors",
                    built.model->path(), fmt::join(formats, ", ")));
  }
  for (const WeightBinding& binding : bindings) {
    if (!binding.is_packed() || !binding.transposed || layout->has_transposed()) continue;
    throw UsageError(fmt::format(
        "[{}] {} is stored transposed, and {} has no words for such modules (Conv1D): keep it in floats, or take nf4",
        built.model->path(), binding.name, layout->name()));
  }
  return {std::move(layout), std::move(modules)};
}

// Of a weight whose codes come later: what stands for it is seen on codes of zeros, and asked for again one by one.
void promise_codes(const quantization::WrittenLayout& layout, const quantization::StoredWeight& weight,
                   const WeightBinding& binding, at::ScalarType activations, const WeightSource& source,
                   StoredModel& stored) {
  const precision::PackedWeight packed = *binding.packed();
  const kernels::QuantizedMatrix& wanted = packed.matrix();
  kernels::QuantizedMatrix zeros{wanted.format, wanted.rows, wanted.columns, {}};
  for (const auto& part : kernels::parts_of(wanted.format, wanted.rows, wanted.columns))
    zeros.parts.push_back(at::zeros(part.shape, part.dtype));
  const io::NamedTensors forms = layout.tensors(weight, precision::PackedWeight(std::move(zeros)), activations);
  for (size_t i = 0; i < forms.size(); ++i) {
    const auto& [name, form] = forms[i];
    const auto made = [&layout, &binding, &source, weight, activations, i] {
      return layout.tensors(weight, source.codes(binding), activations)[i].second;
    };
    const bool only_sizes = form.scalar_type() == at::kLong;
    stored.tensors.push_back({name, form.scalar_type(), form.sizes().vec(),
                              only_sizes ? std::function<at::Tensor()>([kept = form] { return kept; }) : made});
  }
}

// The codes as they are.
StoredModel packed(const BuiltModel& built, const std::vector<WeightBinding>& bindings, const PackedFolder& folder,
                   const SaveOptions& options) {
  StoredModel stored = plain(bindings, options);
  const at::ScalarType activations = built.policy->stream_dtype();
  for (const WeightBinding& binding : bindings) {
    if (!binding.is_packed()) continue;
    const quantization::StoredWeight weight = stored_weight(built, binding);
    if (options.source != nullptr) {
      promise_codes(*folder.layout, weight, binding, activations, *options.source, stored);
      continue;
    }
    const auto tensors = folder.layout->tensors(weight, *binding.packed(), activations);
    for (auto& tensor : io::promised(tensors, binding.path, options.before))
      stored.tensors.push_back(std::move(tensor));
  }
  stored.quantization = folder.layout->config(folder.modules, activations);
  return stored;
}

// As the folder says it, but for what was chosen when the model was built.
std::string config_text(const ModelConfig& built, const StoredModel& stored) {
  const at::ScalarType dtype = stored.dtype;
  nlohmann::json config = io::JsonFile(built.folder / "config.json").value();
  const bool int8 = built.architecture.resolvent.int8;
  if (int8 || config.contains(kBkActivations)) config[kBkActivations] = int8 ? "int8" : "float";
  config.erase("quantization_config");
  if (!stored.quantization.is_null()) config["quantization_config"] = stored.quantization;
  const std::string name = precision::dtype_name(dtype);
  if (config.contains("torch_dtype")) config["torch_dtype"] = name;
  if (config.contains("dtype") || !config.contains("torch_dtype")) config["dtype"] = name;
  return config.dump(2) + "\n";
}

}  // namespace

int64_t PackedPlan::bytes() const {
  int64_t sum = 0;
  for (const Tensor& tensor : tensors) sum += tensor.bytes;
  return sum;
}

PackedPlan plan_packed(const BuiltModel& built) {
  const auto bindings = bind_weights(*built.model, *built.config.family);
  const PackedFolder folder = packed_folder(built, bindings);
  const at::ScalarType activations = built.policy->stream_dtype();
  folder.layout->config(folder.modules, activations);  // has words for them together, or throws
  PackedPlan plan{{}, folder.layout->name()};
  for (const WeightBinding& binding : bindings) {
    if (const auto packed = binding.packed()) {
      const auto& matrix = packed->matrix();
      plan.tensors.push_back({binding.name, kernels::format_name(matrix.format), packed->values(),
                              folder.layout->bytes_of(stored_weight(built, binding), matrix.format, matrix.rows,
                                                      matrix.columns, activations)});
    } else {
      const at::Tensor part = binding.part_of(binding.parameter);
      plan.tensors.push_back({binding.name, precision::dtype_name(part.scalar_type()), part.numel(),
                              static_cast<int64_t>(part.numel() * part.element_size())});
    }
  }
  return plan;
}

namespace {

void refuse_shorter_last_group(const std::string& path, kernels::QuantizedFormat format, int64_t columns) {
  if (!format.has_groups() || columns % format.group() == 0) return;
  throw UsageError(
      fmt::format("{}: {} columns are no multiple of its groups of {}, which others refuse: keep its module in int8 "
                  "or in floats by a rule, or take a format of smaller groups",
                  path, columns, format.group()));
}

}  // namespace

void refuse_shorter_last_groups(const BuiltModel& built) {
  for (const auto& module : precision::contract_modules(*built.model)) {
    if (!module->precision().quantized) continue;
    const kernels::QuantizedFormat format = *module->precision().quantized;
    const auto* linear = dynamic_cast<const Linear*>(module.get());
    if (linear != nullptr && !linear->is_tied())
      refuse_shorter_last_group(linear->path(), format, linear->in_features());
    const auto* experts = dynamic_cast<const ExpertWeights*>(module.get());
    if (experts == nullptr) continue;
    for (const auto& stack : experts->stacks()) refuse_shorter_last_group(stack->path(), format, stack->sizes().in);
  }
}

namespace {

StoredModel stored_model(const BuiltModel& built, const std::vector<WeightBinding>& bindings,
                         const PackedFolder& layout, const SaveOptions& options) {
  return options.packed ? packed(built, bindings, layout, options) : plain(bindings, options);
}

}  // namespace

uint64_t bytes_of_saved(const BuiltModel& built, const SaveOptions& options) {
  const auto bindings = bind_weights(*built.model, *built.config.family);
  const PackedFolder layout = options.packed ? packed_folder(built, bindings) : PackedFolder{};
  return io::bytes_of_weights_folder(stored_model(built, bindings, layout, options).tensors, options.max_shard_bytes);
}

void save_model(const BuiltModel& built, const fs::path& folder, const SaveOptions& options) {
  const fs::path target = folder.has_filename() ? folder : folder.parent_path();  // "out/" is "out"
  std::error_code error;
  const bool there = fs::exists(target, error);
  if (there && (!fs::is_directory(target, error) || !fs::is_empty(target, error))) {
    throw UsageError(target.string() + ": is there already: name a folder that does not exist, or remove it");
  }
  const auto bindings = bind_weights(*built.model, *built.config.family);
  const PackedFolder layout = options.packed ? packed_folder(built, bindings) : PackedFolder{};
  const StoredModel stored = stored_model(built, bindings, layout, options);
  const fs::path& source = built.config.folder;
  io::TemporaryFolder temporary(target);
  io::write_weights_folder(temporary.path(), stored.tensors, options.max_shard_bytes);
  io::write_atomically(temporary.path() / "config.json", config_text(built.config, stored));
  copy_if_there(source, temporary.path(), kOfGeneration);
  for (const char* name : kOfTokenizer)
    copy_if_there(options.tokenizer.empty() ? source : options.tokenizer, temporary.path(), name);
  temporary.put_in_place();
}

}  // namespace limbeck::models
