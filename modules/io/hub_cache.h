// A model named as on the hub, ORG/NAME or ORG/NAME@REVISION, found among what `hf download` left on this machine:
// nothing is fetched. Names and refs are untrusted: none leads out of the cache, and no link is followed to a snapshot
// (the links inside a snapshot are InputFile's matter).
#pragma once
#include <filesystem>
#include <optional>
#include <string>

namespace limbeck::io {

struct HubName {
  std::string organisation, name, revision;  // revision: a branch, tag or commit; "main" when none is given
};

std::optional<HubName> parse_hub_name(const std::string& text);  // none: it is no such name
std::filesystem::path hub_cache_folder();                        // by HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HOME
std::optional<std::filesystem::path> find_snapshot(const HubName& name);  // WeightsError: a damaged cache
// Where was looked, and what to type.
std::string absent_snapshot(const HubName& name, const std::filesystem::path& local);

}  // namespace limbeck::io
