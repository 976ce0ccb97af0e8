// Kinds of adapter that a plug-in adds to those that ship with Limbeck: adapter.kind = NAME trains one, and its folder
// says "peft_type": NAME. A kind makes the adapter of one host; everything else (which hosts, saving, loading,
// resuming, merging) is the same for all of them.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "modules/models/network/blocks.h"
#include "modules/named_kind.h"

namespace limbeck::adapters {

// What a recipe says of it (adapter.rank, alpha, dropout, scale), and its folder.
struct AddedSizes {
  int64_t rank = 16;
  double alpha = 32, dropout = 0, scale = 0.1;
};

// Gives the adapter of this host, parameters unfilled; the scope says where it is built, which may be on meta.
// UsageError for a host that it cannot be on.
template <class Adapter, class Host>
using MakeAdded = std::function<std::shared_ptr<Adapter>(const precision::Scope&, const AddedSizes&, const Host&)>;

struct AddedKind {
  std::string name, summary;
  // Where none is given, it cannot be on such a host.
  MakeAdded<models::LinearAdapter, models::Linear> on_linear = {};
  MakeAdded<models::EmbeddingAdapter, models::Embedding> on_embedding = {};
  MakeAdded<models::ExpertAdapter, models::ExpertStack> on_experts = {};
  MakeAdded<models::LayerAdapter, models::Layer> on_layer = {};
  bool has_dropout = false;  // else a recipe that asks for some is refused
};

// An adapter of such a kind: enough to make it, and to save it.
struct AddedConfig {
  const AddedKind* kind = nullptr;
  AddedSizes sizes;
};

// UsageError where the name is taken, or no word of lower-case letters, digits and _, or it can be on nothing. Called
// in every process that is to know the kind, before an adapter is made.
void add_adapter_kind(AddedKind kind);
// A deque: an AddedConfig keeps a pointer to its kind.
const std::deque<AddedKind>& added_kinds();
const AddedKind* find_added(const std::string& name);  // null: there is none of that name

}  // namespace limbeck::adapters
