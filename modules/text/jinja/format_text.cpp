#include "modules/text/jinja/format_text.h"

#include <algorithm>

#include "modules/io/tensor_name.h"
#include "modules/text/jinja/lookup.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

std::string shown_field(const std::string& name) {
  return io::in_quotes(std::string(1, '{').append(name).append(1, '}'));
}

class PercentFormat {
 public:
  PercentFormat(Work& work, const std::string& format, const Value& values) : work_(work), format_(format) {
    const auto* items = values.as<Sequence>();
    if (items != nullptr && (*items)->kind == SequenceKind::kTuple) {
      items_ = (*items)->items;
    } else {
      items_ = {values};
      // What Python could subscribe may be left over.
      lenient_ =
          values.is<Dict>() || values.is<Undefined>() || (items != nullptr && (*items)->kind <= SequenceKind::kRange);
      if (values.is<Dict>()) names_ = &values;
    }
  }

  std::string run() {
    while (at_ < format_.size()) {
      const char c = format_[at_++];
      if (c == '%')
        directive();
      else
        out_ += c;
    }
    if (next_ < items_.size() && !lenient_) work_.refuse("not all arguments are converted by a text with %");
    return std::move(out_);
  }

 private:
  void directive() {
    const bool named = at_ < format_.size() && format_[at_] == '(';
    Value value;
    if (named) value = by_name();
    if (at_ == format_.size()) work_.refuse("a text with % ends in the middle of it");
    const char kind = format_[at_++];
    if (kind == '%') {
      if (named) work_.refuse_unsupported("%(name)%");
      out_ += '%';
      return;
    }
    if (kind != 's' && kind != 'r' && kind != 'd' && kind != 'i')
      work_.refuse_unsupported("the % format " + io::in_quotes(std::string_view(format_).substr(at_ - 1, 8)));
    if (!named) value = by_order();
    const std::string part = kind == 's' ? to_text(work_, value) : kind == 'r' ? to_repr(work_, value) : integer(value);
    work_.make(part.size());
    out_ += part;
  }
  Value by_name() {
    const size_t end = format_.find(')', at_);
    if (end == format_.npos || names_ == nullptr) work_.refuse("a text with %(name) wants a dict");
    const Value key = text(work_, format_.substr(at_ + 1, end - at_ - 1));
    const Value* found = find(work_, **names_->as<Dict>(), key);
    if (found == nullptr) work_.refuse("a text with % names " + to_repr(work_, key) + ", which the dict lacks");
    at_ = end + 1;
    lenient_ = true;
    return *found;
  }
  Value by_order() {
    if (next_ == items_.size()) work_.refuse("not enough arguments for a text with %");
    return items_[next_++];
  }
  std::string integer(const Value& value) {
    if (const auto number = integer_of(value)) return std::to_string(*number);
    const auto* number = value.as<double>();
    if (number == nullptr) work_.refuse("%d wanted a number, got a " + type_name(value));
    if (!(*number > -9e18 && *number < 9e18)) work_.refuse("%d of a float beyond 64 bits");
    return std::to_string(static_cast<int64_t>(*number));
  }

  Work& work_;
  const std::string& format_;
  Items items_;
  const Value* names_ = nullptr;
  bool lenient_ = false;
  size_t at_ = 0, next_ = 0;
  std::string out_;
};

class BraceFormat {
 public:
  BraceFormat(Work& work, const std::string& format, const Arguments& arguments)
      : work_(work), format_(format), arguments_(arguments) {}

  std::string run() {
    while (at_ < format_.size()) {
      const char c = format_[at_++];
      const bool doubled = at_ < format_.size() && format_[at_] == c;
      if ((c == '{' || c == '}') && doubled) {
        out_ += c;
        ++at_;
      } else if (c == '{') {
        field();
      } else if (c == '}') {
        work_.refuse("str.format: a single '}'");
      } else {
        out_ += c;
      }
    }
    return std::move(out_);
  }

 private:
  void field() {
    const size_t end = format_.find('}', at_);
    if (end == format_.npos) work_.refuse("str.format: a '{' without its '}'");
    std::string name = format_.substr(at_, end - at_);
    at_ = end + 1;
    const size_t extra = name.find_first_of(":{");
    if (extra != name.npos) work_.refuse_unsupported("the format " + shown_field(name));
    bool repr = false;
    if (const size_t mark = name.find('!'); mark != name.npos) {
      const std::string kind = name.substr(mark + 1);
      if (kind != "r" && kind != "s") work_.refuse_unsupported("the format " + shown_field(name));
      repr = kind == "r";
      name.erase(mark);
    }
    const Value value = of(name);
    const std::string part = repr ? to_repr(work_, value) : to_text(work_, value);
    work_.make(part.size());
    out_ += part;
  }
  Value of(const std::string& name) {
    const size_t rest = std::min(name.find_first_of(".["), name.size());
    if (rest != name.size()) work_.refuse_unsupported("the format " + shown_field(name));
    const bool digits =
        !name.empty() && std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (name.empty() || digits) {
      if (digits ? next_ > 0 : by_number_) work_.refuse("str.format: fields with and without numbers");
      by_number_ = digits;
      bool too_big = false;
      const size_t index = digits ? static_cast<size_t>(parse_integer(name, 10, too_big).value_or(0)) : next_++;
      if (too_big || index >= arguments_.positional.size()) work_.refuse("str.format: too few arguments");
      return arguments_.positional[index];
    }
    for (const auto& [known, value] : arguments_.named) {
      if (known == name) return value;
    }
    work_.refuse("str.format: no argument is called " + io::in_quotes(name));
  }

  Work& work_;
  const std::string& format_;
  const Arguments& arguments_;
  bool by_number_ = false;
  size_t at_ = 0, next_ = 0;
  std::string out_;
};

}  // namespace

std::string format_percent(Work& work, const std::string& format, const Value& values) {
  return PercentFormat(work, format, values).run();
}

std::string format_braces(Work& work, const std::string& format, const Arguments& arguments) {
  return BraceFormat(work, format, arguments).run();
}

}  // namespace limbeck::text::jinja
