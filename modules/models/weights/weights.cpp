#include "modules/models/weights/weights.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <utility>

#include "modules/errors.h"
#include "modules/io/finite_check.h"
#include "modules/models/weights/initialize.h"
#include "modules/models/weights/new_head.h"
#include "modules/nearest_name.h"
#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"

namespace limbeck::models {

namespace {

// Replaces what the {} of `rule.ours` match by the same numbers in `rule.theirs`; false when the path does not match.
bool apply(const NameRule& rule, const std::string& path, std::string& result) {
  std::vector<std::string> numbers;
  size_t at = 0, in_rule = 0;
  while (in_rule < rule.ours.size()) {
    if (rule.ours.compare(in_rule, 2, "{}") == 0) {
      const size_t end = path.find_first_not_of("0123456789", at);
      const size_t stop = end == std::string::npos ? path.size() : end;
      if (stop == at) return false;
      numbers.push_back(path.substr(at, stop - at));
      at = stop;
      in_rule += 2;
    } else if (at < path.size() && path[at] == rule.ours[in_rule]) {
      ++at, ++in_rule;
    } else {
      return false;
    }
  }
  if (at != path.size()) return false;
  result = rule.theirs;
  for (const std::string& number : numbers) result.replace(result.find("{}"), 2, number);
  return true;
}

bool is_head(const std::string& module) {
  return module == "lm_head" || module == "head_dense" || module == "head_norm" || module == "classifier" ||
         module == "pre_classifier";
}

// Old BERT files call the LayerNorm parameters gamma and beta.
std::string old_norm_spelling(const std::string& name) {
  for (const auto& [now, before] : {std::pair<std::string, std::string>{"LayerNorm.weight", "LayerNorm.gamma"},
                                    {"LayerNorm.bias", "LayerNorm.beta"}}) {
    if (name.ends_with(now)) return name.substr(0, name.size() - now.size()) + before;
  }
  return "";
}

struct Naming {
  const std::string& root;
  const Family& family;
  bool bare;  // saved from the model without its head
};

// `module`: its path below the root, as our names have it.
WeightBinding bind_one(const Naming& naming, const std::string& module, const std::string& leaf) {
  const Family& family = naming.family;
  const bool bare = naming.bare;
  WeightBinding binding;
  binding.path = naming.root + "." + module + "." + leaf;
  binding.leaf = leaf;
  std::string theirs = module;
  for (const NameRule& rule : family.names) {
    if (!apply(rule, module, theirs)) continue;
    binding.transposed = rule.transposed && leaf == "weight";
    break;
  }
  theirs += "." + leaf;
  const std::string ordinary = theirs;
  for (const NameRule& rule : family.names) {  // a parameter that is stored apart from its module
    if (rule.ours == module + "." + leaf) theirs = rule.theirs;
  }
  const bool prefixed = !is_head(module);
  binding.name = prefixed && !bare ? family.prefix + theirs : theirs;
  if (prefixed) binding.other_names.push_back(bare ? family.prefix + theirs : theirs);
  if (ordinary != theirs) binding.other_names.push_back(ordinary);
  for (const std::string& name : {binding.name, prefixed ? binding.other_names[0] : std::string()}) {
    const std::string old = old_norm_spelling(name);
    if (!old.empty()) binding.other_names.push_back(old);
  }
  return binding;
}

void bind_experts(std::vector<WeightBinding>& bindings, const Naming& naming, const std::string& module,
                  ContractModule& owner) {
  const auto& experts = dynamic_cast<const ExpertWeights&>(owner);
  const auto add = [&](const ExpertStack& stack, int64_t expert, const std::string& leaf, const at::Tensor& parameter) {
    const auto parts = ExpertStack::packed_names(stack.parameter_name());
    const int64_t rows = stack.sizes().out / static_cast<int64_t>(parts.size());
    int64_t row = 0;
    for (const std::string& part : parts) {
      WeightBinding binding = bind_one(naming, fmt::format("{}.{}.{}", module, expert, part), leaf);
      binding.owner = &owner;
      binding.parameter = parameter;
      binding.stack = part;
      binding.expert = expert;
      binding.row = row;
      binding.rows = parts.size() == 1 ? 0 : rows;
      bindings.push_back(std::move(binding));
      row += rows;
    }
  };
  for (int64_t expert = 0; expert < experts.count(); ++expert) {
    for (const auto& stack : experts.stacks()) {
      add(*stack, expert, "weight", stack->is_quantized() ? at::Tensor() : stack->weight());
      if (const auto bias = stack->bias()) add(*stack, expert, "bias", *bias);
    }
  }
}

}  // namespace

std::string stored_name(const Family& family, const std::string& module, const std::string& leaf) {
  return bind_one({module, family, /*bare=*/false}, module, leaf).name;
}

std::string stored_head_name(const Family& family) {
  std::string name = "lm_head";
  for (const NameRule& rule : family.names) {
    if (apply(rule, "lm_head", name)) break;
  }
  return name;
}

at::Tensor WeightBinding::part_of(const at::Tensor& whole) const {
  at::Tensor part = expert < 0 ? whole : whole.select(0, expert);
  if (rows > 0) part = part.narrow(0, row, rows);
  return transposed ? part.t() : part;
}

std::vector<int64_t> WeightBinding::shape() const {
  std::vector<int64_t> sizes = parameter.sizes().vec();
  if (expert >= 0) sizes.erase(sizes.begin());
  if (rows > 0) sizes.front() = rows;
  if (transposed) std::swap(sizes[0], sizes[1]);
  return sizes;
}

std::optional<precision::PackedWeight> WeightBinding::packed() const {
  if (!is_packed()) return std::nullopt;
  const precision::PackedWeight* own = owner->packed_weight(expert < 0 ? leaf : stack);
  if (own == nullptr) return std::nullopt;
  return expert < 0 ? *own : own->member(expert);
}

void WeightBinding::replace_packed(const precision::PackedWeight& weight) const {
  if (expert < 0) {
    owner->replace_packed_weight(leaf, weight);
  } else {
    owner->replace_packed_member(stack, expert, weight);
  }
}

at::Tensor WeightBinding::values() const {
  const auto codes = packed();
  if (!codes) return part_of(parameter.detach());
  const at::Tensor meant = codes->rows(0, codes->matrix().rows);
  return transposed ? meant.t() : meant;
}

std::vector<WeightBinding> bind_weights(const Transformer& model, const Family& family) {
  std::vector<WeightBinding> bindings;
  const std::string& root = model.path();
  const Naming naming{root, family, model.architecture().head == HeadKind::kNone};
  for (const auto& owner : precision::contract_modules(model)) {
    if (owner->role() == Role::kAdapter) continue;
    const std::string path = owner->path().substr(root.size() + 1);
    if (owner->role() == Role::kExpert) {
      bind_experts(bindings, {root, family, /*bare=*/false}, path, *owner);
      continue;
    }
    const auto bind = [&](const std::string& leaf, const at::Tensor& parameter) {
      bindings.push_back(bind_one(naming, path, leaf));
      bindings.back().owner = owner.get();
      bindings.back().parameter = parameter;
    };
    for (const auto& [leaf, weight] : owner->packed_weights()) bind(leaf, at::Tensor());
    for (const auto& entry : owner->named_parameters(/*recurse=*/false)) bind(entry.key(), entry.value());
  }
  return bindings;
}

namespace {

void check_shape(const WeightBinding& binding, const io::TensorEntry& entry, const io::WeightsFolder& weights) {
  std::vector<int64_t> wanted;
  if (const auto packed = binding.packed()) {
    wanted = {packed->matrix().rows, packed->matrix().columns};
    if (binding.transposed) std::swap(wanted[0], wanted[1]);
  } else {
    wanted = binding.part_of(binding.parameter).sizes().vec();
  }
  if (wanted == entry.shape) return;
  throw WeightsError(
      fmt::format("{}: tensor {} has shape [{}], wanted [{}] for {}: config.json and weights are not of "
                  "one model",
                  weights.file_of(entry.name).string(), entry.name, fmt::join(entry.shape, ","), fmt::join(wanted, ","),
                  binding.path));
}

void check_finite(const at::Tensor& tensor, const io::TensorEntry& entry, const io::WeightsFolder& weights) {
  const auto bad = io::first_nonfinite(tensor);
  if (!bad) return;
  throw WeightsError(
      fmt::format("{}: tensor {} is not finite at element {}: say --allow-nonfinite to load it all the "
                  "same",
                  weights.file_of(entry.name).string(), entry.name, *bad));
}

// A stack has one dtype of scales, that of its first expert.
void require_one_scale_dtype(const WeightBinding& binding, const precision::PackedWeight& stored,
                             const std::filesystem::path& file) {
  if (binding.expert <= 0) return;
  const at::ScalarType first = binding.packed()->matrix().scales(), own = stored.matrix().scales();
  if (first == own) return;
  throw WeightsError(fmt::format("{}: the scales of {} are {}, wanted {} as those of the experts before it",
                                 file.string(), binding.name, precision::dtype_name(own),
                                 precision::dtype_name(first)));
}

// Of a weight that the folder holds packed, by its layout: the codes as they are where they are to be kept so, and what
// they stand for where not.
void load_stored_codes(WeightBinding& binding, const io::WeightsFolder& weights, const LoadOptions& options) {
  const auto wanted = binding.packed();
  // The layout writes a transposed weight as its module multiplies it.
  const auto sizes = wanted ? std::vector<int64_t>{wanted->matrix().rows, wanted->matrix().columns}
                            : binding.part_of(binding.parameter).sizes().vec();
  const bool turned = !wanted && binding.transposed;
  if (sizes.size() != 2) {
    throw WeightsError(fmt::format("{}: tensor {} is packed, and {} is no matrix",
                                   weights.file_of(binding.name).string(), binding.name, binding.path));
  }
  const precision::PackedWeight stored = options.layout->read(
      weights, binding.name, binding.owner->role(), turned ? sizes[1] : sizes[0], turned ? sizes[0] : sizes[1]);
  if (wanted && stored.format() == wanted->format()) {
    require_one_scale_dtype(binding, stored,
                            weights.file_of(options.layout->tensors_of(weights, binding.name).front()));
    binding.replace_packed(stored.on(binding.owner->placement()));
    return;
  }
  const at::Tensor values = stored.rows(0, stored.matrix().rows);
  if (wanted) {
    binding.replace_packed(
        precision::PackedWeight(values, wanted->format(), binding.owner->placement(), options.scales));
    return;
  }
  at::Tensor target = binding.part_of(binding.parameter.detach());
  precision::cast_into(target, turned ? values.t() : values);
}

// Reads one tensor, keeps its codes and lets it go.
void load_packed(const WeightBinding& binding, const io::TensorEntry& entry, const io::WeightsFolder& weights,
                 const LoadOptions& options) {
  check_shape(binding, entry, weights);
  const precision::Precision& contract = binding.owner->precision();
  at::Tensor stored = weights.read(entry.name);
  if (!at::isFloatingType(entry.dtype) || io::first_nonfinite(stored)) {
    throw WeightsError(
        fmt::format("{}: tensor {} is {}{}, wanted finite floats to quantize to {} for {}: load it "
                    "without quantization, or keep this module out of it by a precision.rule",
                    weights.file_of(entry.name).string(), entry.name, precision::dtype_name(entry.dtype),
                    at::isFloatingType(entry.dtype) ? " with NaN or infinity" : "", precision::storage_name(contract),
                    binding.path));
  }
  if (entry.dtype == at::kDouble) {
    at::Tensor narrow = at::empty(stored.sizes(), stored.options().dtype(at::kFloat));
    precision::cast_into(narrow, stored);
    stored = narrow;
  }
  binding.replace_packed(precision::PackedWeight(binding.transposed ? stored.t() : stored, *contract.quantized,
                                                 binding.owner->placement(), options.scales));
}

// Reads one tensor into its parameter; straight into place where layout and dtype allow it.
bool load_one(WeightBinding& binding, const io::TensorEntry& entry, const io::WeightsFolder& weights,
              const LoadOptions& options) {
  check_shape(binding, entry, weights);
  at::Tensor target = binding.part_of(binding.parameter.detach());
  const bool same_dtype = entry.dtype == target.scalar_type();
  if (!same_dtype && (!options.cast || !at::isFloatingType(entry.dtype))) {
    throw WeightsError(
        fmt::format("{}: tensor {} is {}, wanted {} for {}: say the dtype of the run (--dtype, or "
                    "student.dtype in the recipe) to convert at loading",
                    weights.file_of(entry.name).string(), entry.name, precision::dtype_name(entry.dtype),
                    precision::dtype_name(target.scalar_type()), binding.path));
  }
  if (same_dtype && !binding.transposed && target.is_cpu() && target.is_contiguous()) {
    weights.read_into(entry.name, target);
  } else {
    precision::cast_into(target, weights.read(entry.name));
    // The reader has looked at the file's values; the conversion may have overflowed.
    if (!options.allow_nonfinite) check_finite(precision::move(target, c10::kCPU), entry, weights);
  }
  return !same_dtype;
}

// A tied head may be stored as well; it must then say the same as the embedding.
void check_tied_head(const Transformer& model, const io::WeightsFolder& weights, const std::string& embedding,
                     const std::string& head) {
  const auto* stored = weights.find(head);
  if (stored == nullptr || weights.find(embedding) == nullptr) return;
  if (weights.read(head).equal(weights.read(embedding))) return;
  throw WeightsError(
      fmt::format("{}: {} differs from {}, but config.json ties them (\"tie_word_embeddings\""
                  "): set it to false to use both, for {}",
                  weights.file_of(head).string(), head, embedding, model.path()));
}

std::vector<std::string> names_of(const WeightBinding& binding) {
  std::vector<std::string> names = binding.other_names;
  names.insert(names.begin(), binding.name);
  return names;
}

// Those of a new head, which are drawn here.
std::set<const ContractModule*> drawn_modules(const Transformer& model, const std::vector<WeightBinding>& bindings,
                                              const io::WeightsFolder& weights, const LoadOptions& options) {
  if (!options.new_head) return {};
  const auto stored = [&](const WeightBinding& binding) {
    const auto names = names_of(binding);
    return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      const bool packed = options.layout != nullptr && !options.layout->tensors_of(weights, name).empty();
      return packed || weights.find(name) != nullptr;
    });
  };
  const auto drawn = modules_to_draw(model, bindings, stored);
  for (const WeightBinding& binding : bindings) {
    if (drawn.contains(binding.owner)) initialize_module(*binding.owner, model, options.seed);
  }
  return drawn;
}

}  // namespace

