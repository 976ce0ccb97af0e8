#include "trainer/agreement/data_guard.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"

namespace limbeck::agreement {

namespace {

// The token ids of one stream, as the manifest knows them.
struct Ids {
  int64_t count;    // of the tokenizer
  int64_t largest;  // in use; -1: the manifest does not say
  const std::string& fingerprint;
  const char* option;  // of prepare_data.py, which names the tokenizer
};

class Reader {
 public:
  Reader(const DataReaders& readers, const models::BuiltModel& model, Reads who)
      : settings_(readers.settings),
        tokenizers_(readers.tokenizers),
        model_(model),
        who_(who),
        role_(who == Reads::kStudent ? "student" : "teacher") {}

  int64_t rows() const { return model_.config.architecture.vocabulary; }

  void require(const Ids& ids, const std::string& origin) const {
    require_rows(ids, origin);
    require_same_meaning(ids, origin);
  }

 private:
  void require_rows(const Ids& ids, const std::string& origin) const {
    if (ids.count <= rows() && ids.largest < rows()) return;
    const std::string used = ids.largest < 0 ? "" : fmt::format(" (the greatest in use is {})", ids.largest);
    const std::string fault = fmt::format(
        "{} has token ids up to {}{}, but {} has {} rows for them: prepare the data again with "
        "the tokenizer of {}.model",
        origin, std::max(ids.count - 1, ids.largest), used, settings_.text(role_ + ".model"), rows(), role_);
    if (ids.largest >= rows()) throw InputDataError(fault);
    throw UsageError(fault);
  }

  // A model that is drawn at random learns whatever the ids mean.
  void require_same_meaning(const Ids& ids, const std::string& origin) const {
    const std::string init = role_ + ".init";
    if (ids.fingerprint.empty() || settings_.text(init) == "random") return;
    const std::optional<std::string>& own = tokenizers_.fingerprint(who_);
    if (!own || *own == ids.fingerprint) return;
    const std::string folder = model_.config.folder.string();
    throw UsageError(
        fmt::format("{} was packed with another tokenizer than {}/tokenizer.json: the fingerprint of its ids is {}, "
                    "that of {}.model "
                    "{}: prepare the data again with {} {}",
                    origin, folder, ids.fingerprint, role_, *own, ids.option, folder));
  }

  const recipe::Settings& settings_;
  PairVocabulary& tokenizers_;
  const models::BuiltModel& model_;
  Reads who_;
  std::string role_;
};

}  // namespace

objective::Vocabulary require_fitting_data(const data::Manifest& manifest, const std::string& origin,
                                           const DataReaders& readers) {
  const Reader student(readers, readers.student, Reads::kStudent);
  const Ids ids{manifest.vocabulary, manifest.largest_id, manifest.ids_fingerprint, "--tokenizer"};
  student.require(ids, origin);
  if (readers.teacher == nullptr) return {manifest.vocabulary, 0};
  const Reader teacher(readers, *readers.teacher, Reads::kTeacher);
  if (manifest.teacher_vocabulary > 0) {
    if (!readers.crosses) {
      throw UsageError(fmt::format(
          "{} was prepared with two tokenizers ({} and {} ids), and objective.divergence = {} "
          "compares id by id: set objective.divergence = uld or dskd, or projector.kind = "
          "logit, or prepare it with one tokenizer",
          origin, manifest.vocabulary, manifest.teacher_vocabulary, readers.settings.text("objective.divergence")));
    }
    teacher.require({manifest.teacher_vocabulary, manifest.teacher_largest_id, manifest.teacher_ids_fingerprint,
                     "--teacher-tokenizer"},
                    origin);
    return {manifest.vocabulary, manifest.teacher_vocabulary};
  }
  const std::string& difference = readers.tokenizers.difference();
  if (!difference.empty()) {
    throw UsageError(
        fmt::format("{} holds the ids of one tokenizer, but {}: prepare it with both "
                    "(tools/prepare_data.py --teacher-tokenizer)",
                    origin, difference));
  }
  teacher.require(ids, origin);
  return {manifest.vocabulary, manifest.vocabulary};
}

data::DataRequest fitted(data::DataRequest request, const objective::ModelPair& pair) {
  request.student_vocabulary = pair.student.config.architecture.vocabulary;
  if (pair.teacher) request.teacher_vocabulary = pair.teacher->config.architecture.vocabulary;
  return request;
}

}  // namespace limbeck::agreement
