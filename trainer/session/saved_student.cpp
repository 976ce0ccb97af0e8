#include "trainer/session/saved_student.h"

#include <fmt/format.h>

#include "modules/adapters/folder/peft_folder.h"
#include "modules/adapters/trained_codes/trained_codes.h"
#include "modules/io/folder_in_place.h"
#include "modules/models/weights/save_model.h"
#include "trainer/build/adapter_options.h"
#include "trainer/objective/projector_file.h"

namespace limbeck::session {

namespace fs = std::filesystem;

void save_student(const objective::Distillation& objective, const fs::path& folder, const fs::path& tokenizer,
                  const io::BeforeTensor& before) {
  const fs::path fresh = folder.parent_path() / fmt::format(".{}.new", folder.filename().string());
  fs::remove_all(fresh);
  const objective::ModelPair& pair = objective.pair();
  if (pair.adapter) {
    fs::create_directories(fresh);
    adapters::save_adapter(pair.student, *pair.adapter, build::kAdapterName, fresh, before);
  } else if (adapters::sees_through_formats(pair.student)) {
    adapters::save_codes(pair.student, fresh, {.before = before, .tokenizer = tokenizer});
  } else {
    models::save_model(pair.student, fresh, {.before = before, .tokenizer = tokenizer});
  }
  objective::save_projectors(objective, fresh, before);
  io::put_folder_in_place(fresh, folder);
}

}  // namespace limbeck::session
