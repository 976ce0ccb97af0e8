// Evaluation: the training forward on held-out data, with what a person asks of a student besides its loss.
#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/data/data_request.h"
#include "trainer/objective/distillation.h"
#include "trainer/parallel/communicator.h"

namespace limbeck::evaluate {

struct Evaluation {
  // "loss", every term by name, then perplexity, teacher_perplexity, kl, top1_agreement, top5_overlap, or accuracy,
  // macro_f1 (of classes), teacher_accuracy, or cosine; targets.
  std::vector<std::pair<std::string, double>> values;
  int64_t targets = 0;

  const double* find(const std::string& name) const;
};

// The batches of `span`, dealt among the ranks; the result is the same on every rank and for any number of them.
// `progress` sets the curriculum's weights and the temperature.
Evaluation evaluate(const objective::Distillation& objective, const data::DataSource& source, data::BatchSpan span,
                    objective::Progress progress, parallel::Communicator& ranks,
                    const std::function<void(int64_t, int64_t)>& tick = {});

// Is `now` better than `best`? `metric`: auto (perplexity, accuracy or cosine, whichever is there) or loss.
bool better(const Evaluation& now, const Evaluation& best, const std::string& metric);
// The name and value `metric` stands for.
std::pair<std::string, double> judged_by(const Evaluation& evaluation, const std::string& metric);

}  // namespace limbeck::evaluate
