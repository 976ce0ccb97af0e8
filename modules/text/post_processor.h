// The "post_processor" of a tokenizer.json for one text: the special tokens that stand before and behind it.
#pragma once
#include "modules/io/json_file.h"
#include "modules/text/token_model.h"

namespace limbeck::text {

struct Frame {
  Ids before, behind;
};

Frame read_post_processor(const io::JsonFile& from, int depth = 0);

}  // namespace limbeck::text
