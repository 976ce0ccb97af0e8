// A GGUF file as a folder of config.json, safetensors and tokenizer that every command, and transformers, takes: what
// export_gguf() writes, and what others wrote, by the same names, row orders and numbers. Codes of Q4_0 and Q8_0 stay
// the same codes with the same scales where a folder can hold them; everything else becomes floats of one dtype. The
// file is read tensor by tensor: memory is bounded by the largest one.
#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "modules/gguf/llama_cpp_model.h"
#include "modules/gguf/weight_place.h"
#include "modules/io/gguf_reader.h"
#include "modules/io/temporary_folder.h"
#include "modules/models/weights/save_model.h"

namespace limbeck::gguf {

struct ImportRequest {
  std::filesystem::path file, folder;
  std::optional<at::ScalarType> dtype;  // none: the smallest that loses nothing
  bool keep_codes = true;               // else floats throughout
  std::string words;                    // llama.cpp's name for how a text is cut; "": the file's
};

// What becomes of the tensors of one type.
struct ImportedType {
  std::string type, becomes;
  int64_t tensors = 0, values = 0, stored_bytes = 0, bytes = 0;
};

class GgufImport : private models::WeightSource {
 public:
  // Reads all of the file but the values: what is refused is refused here. A scratch folder beside `folder` lives as
  // long as this.
  explicit GgufImport(ImportRequest request);

  const std::vector<ImportedType>& types() const { return types_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  const std::string& family() const { return built_.config.architecture.family; }
  at::ScalarType dtype() const { return dtype_; }
  bool has_tokenizer() const { return has_tokenizer_; }
  // Whether values may be rounded to a dtype that was asked for.
  bool may_round() const { return request_.dtype && dtype_ != at::kFloat; }
  // The folder appears complete or not at all.
  void write() const;

 private:
  struct Part {  // of a tensor: all of it, or one expert's
    const io::StoredGgufTensor* tensor = nullptr;
    uint64_t begin = 0;
    int64_t rows = 0, columns = 0;  // a vector is one row
    int64_t row_bytes = 0;
    bool with_one = false;
    std::vector<int64_t> order;  // the i-th row of the file is ours of this number; empty: as they are
  };

  void write_scratch();
  void build();
  Part part_of(const models::WeightBinding& binding) const;
  void require_all_tensors() const;
  void choose_codes();
  std::optional<kernels::QuantizedFormat> codes_for(const models::WeightBinding& binding) const;
  void choose_dtype();
  bool exact_in(at::ScalarType dtype, const Part& part) const;
  void tabulate();
  at::Tensor rows_of(const Part& part, int64_t row, int64_t count) const;  // float32
  at::Tensor floats(const models::WeightBinding& binding) const override;
  precision::PackedWeight codes(const models::WeightBinding& binding) const override;

  ImportRequest request_;
  std::string where_;
  io::GgufReader file_;
  io::TemporaryFolder scratch_;
  at::ScalarType dtype_ = at::kFloat;
  std::map<std::string, kernels::QuantizedFormat> codes_;  // by module
  models::BuiltModel built_;                               // on meta
  std::unique_ptr<LlamaCppModel> words_;
  std::vector<ImportedType> types_;
  std::vector<std::string> warnings_;
  bool has_tokenizer_ = false;
};

}  // namespace limbeck::gguf
