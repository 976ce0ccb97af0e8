// How a student compares with its teacher on held-out tokens: both likelihoods, and how often they agree.
// Sums over targets, so that batches of different lengths add up; logits are made a few rows at a time.
#pragma once
#include "trainer/data/batch.h"
#include "trainer/objective/distillation.h"

namespace limbeck::evaluate {

struct Agreement {
  int64_t targets = 0;
  double student_loss = 0, teacher_loss = 0;  // sums of the negative log-likelihood
  double kl = 0;                              // sum of KL(teacher || student) at temperature 1
  double top1 = 0, top5 = 0;                  // both likeliest ids equal; share of the five likeliest that both have
  bool has_teacher = false;                   // one that reads the same tokens

  Agreement& operator+=(const Agreement& other);
};

// Language models alone. `vocabulary`: real ids; columns of the heads beyond it are padding.
Agreement compare(const models::Transformer* teacher, const models::Transformer& student, const data::Batch& batch,
                  int64_t vocabulary);

// Encoders: sum over the rows of the cosine between the pooled states of both, where their widths agree.
double pooled_cosine(const models::Transformer& teacher, const models::Transformer& student, const data::Batch& batch);
// Classifiers: rows whose likeliest class is the labelled one.
double correct_classes(const models::Transformer& model, const data::Batch& batch);

models::ModelInput model_input(const data::TokenStream& stream);

}  // namespace limbeck::evaluate
