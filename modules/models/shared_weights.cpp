#include "modules/models/shared_weights.h"

#include <map>

namespace limbeck::models {
namespace {

using precision::ContractModule;

// By their paths below the model's root.
std::map<std::string, std::shared_ptr<ContractModule>> owners(const BuiltModel& built) {
  std::map<std::string, std::shared_ptr<ContractModule>> found;
  for (const auto& module : built.model->modules(/*include_self=*/false)) {
    const auto owner = std::dynamic_pointer_cast<ContractModule>(module);
    if (owner != nullptr) found[owner->path().substr(built.model->path().size())] = owner;
  }
  return found;
}

bool can_lend(const ContractModule& lender, const ContractModule& borrower) {
  for (const auto& entry : borrower.named_parameters(/*recurse=*/false)) {
    if (!lender.has_parameter(entry.key())) return false;
    const at::Tensor& theirs = lender.parameter(entry.key());
    if (theirs.requires_grad() || theirs.sizes() != entry.value().sizes()) return false;
    if (theirs.scalar_type() != entry.value().scalar_type()) return false;
  }
  return true;
}

}  // namespace

bool can_share_weights(const BuiltModel& borrower, const BuiltModel& lender) {
  const auto lenders = owners(lender);
  for (const auto& [path, module] : owners(borrower)) {
    const auto found = lenders.find(path);
    if (found == lenders.end() || !can_lend(*found->second, *module)) return false;
  }
  return true;
}

void share_weights(BuiltModel& borrower, const BuiltModel& lender) {
  const auto lenders = owners(lender);
  for (const auto& [path, module] : owners(borrower)) module->borrow_parameters(*lenders.at(path));
  borrower.report.bindings = bind_weights(*borrower.model, *borrower.config.family);
}

}  // namespace limbeck::models
