// A module that adapters can be on: several may be there by name, one at a time works.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "modules/precision/contract_module.h"

namespace limbeck::models {

class AdapterHost {
 public:
  virtual ~AdapterHost() = default;
  // "", or a name that is not there: none works.
  virtual void use_adapter(const std::string& name) = 0;
  virtual std::vector<std::string> adapter_names() const = 0;
  virtual std::string adapter_in_use() const = 0;  // "": none

 protected:
  // As a child of the host. UsageError where the name is none for a child, or taken.
  void own(const std::string& name, const std::shared_ptr<precision::ContractModule>& adapter);
};

// Which adapters work on a module and on what is inside it, for who runs it again later.
class AdaptersInUse {
 public:
  explicit AdaptersInUse(torch::nn::Module& module);

  // Has them work for as long as this lives; then those again that worked before.
  class Again {
   public:
    explicit Again(const AdaptersInUse& wanted);
    ~Again();
    Again(const Again&) = delete;
    Again& operator=(const Again&) = delete;

   private:
    std::vector<std::pair<AdapterHost*, std::string>> before_;
  };

 private:
  std::vector<std::pair<AdapterHost*, std::string>> hosts_;
};

// Hosts derive from it beside torch::nn::Module. Kind: what their adapters have in common.
template <class Kind>
class NamedAdapters : public AdapterHost {
 public:
  void add_adapter(const std::string& name, std::shared_ptr<Kind> adapter) {
    own(name, adapter);
    adapters_.emplace(name, std::move(adapter));
  }
  void use_adapter(const std::string& name) override {
    const auto found = adapters_.find(name);
    working_ = found == adapters_.end() ? nullptr : found->second;
  }
  std::string adapter_in_use() const override {
    for (const auto& [name, adapter] : adapters_) {
      if (adapter == working_) return name;
    }
    return "";
  }
  const Kind* adapter() const { return working_.get(); }
  const Kind* adapter(const std::string& name) const {  // null: there is none of that name
    const auto found = adapters_.find(name);
    return found == adapters_.end() ? nullptr : found->second.get();
  }
  std::vector<std::string> adapter_names() const override {
    std::vector<std::string> names;
    for (const auto& [name, adapter] : adapters_) names.push_back(name);
    return names;
  }

 private:
  std::shared_ptr<Kind> working_;
  std::map<std::string, std::shared_ptr<Kind>> adapters_;
};

}  // namespace limbeck::models
