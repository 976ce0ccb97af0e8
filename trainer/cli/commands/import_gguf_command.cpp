// limbeck import-gguf: a GGUF file as a folder that every command takes.
#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/gguf/import_gguf.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {
namespace {

using recipe::OptionKind;

gguf::ImportRequest request_of_import(const recipe::Settings& settings) {
  gguf::ImportRequest request{settings.required_path("model"), settings.required_path("output"),
                              settings.dtype("dtype"), settings.text("codes") == "keep",
                              settings.text("pre-tokenizer")};
  if (std::filesystem::is_directory(request.file)) {
    throw UsageError(
        fmt::format("{}: is a folder, which every command takes as it is: limbeck import-gguf makes one of "
                    "a GGUF file",
                    request.file.string()));
  }
  return request;
}

std::string import_table(const std::vector<gguf::ImportedType>& types, int width) {
  TextTable table({{"type"},
                   {"becomes"},
                   {"tensors", Align::kRight},
                   {"values", Align::kRight},
                   {"in the file", Align::kRight},
                   {"in the folder", Align::kRight}});
  gguf::ImportedType sum;
  const auto add = [&table](const gguf::ImportedType& row) {
    table.add_row({row.type, row.becomes, std::to_string(row.tensors), std::to_string(row.values),
                   human_bytes(row.stored_bytes), human_bytes(row.bytes)});
  };
  for (const gguf::ImportedType& row : types) {
    add(row);
    sum.tensors += row.tensors, sum.values += row.values;
    sum.stored_bytes += row.stored_bytes, sum.bytes += row.bytes;
  }
  sum.type = "all";
  add(sum);
  return table.render(width);
}

nlohmann::ordered_json import_json(const std::vector<gguf::ImportedType>& types) {
  auto rows = nlohmann::ordered_json::array();
  for (const gguf::ImportedType& row : types) {
    rows.push_back({{"type", row.type},
                    {"becomes", row.becomes},
                    {"tensors", row.tensors},
                    {"values", row.values},
                    {"stored_bytes", row.stored_bytes},
                    {"bytes", row.bytes}});
  }
  return rows;
}

void run_import_gguf(Invocation& call) {
  const gguf::ImportRequest request = request_of_import(call.settings);
  const gguf::GgufImport import(request);
  for (const std::string& line : import.warnings()) call.console.warning(line);
  call.console.note(import_table(import.types(), call.width));
  const std::string dtype = precision::dtype_name(import.dtype());
  if (import.may_round())
    call.console.warning(
        fmt::format("values that are no numbers of {} are rounded to the nearest: --dtype=float32 "
                    "keeps them",
                    dtype));
  import.write();
  int64_t bytes = 0;
  for (const gguf::ImportedType& row : import.types()) bytes += row.bytes;
  call.result["family"] = import.family();
  call.result["dtype"] = dtype;
  call.result["types"] = import_json(import.types());
  call.result["tokenizer"] = import.has_tokenizer();
  call.result["warnings"] = import.warnings();
  call.result["bytes"] = bytes;
  call.result["output"] = request.folder.string();
  call.console.result(fmt::format("{}: a {} model, {} of weights, floats in {}, {} tokenizer", request.folder.string(),
                                  import.family(), human_bytes(bytes), dtype,
                                  import.has_tokenizer() ? "with its" : "without a"));
}

void declare_import_gguf(recipe::OptionTable& table) {
  table.group("Model");
  table.add({.name = "model",
             .kind = OptionKind::kPath,
             .help = "The GGUF file, whole.",
             .value_name = "FILE",
             .flag_only = true});
  table.add({.name = "dtype",
             .kind = OptionKind::kDtype,
             .fallback = "auto",
             .help = "Of what becomes floats. auto: the smallest one that holds every value, float32 where blocks "
                     "(Q4_1, Q4_K and their like) become floats.",
             .words = {"auto", "float32", "bfloat16", "float16"},
             .flag_only = true});
  table.add({.name = "codes",
             .kind = OptionKind::kChoice,
             .fallback = "keep",
             .help = "keep: Q8_0 stays int8 and Q4_0 int4, with the same codes and scales, where folders hold them; "
                     "floats: what they stand for.",
             .words = {"keep", "floats"},
             .flag_only = true});
  table.add({.name = "pre-tokenizer",
             .kind = OptionKind::kText,
             .help = "llama.cpp's name for how a text is cut into words, where the file says one that limbeck does not "
                     "know.",
             .value_name = "NAME",
             .flag_only = true});
  declare_output_folder(table);
}

}  // namespace

Command import_gguf_command() {
  return {.name = "import-gguf",
          .summary = "A GGUF file as a folder that every command takes.",
          .example = "limbeck import-gguf --model models/base.gguf --output models/base",
          .computes = true,
          .declare = declare_import_gguf,
          .run = run_import_gguf};
}

}  // namespace limbeck::cli
