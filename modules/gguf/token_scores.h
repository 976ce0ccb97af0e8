// Merges as the scores by which SentencePiece, and llama.cpp's "llama", joins tokens: of two neighbours that together
// are a token, those first whose token has the highest score. A list of merges says more than that, and is not always
// the same as its scores.
#pragma once
#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace limbeck::gguf {

using Merge = std::pair<std::string, std::string>;

struct TokenScores {
  std::unordered_map<std::string, float>
      of;  // by token, of those that a merge makes: 0, -1, -2 ... in the list's order
  // Pairs that scores would join and the list does not, or joins at another time than its token's first merge.
  size_t different = 0;
  Merge first_different;
};

// The first merge comes first. `tokens`: all that can be parts of others.
TokenScores token_scores(const std::vector<Merge>& merges, const std::vector<std::string>& tokens);

// The other way round: for each scored token all pairs of tokens that make it, the highest score first.
struct ScoredMerges {
  std::vector<Merge> merges;
  size_t ties = 0;  // scored tokens whose score another one has too: which is joined first, a list cannot say
};
// `scores`: of the tokens that joining may make. `parts`: by which order pairs of one token are told apart, their ids.
ScoredMerges merges_of_scores(const std::vector<std::pair<std::string, float>>& scores,
                              const std::unordered_map<std::string, int64_t>& parts);

}  // namespace limbeck::gguf
