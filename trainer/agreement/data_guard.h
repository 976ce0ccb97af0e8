// Whether the ids of a data set are those that the models read: by its manifest alone, so that `check` refuses what
// training would refuse.
#pragma once
#include <string>

#include "trainer/agreement/vocabulary_guard.h"
#include "trainer/data/data_source.h"
#include "trainer/objective/model_pair.h"
#include "trainer/objective/vocabulary.h"
#include "trainer/recipe/settings.h"

namespace limbeck::agreement {

struct DataReaders {
  const recipe::Settings& settings;
  PairVocabulary& tokenizers;
  const models::BuiltModel& student;
  const models::BuiltModel* teacher;  // that is compared with; null: none
  bool crosses;                       // the objective compares models of different tokenizers
};

// Tokenizers, number of ids and the greatest one in use against both models. The error names both sides and what to
// type: UsageError of a tokenizer that does not fit, InputDataError of an id that no model has. What comes back is the
// real ids of each head.
objective::Vocabulary require_fitting_data(const data::Manifest& manifest, const std::string& origin,
                                           const DataReaders& readers);

// The request with the vocabularies of the pair, which every id must be below.
data::DataRequest fitted(data::DataRequest request, const objective::ModelPair& pair);

}  // namespace limbeck::agreement
