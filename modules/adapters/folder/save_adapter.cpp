// The other half of peft_folder.h: writing.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "modules/adapters/folder/added_folder.h"
#include "modules/adapters/folder/npt_folder.h"
#include "modules/adapters/folder/peft_folder.h"
#include "modules/adapters/hosts/adapter_hosts.h"
#include "modules/adapters/peft/adapter_names.h"
#include "modules/errors.h"
#include "modules/io/atomic_file.h"

namespace limbeck::adapters {
namespace {

using nlohmann::json;
using Names = std::set<std::string>;
using Hosts = std::map<std::string, NamedHost>;

// "q_proj" of a module; "experts.down_proj" of a stack.
std::string short_name(const std::string& name, bool stack) {
  size_t dot = name.rfind('.');
  if (stack) dot = name.rfind('.', dot - 1);
  return name.substr(dot + 1);  // npos + 1 is 0
}

// The shortest list by which PEFT finds these and no others: ends of names where they mean the same.
json target_names(const Names& adapted, const Hosts& every, bool stacks) {
  Names parts;
  for (const std::string& name : adapted) parts.insert(short_name(name, stacks));
  const bool others = std::any_of(every.begin(), every.end(), [&](const auto& named) {
    const auto& [name, host] = named;
    return host.is_stack() == stacks && parts.contains(short_name(name, stacks)) && !adapted.contains(name);
  });
  return others ? json(adapted) : json(parts);
}

template <class Value>
json as_object(const ByPattern<Value>& patterns) {
  json object = json::object();
  for (const auto& [pattern, value] : patterns) object[pattern.text()] = value;
  return object;
}

std::string_view suffix_of(const std::string& parameter) {
  const auto part = std::find_if(kParts.begin(), kParts.end(), [&](const auto& p) { return p.parameter == parameter; });
  if (part == kParts.end()) throw std::logic_error("an adapter's parameter without a name in PEFT: " + parameter);
  return part->suffix;
}

struct Adapted {
  Names modules, stacks, inputs_scaled;
  bool transposed = false;
  io::NamedTensors tensors;
};

const precision::ContractModule* adapter_of(const NamedHost& named, const std::string& name) {
  return std::visit([&](const auto* host) -> const precision::ContractModule* { return host->adapter(name); },
                    named.host);
}

Adapted what_is_adapted(const Hosts& hosts, const std::string& name) {
  Adapted found;
  for (const auto& [module, host] : hosts) {
    if (adapter_of(host, name) == nullptr) continue;
    (host.is_stack() ? found.stacks : found.modules).insert(module);
    found.transposed = found.transposed || host.transposed;
  }
  for (const Names* names : {&found.modules, &found.stacks}) {
    for (const std::string& module : *names) {
      const std::string stored = names == &found.stacks ? stored_module(module, found.stacks) : module;
      for (const auto& entry : adapter_of(hosts.at(module), name)->named_parameters(/*recurse=*/false)) {
        found.tensors.emplace_back(fmt::format("{}{}{}", kPrefix, stored, suffix_of(entry.key())),
                                   entry.value().detach());
        if (entry.key() == "ia3_l" && entry.value().size(0) == 1) found.inputs_scaled.insert(module);
      }
    }
  }
  return found;
}

json config_json(const models::BuiltModel& built, const PeftConfig& config, const Adapted& adapted,
                 const Hosts& hosts) {
  const models::Architecture& a = built.config.architecture;
  const bool decoder = a.head == models::HeadKind::kLanguageModel && !a.masked_language_model();
  json file = {{"peft_type", config.kind == PeftKind::kIa3 ? "IA3" : "LORA"},
               {"task_type", decoder ? json("CAUSAL_LM") : json(nullptr)},
               {"base_model_name_or_path", built.config.folder.string()},
               {"inference_mode", true},
               {"fan_in_fan_out", adapted.transposed},
               {"target_modules", target_names(adapted.modules, hosts, false)}};
  if (config.kind == PeftKind::kIa3) {
    file["feedforward_modules"] = target_names(adapted.inputs_scaled, hosts, false);
    return file;
  }
  file["r"] = config.rank;
  file["lora_alpha"] = config.alpha;
  file["lora_dropout"] = config.dropout;
  file["bias"] = "none";
  file["use_dora"] = config.dora;
  file["use_rslora"] = config.rslora;
  file["rank_pattern"] = as_object(config.ranks);
  file["alpha_pattern"] = as_object(config.alphas);
  if (!adapted.stacks.empty()) file["target_parameters"] = target_names(adapted.stacks, hosts, true);
  return file;
}

}  // namespace

void save_adapter(const models::BuiltModel& built, const AdapterConfig& any, const std::string& name,
                  const std::filesystem::path& folder, const io::BeforeTensor& before) {
  if (std::holds_alternative<NptOptions>(any)) return save_npt(built, name, folder, before);
  if (const auto* added = std::get_if<AddedConfig>(&any)) return save_added(built, *added, name, folder, before);
  const PeftConfig& config = std::get<PeftConfig>(any);
  const auto hosts = adapter_hosts(built);
  const Adapted adapted = what_is_adapted(hosts, name);
  if (adapted.tensors.empty())
    throw UsageError(folder.string() + ": there is no adapter " + name + " that could be saved");
  io::write_safetensors(folder / kTensorFile, adapted.tensors, {{"format", "pt"}}, before);
  io::write_atomically(folder / kConfigFile, config_json(built, config, adapted, hosts).dump(2) + "\n");
}

}  // namespace limbeck::adapters
