// Raw weights files for tests, byte by byte: what no writer of ours would produce.
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "modules/errors.h"
#include "tests/support/temporary_folder.h"

namespace limbeck::test {

void write_bytes(const std::filesystem::path& path, const std::string& bytes);
std::string read_bytes(const std::filesystem::path& path);
std::string length_prefix(uint64_t length);
// Length prefix, header text as given, payload_bytes zeros.
std::string weights_file(const std::string& header, size_t payload_bytes);
// A valid file with one F32 tensor of two elements under each name.
std::string weights_file_of(const std::vector<std::string>& names);
std::string index_text(const std::vector<std::pair<std::string, std::string>>& weight_map,
                       const std::string& more = "");

// Runs action; it must throw exactly Expected, with the exit code, every part in the message, and one line of it.
template <typename Expected, typename Action>
void expect_refusal(Action action, ExitCode code, const std::vector<std::string>& parts) {
  try {
    action();
    ADD_FAILURE() << "was accepted, wanted a refusal with: " << (parts.empty() ? "" : parts[0]);
  } catch (const Expected& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.code(), code) << message;
    for (const std::string& part : parts) EXPECT_NE(message.find(part), message.npos) << message << "\nlacks: " << part;
    EXPECT_EQ(message.find('\n'), message.npos) << message;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "wrong exception type: " << error.what();
  }
}

}  // namespace limbeck::test
