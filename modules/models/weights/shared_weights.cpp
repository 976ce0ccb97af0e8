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

const Linear* quantized_linear(const ContractModule& module) {
  const auto* linear = dynamic_cast<const Linear*>(&module);
  return linear != nullptr && linear->is_quantized() ? linear : nullptr;
}

bool same_format(const ContractModule& lender, const ContractModule& borrower) {
  const Linear *theirs = quantized_linear(lender), *own = quantized_linear(borrower);
  if (theirs == nullptr || own == nullptr) return theirs == own;
  return theirs->quantized_weight().format() == own->quantized_weight().format();
}

bool can_lend(const ContractModule& lender, const ContractModule& borrower) {
  if (!same_format(lender, borrower)) return false;
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
  share_quantized_weights(borrower, lender);
  borrower.report.bindings = bind_weights(*borrower.model, *borrower.config.family);
}

std::string share_quantized_weights(BuiltModel& borrower, const BuiltModel& lender) {
  const auto lenders = owners(lender);
  for (const auto& [path, module] : owners(borrower)) {
    const auto& theirs = *lenders.at(path);
    if (!same_format(theirs, *module)) return theirs.path();
    const Linear* linear = quantized_linear(theirs);
    if (linear != nullptr) dynamic_cast<Linear&>(*module).set_quantized_weight(linear->quantized_weight());
  }
  return "";
}

}  // namespace limbeck::models
