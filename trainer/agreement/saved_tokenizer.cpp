#include "trainer/agreement/saved_tokenizer.h"

#include "modules/errors.h"
#include "trainer/agreement/vocabulary_guard.h"

namespace limbeck::agreement {

namespace fs = std::filesystem;

namespace {

// What cannot be read is no reason to refuse a run that does not need it.
bool gives_ids_of(const fs::path& folder, const std::string& fingerprint) {
  try {
    return ids_fingerprint(folder) == fingerprint;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

fs::path tokenizer_of_data(const fs::path& data, const data::Manifest& manifest, const fs::path& student,
                           bool drawn_at_random) {
  std::error_code absent;
  const bool has_own = fs::exists(student / "tokenizer.json", absent);
  if (manifest.ids_fingerprint.empty() || (has_own && !drawn_at_random)) return {};
  for (const fs::path& beside : {data, data / ".."}) {
    const fs::path folder = beside / "tokenizer";
    if (!fs::is_regular_file(folder / "tokenizer.json", absent) || !gives_ids_of(folder, manifest.ids_fingerprint))
      continue;
    return has_own && gives_ids_of(student, manifest.ids_fingerprint) ? fs::path() : folder;
  }
  return {};
}

}  // namespace limbeck::agreement
