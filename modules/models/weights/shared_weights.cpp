#include "modules/models/weights/shared_weights.h"

#include <map>

#include "modules/precision/contract_modules.h"

namespace limbeck::models {
namespace {

using precision::ContractModule;

// By their paths below the model's root.
std::map<std::string, std::shared_ptr<ContractModule>> owners(const BuiltModel& built) {
  std::map<std::string, std::shared_ptr<ContractModule>> found;
  for (auto& owner : precision::contract_modules(*built.model)) {
    found[owner->path().substr(built.model->path().size())] = std::move(owner);
  }
  return found;
}

}  // namespace

bool can_share_weights(const BuiltModel& borrower, const BuiltModel& lender) {
  const auto lenders = owners(lender);
  for (const auto& [path, module] : owners(borrower)) {
    const auto found = lenders.find(path);
    if (found == lenders.end() || !module->can_borrow(*found->second)) return false;
  }
  return true;
}

void share_weights(BuiltModel& borrower, const BuiltModel& lender) {
  const auto lenders = owners(lender);
  for (const auto& [path, module] : owners(borrower)) module->borrow(*lenders.at(path));
  borrower.report.bindings = bind_weights(*borrower.model, *borrower.config.family);
}

std::string share_packed_weights(BuiltModel& borrower, const BuiltModel& lender) {
  const auto lenders = owners(lender);
  for (const auto& [path, module] : owners(borrower)) {
    const auto& theirs = *lenders.at(path);
    if (!module->borrow_packed(theirs)) return theirs.path();
  }
  return "";
}

}  // namespace limbeck::models
