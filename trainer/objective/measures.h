// What evaluation reports beside the terms, as sums over batches: divide by the counts at the end.
#pragma once
#include <cstdint>
#include <vector>

namespace limbeck::objective {

// Of one class: sequences that belong to it, that the student says do, and those of which both are true.
struct ClassCounts {
  int64_t gold = 0, predicted = 0, right = 0;
};

struct Measures {
  // Language models. The teacher's cross-entropy is over its own tokens when it has a tokenizer of its own.
  double student_cross_entropy = 0.0, teacher_cross_entropy = 0.0;
  int64_t targets = 0, teacher_targets = 0;
  // Tokens at which both distributions range over the same ids (a projected teacher: the student's), at temperature 1.
  double kl = 0.0, top5_overlap = 0.0;
  int64_t compared = 0, top1_agreements = 0;
  // Masked language models: hidden tokens, and those whose likeliest id is the right one.
  int64_t hidden = 0, student_filled = 0, teacher_filled = 0;
  // Classifiers.
  int64_t labelled = 0, student_right = 0, teacher_right = 0, class_agreements = 0;
  std::vector<ClassCounts> classes;  // by number; empty where no batch had labels
  // Encoders with an embedding term: cosine of pooled states.
  double cosine = 0.0;
  int64_t pooled = 0;
};

}  // namespace limbeck::objective
