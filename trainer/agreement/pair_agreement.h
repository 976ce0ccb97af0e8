// What the two models of a pair, the objective and the data must agree on: made before the objective, which takes the
// vocabulary that comes out of it.
#pragma once
#include <string>
#include <vector>

#include "trainer/agreement/vocabulary_guard.h"
#include "trainer/data/data_source.h"
#include "trainer/objective/options.h"
#include "trainer/objective/vocabulary.h"
#include "trainer/recipe/settings.h"

namespace limbeck::agreement {

struct DataInUse {
  const data::Manifest& manifest;
  std::string origin;  // "data.train (my.ini:3)"
};

class PairAgreement {
 public:
  // Of settings, options and a pair that outlive it. UsageError where what is hidden from the models is not what they
  // predict, where the options ask too much of them, or where their tokenizers cannot be compared as the objective
  // does.
  PairAgreement(const recipe::Settings& settings, const objective::ObjectiveOptions& options,
                const objective::ModelPair& pair);

  // Whether teacher and student read tokens of their own: data prepared with two tokenizers.
  bool reads_two_streams();
  // The real ids of each head: of the data sets that a run reads, else of the models' tables. Refuses data whose
  // tokenizers or vocabularies do not fit the pair; UsageError says what to set.
  objective::Vocabulary vocabulary(const std::vector<DataInUse>& sets);

 private:
  objective::Vocabulary of_tables() const;

  const recipe::Settings& settings_;
  const objective::ModelPair& pair_;
  const models::BuiltModel* compared_;  // the teacher, where the objective compares with one
  bool crosses_;
  PairVocabulary tokenizers_;
};

}  // namespace limbeck::agreement
