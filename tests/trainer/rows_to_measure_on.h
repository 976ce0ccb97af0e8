// Six documents of so many tokens, a row each, to measure a model of 90 tokens or more on.
#pragma once
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "tests/support/token_shards.h"
#include "trainer/data/data_source.h"

namespace limbeck::test {

inline std::unique_ptr<data::DataSource> rows_to_measure_on(const std::string& name, int tokens) {
  TokenSet set;
  set.vocabulary = 90;
  set.shards.resize(1);
  for (int document = 0; document < 6; ++document) {
    TokenDocument& written = set.shards[0].emplace_back();
    for (int i = 0; i < tokens; ++i) written.ids.push_back((7 * document + 5 * i * i) % 90);
  }
  data::DataRequest asked;
  asked.folder = std::filesystem::path(::testing::TempDir()) / name;
  std::filesystem::remove_all(asked.folder);
  std::filesystem::create_directories(asked.folder);
  write_token_set(asked.folder, set);
  asked.origin = "data";
  asked.batch_size = 1;
  asked.sequence_length = 16;
  asked.packing = data::Packing::kPadded;
  asked.shuffle = false;
  return std::make_unique<data::DataSource>(asked);
}

}  // namespace limbeck::test