LoadReport load_weights(Transformer& model, const Family& family, const io::WeightsFolder& weights,
                        const LoadOptions& options) {
  LoadReport report;
  report.bindings = bind_weights(model, family);
  std::set<std::string> unused;
  for (const std::string& name : weights.names()) unused.insert(name);
  const std::vector<std::string> known = weights.names();
  std::vector<std::string> missing;
  std::vector<const WeightBinding*> lacking;
  const auto drawn = drawn_modules(model, report.bindings, weights, options);
  std::string embedding;
  for (WeightBinding& binding : report.bindings) {
    if (drawn.contains(binding.owner)) {
      report.drawn.push_back(binding.name);
      for (const std::string& name : names_of(binding)) unused.erase(name);
      continue;
    }
    const auto codes_of = [&](const std::string& name) {
      return options.layout == nullptr ? std::vector<std::string>() : options.layout->tensors_of(weights, name);
    };
    const io::TensorEntry* entry = weights.find(binding.name);
    std::vector<std::string> codes = codes_of(binding.name);
    for (const std::string& other : binding.other_names) {
      if (entry != nullptr || !codes.empty()) break;
      entry = weights.find(other);
      codes = codes_of(other);
      if (entry != nullptr || !codes.empty()) binding.name = other;
    }
    const bool tokens = binding.path == model.path() + ".embed_tokens.weight";
    if (tokens && (entry != nullptr || !codes.empty())) embedding = binding.name;
    if (!codes.empty()) {
      for (const std::string& part : codes) unused.erase(part);
      load_stored_codes(binding, weights, options);
      ++report.packed_tensors;
      continue;
    }
    if (entry == nullptr) {
      missing.push_back(binding.name + offer_nearest(binding.name, known, 1, {.before = " (nearest: ", .behind = ")"}));
      lacking.push_back(&binding);
      continue;
    }
    unused.erase(binding.name);
    if (binding.is_packed()) {
      load_packed(binding, *entry, weights, options);
      ++report.packed_tensors;
      continue;
    }
    report.cast_tensors += load_one(binding, *entry, weights, options) ? 1 : 0;
  }
  if (!missing.empty()) {
    throw WeightsError(fmt::format("[{}] {} tensors are missing from the checkpoint: {}{}", model.path(),
                                   missing.size(), fmt::join(missing, ", "), advice_for_missing(model, lacking)));
  }
  if (model.architecture().tied) {
    const std::string head = stored_head_name(family) + ".weight";
    check_tied_head(model, weights, embedding, head);
    unused.erase(head);
    if (options.layout != nullptr) {
      for (const std::string& part : options.layout->repeated_for(weights, head, embedding)) unused.erase(part);
    }
  }
  std::vector<std::string> extra;
  for (const std::string& name : unused) {
    const bool known_extra = std::any_of(family.ignored.begin(), family.ignored.end(),
                                         [&](const std::string& pattern) { return precision::matches(pattern, name); });
    (known_extra ? report.ignored : extra).push_back(name);
  }
  if (!extra.empty()) {
    throw WeightsError(fmt::format("[{}] the checkpoint holds {} tensors that a {} model has no place for: {}",
                                   model.path(), extra.size(), family.name, fmt::join(extra, ", ")));
  }
  return report;
}

}  // namespace limbeck::models
