// What a profile's passes read: the recipe's own rows where there are any, else random ids.
#pragma once
#include <memory>
#include <string>

#include "trainer/data/data_source.h"
#include "trainer/objective/model_pair.h"
#include "trainer/profile/profile_options.h"

namespace limbeck::profile {

struct ProfiledRows {
  data::Batch batch;                         // on the CPU
  std::string from;                          // "data.validation", "data.train" or "random ids"
  std::string reason;                        // why they are random
  std::shared_ptr<data::DataSource> source;  // of the recipe's own rows
  std::string origin;                        // "data.train (my.ini:3)"
};

// Every token real, ids (and classes) by `seed` alone.
data::Batch random_batch(const models::Architecture& student, const ProfileOptions& options);

// The first rows of what the work reads in a run: training of data.train, all else of data.validation; of the other one
// where there is one alone. A row has `length` tokens at most. Data that cannot be read give random ids and the reason.
ProfiledRows profiled_rows(const recipe::Settings& settings, const objective::ModelPair& pair,
                           const ProfileOptions& options, Work work);

}  // namespace limbeck::profile
