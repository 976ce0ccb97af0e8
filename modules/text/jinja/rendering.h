// A template, read once and rendered as often as wanted: Jinja2 as transformers sets it up for chats.
#pragma once
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "modules/text/jinja/work.h"

namespace limbeck::text::jinja {

class Source {
 public:
  // `where` names the template in messages.
  Source(std::string_view text, std::string where, const Limits& limits = {});
  ~Source();
  Source(Source&&) noexcept;
  Source& operator=(Source&&) noexcept;

  // `subject` names what is rendered in messages.
  std::string render(const nlohmann::ordered_json& variables, const std::string& subject = "") const;

 private:
  struct Tree;
  std::unique_ptr<Tree> tree_;
};

}  // namespace limbeck::text::jinja
