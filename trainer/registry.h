// Named things a user chooses by name: models, objectives, adapters, quantizers, optimizers. Filled by explicit calls
// (builtins first, then plug-ins); a name registered twice throws, an unknown name is answered with the nearest and
// every known one.
#pragma once
#include <fmt/format.h>

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "modules/errors.h"
#include "modules/named_kind.h"
#include "trainer/recipe/message.h"

namespace limbeck {

// What `limbeck list` needs to know of a registry.
class NameList {
 public:
  explicit NameList(std::string kind) : kind_(std::move(kind)) {}
  virtual ~NameList() = default;
  NameList(const NameList&) = delete;
  NameList& operator=(const NameList&) = delete;

  using Entry = NamedKind;
  const std::string& kind() const { return kind_; }
  virtual std::vector<Entry> entries() const = 0;

 private:
  std::string kind_;
};

// Names that another floor of the house keeps: modules/models knows its families without knowing the trainer. They are
// asked for anew each time: a plug-in may have added to them.
class BorrowedNames : public NameList {
 public:
  BorrowedNames(std::string kind, std::function<std::vector<Entry>()> entries)
      : NameList(std::move(kind)), entries_(std::move(entries)) {}
  std::vector<Entry> entries() const override { return entries_(); }

 private:
  std::function<std::vector<Entry>()> entries_;
};

// Product: what a name stands for, as a rule a factory.
template <class Product>
class Registry : public NameList {
 public:
  using NameList::NameList;

  void add(const std::string& name, const std::string& summary, Product product) {
    for (const auto& [entry, unused] : items_) {
      if (entry.name == name)
        throw UsageError(fmt::format("{}: {} is registered twice; give one of them another name", kind(), name));
    }
    items_.push_back({{name, summary}, std::move(product)});
  }

  const Product& find(const std::string& name) const {
    std::vector<std::string> known;
    for (const auto& [entry, product] : items_) {
      if (entry.name == name) return product;
      known.push_back(entry.name);
    }
    throw UsageError(fmt::format("{}: {} is unknown: {}; 'limbeck list {}' shows them", kind(), recipe::shown(name),
                                 known.empty() ? "none is registered yet" : recipe::wanted_of(name, known), kind()));
  }

  std::vector<Entry> entries() const override {
    std::vector<Entry> out;
    for (const auto& item : items_) out.push_back(item.first);
    return out;
  }

 private:
  std::vector<std::pair<Entry, Product>> items_;
};

// Every registry of one process, by kind.
class Registries {
 public:
  // The registry of this kind, made on first use. Asking for another product than the one it holds is a UsageError,
  // because a plug-in built against other headers can cause it.
  template <class Product>
  Registry<Product>& of(const std::string& kind) {
    if (NameList* found = find(kind)) {
      if (auto* typed = dynamic_cast<Registry<Product>*>(found)) return *typed;
      throw UsageError(
          fmt::format("{}: the registry holds another type; rebuild the plug-in against this limbeck", kind));
    }
    lists_.push_back(std::make_unique<Registry<Product>>(kind));
    return static_cast<Registry<Product>&>(*lists_.back());
  }

  void attach(std::unique_ptr<NameList> list) {
    if (find(list->kind())) throw std::logic_error("registry " + list->kind() + " is attached twice");
    lists_.push_back(std::move(list));
  }

  const NameList* find(const std::string& kind) const {
    for (const auto& list : lists_) {
      if (list->kind() == kind) return list.get();
    }
    return nullptr;
  }
  NameList* find(const std::string& kind) { return const_cast<NameList*>(std::as_const(*this).find(kind)); }

 private:
  std::vector<std::unique_ptr<NameList>> lists_;
};

}  // namespace limbeck
