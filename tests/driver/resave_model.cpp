// resave_model MODEL OUT [--random SEED] [--dtype DTYPE] [--shard BYTES] [--packed FORMAT [--scales DTYPE]]
// [--rule RULE]: loads a model, or draws a fresh one from its config.json, and saves it; with a format as its codes
// ("as-it-is": the folder's own).
#include <cstdio>
#include <string>

#include "modules/errors.h"
#include "modules/models/weights/save_model.h"
#include "tests/driver/verbs.h"

namespace limbeck::test {

int resave_model(int argc, char** argv) {
  if (argc < 3 || argc % 2 == 0) {
    std::fprintf(stderr,
                 "usage: resave_model MODEL OUT [--random SEED] [--dtype DTYPE] [--shard BYTES] [--packed FORMAT] "
                 "[--scales DTYPE] [--rule RULE]\n");
    return 2;
  }
  try {
    models::ModelRequest request;
    request.folder = argv[1];
    models::SaveOptions options;
    for (int i = 3; i + 1 < argc; i += 2) {
      const std::string flag = argv[i], value = argv[i + 1];
      if (flag == "--random") {
        request.random_init = true;
        request.seed = std::stoull(value);
      } else if (flag == "--dtype") {
        request.dtype = precision::dtype_from_name(value);
      } else if (flag == "--shard") {
        options.max_shard_bytes = std::stoull(value);
      } else if (flag == "--packed") {
        options.packed = true;
        const auto format = kernels::find_format(value);
        if (format) request.packing = precision::pack_all(*format, flag);
      } else if (flag == "--scales") {
        request.scales = precision::dtype_from_name(value);
      } else if (flag == "--rule") {
        request.rules.push_back(precision::parse_rule(value, flag));
      } else {
        throw UsageError("unknown flag " + flag);
      }
    }
    models::save_model(models::load_model(request), argv[2], options);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}

}  // namespace limbeck::test
