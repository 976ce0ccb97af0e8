// The recipe keys, group by group. Each group is a function, so that a command without a recipe can offer some of them.
#pragma once
#include <string>
#include <vector>

#include "modules/named_kind.h"
#include "trainer/recipe/option_table.h"

namespace limbeck::recipe {

void declare_run_options(OptionTable& table);         // seed
void declare_model_options(OptionTable& table);       // teacher, student, projector, precision
void declare_adapter_options(OptionTable& table);     // adapter.* (adapter_options.cpp)
void declare_pooling_option(OptionTable& table);      // model.pooling
void declare_data_options(OptionTable& table);        // the shape of a batch
void declare_generation_options(OptionTable& table);  // how the next token is chosen

void declare_objective_options(OptionTable& table);  // objective.*: terms, weights, curriculum (objective_options.cpp)
void declare_optimizer_options(OptionTable& table);  // optim.*, (optimizer_options.cpp)
void declare_training_options(OptionTable& table);   // train.*, eval.* (training_options.cpp)
void declare_parallel_options(OptionTable& table);   // parallel.* (parallel_options.cpp)

void declare_profile_options(OptionTable& table);  // profile.* (profile_options.cpp)

void declare_checkpoint_options(OptionTable& table);  // checkpoint.* (checkpoint_options.cpp)
void declare_resume_options(OptionTable& table);      // --resume and its like, of `limbeck train` alone

void declare_recipe_options(OptionTable& table);  // all of them

// Of models with a resolvent: whether it sees 8-bit codes.
Option bk_activations_option(const std::string& name);

// "none" and the names: the words of a choice.
std::vector<std::string> none_or(const std::vector<NamedKind>& kinds);

}  // namespace limbeck::recipe
