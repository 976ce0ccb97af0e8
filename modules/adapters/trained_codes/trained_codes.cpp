#include "modules/adapters/trained_codes/trained_codes.h"

#include <fmt/format.h>

#include <map>
#include <utility>
#include <vector>

#include "modules/adapters/new_adapter.h"
#include "modules/adapters/trained_codes/seen_modules.h"
#include "modules/errors.h"
#include "modules/precision/contract_modules.h"

namespace limbeck::adapters {
namespace {

using models::Embedding;
using models::ExpertWeights;
using models::Linear;
using precision::ContractModule;

template <class Host>
void add_seen(const Host& host, std::vector<const FolderCodes*>& found) {
  if (const auto* seen = dynamic_cast<const FolderCodes*>(host.adapter(kCodes))) found.push_back(seen);
}

// Of the weights of one module.
std::vector<const FolderCodes*> seen_of(const ContractModule& module) {
  std::vector<const FolderCodes*> found;
  if (const auto* linear = dynamic_cast<const Linear*>(&module)) add_seen(*linear, found);
  if (const auto* embedding = dynamic_cast<const Embedding*>(&module)) add_seen(*embedding, found);
  if (const auto* experts = dynamic_cast<const ExpertWeights*>(&module)) {
    for (const auto& stack : experts->stacks()) add_seen(*stack, found);
  }
  return found;
}

void require_one_dtype(const ContractModule& host, const ContractModule& stored) {
  if (host.precision().storage == stored.precision().storage) return;
  throw UsageError(fmt::format(
      "[{}] trains in {} ({}) and is stored in {} beside {} activations ({}): drop the rule about its dtype",
      host.path(), precision::dtype_name(host.precision().storage), host.precision().source,
      precision::storage_name(stored.precision()), precision::dtype_name(stored.precision().compute),
      stored.precision().source));
}

// Puts what sees through the formats of `folder` on each weight of a module.
class SeeingThrough {
 public:
  SeeingThrough(const models::BuiltModel& floats, std::shared_ptr<const models::ModelRequest> folder)
      : floats_(floats), folder_(std::move(folder)) {}

  void see(ContractModule& module, const ContractModule& stored) const {
    require_one_dtype(module, stored);
    if (auto* linear = dynamic_cast<Linear*>(&module)) return put<SeenLinear>(*linear, stored);
    if (auto* embedding = dynamic_cast<Embedding*>(&module)) return put<SeenEmbedding>(*embedding, stored);
    for (const auto& stack : dynamic_cast<ExpertWeights&>(module).stacks()) put<SeenExperts>(*stack, stored);
  }

 private:
  template <class Seen, class Host>
  void put(Host& host, const ContractModule& stored) const {
    host.add_adapter(kCodes, std::make_shared<Seen>(adapter_scope(floats_, host, kCodes, /*trainable=*/true), host,
                                                    stored, folder_));
    host.use_adapter(kCodes);
  }

  const models::BuiltModel& floats_;
  std::shared_ptr<const models::ModelRequest> folder_;
};

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
  const auto request = std::make_shared<models::ModelRequest>(std::move(folder));
  const models::BuiltModel packed = models::build_on_meta(*request);
  request->scales = packed.policy->stream_dtype();  // as the folder has them
  std::map<std::string, std::shared_ptr<ContractModule>> hosts;
  for (auto& module : precision::contract_modules(*floats.model)) hosts[module->path()] = std::move(module);
  int64_t count = 0;
  const SeeingThrough seeing(floats, request);
  for (const auto& stored : precision::contract_modules(*packed.model)) {
    if (!stored->precision().quantized) continue;
    seeing.see(*hosts.at(stored->path()), *stored);
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
    if (!seen_of(*module).empty()) return true;
  }
  return false;
}

void save_codes(const models::BuiltModel& model, const std::filesystem::path& folder, models::SaveOptions options) {
  std::map<std::string, std::shared_ptr<ContractModule>> owners;
  const FolderCodes* any = nullptr;
  for (auto& module : precision::contract_modules(*model.model)) {
    for (const FolderCodes* seen : seen_of(*module)) any = seen;
    owners[module->path()] = std::move(module);
  }
  const models::BuiltModel packed = models::build_on_meta(any->folder());
  for (const auto& stored : precision::contract_modules(*packed.model)) {
    const ContractModule& owner = *owners.at(stored->path());
    for (const FolderCodes* seen : seen_of(owner)) {
      if (stored->packed_weights().empty()) continue;  // a tied head's are the embedding's
      if (options.before) options.before(seen->floats());
      for (auto& [name, codes] : seen->codes()) stored->replace_packed_weight(name, std::move(codes));
    }
    for (const auto& entry : stored->named_parameters(/*recurse=*/false))
      stored->replace_parameter(entry.key(), owner.parameter(entry.key()).detach());
  }
  options.packed = true;
  models::save_model(packed, folder, options);
}

}  // namespace limbeck::adapters
