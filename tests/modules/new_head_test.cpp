// A classifier begun from an encoder: what is drawn, what is read, and what is still refused.
#include "modules/models/weights/new_head.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "modules/models/weights/load_model.h"
#include "modules/models/weights/save_model.h"
#include "tests/modules/weights_files.h"
#include "tests/support/tiny_models.h"

namespace limbeck::models {
namespace {

namespace fs = std::filesystem;

nlohmann::json config_in(const fs::path& folder) {
  return nlohmann::json::parse(std::ifstream(folder / "config.json"));
}

void write_config(const fs::path& folder, const nlohmann::json& config) {
  std::ofstream(folder / "config.json") << config.dump(2);
}

// A saved model of this architecture, whose config.json then says that it is a classifier of `labels`.
fs::path saved_as(const std::string& family, const std::string& architecture, int labels) {
  const fs::path structure = test::tiny_model(family), folder = structure / "saved";
  nlohmann::json config = config_in(structure);
  const auto classifier = config.at("architectures");
  config["architectures"] = {architecture};
  config["num_labels"] = 3;
  write_config(structure, config);
  ModelRequest request;
  request.folder = structure;
  request.random_init = true;
  request.seed = 5;
  save_model(load_model(request), folder);
  config["architectures"] = classifier;
  config["num_labels"] = labels;
  write_config(folder, config);
  return folder;
}

ModelRequest with_new_head(const fs::path& folder, uint64_t seed = 9) {
  ModelRequest request;
  request.folder = folder;
  request.root = "student";
  request.new_head = true;
  request.seed = seed;
  return request;
}

ModelRequest all_drawn(const fs::path& folder, uint64_t seed) {
  ModelRequest request = with_new_head(folder, seed);
  request.new_head = false;
  request.random_init = true;
  return request;
}

struct Start {
  std::string family, architecture;
  std::vector<std::string> drawn;
};

TEST(NewHead, DrawsTheLastLayerAndWhatTheFolderLacksBeforeIt) {
  const std::vector<std::string> last = {"classifier.weight", "classifier.bias"};
  const std::vector<Start> starts = {
      {"bert", "BertModel", last},
      {"bert", "BertForSequenceClassification", last},
      {"bert", "BertForMaskedLM", {"bert.pooler.dense.weight", "bert.pooler.dense.bias", last[0], last[1]}},
      {"distilbert", "DistilBertForSequenceClassification", last},
      {"distilbert", "DistilBertModel", {"pre_classifier.weight", "pre_classifier.bias", last[0], last[1]}}};
  for (const Start& start : starts) {
    SCOPED_TRACE(start.architecture);
    const fs::path folder = saved_as(start.family, start.architecture, 7);
    const BuiltModel built = load_model(with_new_head(folder));
    auto said = built.report.drawn, wanted = start.drawn;
    std::sort(said.begin(), said.end()), std::sort(wanted.begin(), wanted.end());
    EXPECT_EQ(said, wanted);
    // What is drawn is what the whole model would have drawn; what is read is what another seed draws nothing of.
    const auto got = built.model->named_parameters();
    const auto fresh = load_model(all_drawn(folder, 9)).model->named_parameters();
    const auto other = load_model(with_new_head(folder, 10)).model->named_parameters();
    EXPECT_EQ(got["classifier.weight"].sizes(), at::IntArrayRef({7, 32}));
    for (const WeightBinding& binding : built.report.bindings) {
      const bool drawn = std::find(wanted.begin(), wanted.end(), binding.name) != wanted.end();
      const std::string key = binding.path.substr(std::string("student.").size());
      const bool constant = got[key].eq(got[key].flatten()[0]).all().item<bool>();  // biases and norms
      EXPECT_EQ(got[key].equal(fresh[key]), drawn || constant) << key;
      EXPECT_EQ(got[key].equal(other[key]), !drawn || constant) << key;
    }
  }
}

TEST(NewHead, WithoutItWhatIsMissingSaysWhatToType) {
  ModelRequest request = with_new_head(saved_as("bert", "BertModel", 4));
  request.new_head = false;
  test::expect_refusal<WeightsError>(
      [&] { load_model(request); }, ExitCode::kWeights,
      {"[student] 2 tensors are missing from the checkpoint: classifier.weight", "student.init = new_head draws"});
}

TEST(NewHead, AnEncoderThatLacksAnythingIsRefusedAllTheSame) {
  const fs::path folder = saved_as("bert", "BertModel", 4);
  nlohmann::json config = config_in(folder);
  config["num_hidden_layers"] = 3;
  write_config(folder, config);
  test::expect_refusal<WeightsError>([&] { load_model(with_new_head(folder)); }, ExitCode::kWeights,
                                     {"tensors are missing from the checkpoint: ", "encoder.layer.2."});
}

TEST(NewHead, AModelWithoutAClassifierIsRefusedOnMetaToo) {
  for (const auto& [family, architecture] :
       {std::pair<std::string, std::string>{"bert", "BertModel"}, {"bert", "BertForMaskedLM"}}) {
    const fs::path folder = test::tiny_model(family);
    nlohmann::json config = config_in(folder);
    config["architectures"] = {architecture};
    write_config(folder, config);
    test::expect_refusal<UsageError>([&] { build_on_meta(with_new_head(folder)); }, ExitCode::kUsage,
                                     {"[student] ", "config.json is of no classifier", "tools/as_classifier.py"});
  }
}

}  // namespace
}  // namespace limbeck::models
