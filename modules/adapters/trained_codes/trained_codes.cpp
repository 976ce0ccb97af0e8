#include "modules/adapters/trained_codes/trained_codes.h"

#include <fmt/format.h>

#include <map>
#include <utility>

#include "modules/adapters/new_adapter.h"
#include "modules/adapters/trained_codes/seen_modules.h"
#include "modules/errors.h"
#include "modules/precision/contract_modules.h"

namespace limbeck::adapters {
namespace {

using models::Embedding;
using models::Linear;
using precision::ContractModule;

template <class Host>
const FolderCodes* seen_on(const ContractModule& module) {
  const auto* host = dynamic_cast<const Host*>(&module);
  return host == nullptr ? nullptr : dynamic_cast<const FolderCodes*>(host->adapter(kCodes));
}

const FolderCodes* seen_of(const ContractModule& module) {
  const FolderCodes* of_linear = seen_on<Linear>(module);
  return of_linear != nullptr ? of_linear : seen_on<Embedding>(module);
}

// Experts stay floats, unless a rule asks for more than there is.
precision::Packing without_experts(precision::Packing packing) {
  if (!packing.format_of) return packing;
  const auto format_of = [all = packing.format_of](const std::string& path, precision::Role role) {
    return role == precision::Role::kExpert ? std::nullopt : all(path, role);
  };
  return {format_of, packing.source};
}

[[noreturn]] void refuse_stack(const ContractModule& stored) {
  throw UsageError(fmt::format(
      "[{}] holds experts, which are to be in {} ({}), and codes are trained of linear modules and embeddings alone: "
      "leave them in floats, and store them in few bits afterwards (limbeck quantize --rule)",
      stored.path(), precision::storage_name(stored.precision()), stored.precision().source));
}

template <class Host>
void require_one_dtype(const Host& host, const Host& stored) {
  if (host.precision().storage == stored.precision().storage) return;
  throw UsageError(fmt::format(
      "[{}] trains in {} ({}) and is stored in {} beside {} activations ({}): drop the rule about its dtype",
      host.path(), precision::dtype_name(host.precision().storage), host.precision().source,
      precision::storage_name(stored.precision()), precision::dtype_name(stored.precision().compute),
      stored.precision().source));
}

template <class Seen, class Host>
bool see_through(const models::BuiltModel& floats, const std::shared_ptr<ContractModule>& module,
                 const ContractModule& stored, const std::shared_ptr<const models::ModelRequest>& folder) {
  const auto* packed = dynamic_cast<const Host*>(&stored);
  if (packed == nullptr) return false;
  auto& host = dynamic_cast<Host&>(*module);
  require_one_dtype(host, *packed);
  host.add_adapter(
      kCodes, std::make_shared<Seen>(adapter_scope(floats, host, kCodes, /*trainable=*/true), host, *packed, folder));
  host.use_adapter(kCodes);
  return true;
}

void refuse_unfit(const models::BuiltModel& floats, const models::ModelRequest& folder) {
  if (folder.device.is_cuda()) {
    throw UsageError(
        fmt::format("[{}] is on {}, and codes are made on the CPU alone, anew in each forward: use --device=cpu",
                    folder.root, folder.device.str()));
  }
  if (floats.config.layout == nullptr) return;
  throw UsageError(
      fmt::format("[{}] {} holds codes already ({}), and training them wants the floats that they came "
                  "from: name the folder of the float model",
                  folder.root, floats.config.folder.string(), floats.config.layout->name()));
}

}  // namespace

int64_t see_through_formats(models::BuiltModel& floats, models::ModelRequest folder) {
  refuse_unfit(floats, folder);
  folder.packing = without_experts(std::move(folder.packing));
  const auto request = std::make_shared<models::ModelRequest>(std::move(folder));
  const models::BuiltModel packed = models::build_on_meta(*request);
  request->scales = packed.policy->stream_dtype();  // as the folder has them
  std::map<std::string, std::shared_ptr<ContractModule>> hosts;
  for (auto& module : precision::contract_modules(*floats.model)) hosts[module->path()] = std::move(module);
  int64_t count = 0;
  for (const auto& stored : precision::contract_modules(*packed.model)) {
    if (!stored->precision().quantized) continue;
    const auto& host = hosts.at(stored->path());
    if (!see_through<SeenLinear, Linear>(floats, host, *stored, request) &&
        !see_through<SeenEmbedding, Embedding>(floats, host, *stored, request))
      refuse_stack(*stored);
    ++count;
  }
  if (count == 0) {
    throw UsageError(
        fmt::format("[{0}] packs no weight, and codes are to be trained: say in which format, by "
                    "{0}.quantize=int4-g32 or a precision.rule such as \"{0}.layers.0.** int8\"",
                    request->root));
  }
  models::plan_packed(packed);
  models::refuse_shorter_last_groups(packed);
  return count;
}

bool sees_through_formats(const models::BuiltModel& model) {
  for (const auto& module : precision::contract_modules(*model.model)) {
    if (seen_of(*module) != nullptr) return true;
  }
  return false;
}

void save_codes(const models::BuiltModel& model, const std::filesystem::path& folder, models::SaveOptions options) {
  std::map<std::string, std::shared_ptr<ContractModule>> owners;
  const FolderCodes* any = nullptr;
  for (auto& module : precision::contract_modules(*model.model)) {
    if (const FolderCodes* seen = seen_of(*module)) any = seen;
    owners[module->path()] = std::move(module);
  }
  const models::BuiltModel packed = models::build_on_meta(any->folder());
  for (const auto& stored : precision::contract_modules(*packed.model)) {
    const ContractModule& owner = *owners.at(stored->path());
    for (const auto& [name, unfilled] : stored->packed_weights()) {
      if (options.before) options.before(owner.parameter(name));
      stored->replace_packed_weight(name, seen_of(owner)->codes());
    }
    for (const auto& entry : stored->named_parameters(/*recurse=*/false))
      stored->replace_parameter(entry.key(), owner.parameter(entry.key()).detach());
  }
  options.packed = true;
  models::save_model(packed, folder, options);
}

}  // namespace limbeck::adapters
