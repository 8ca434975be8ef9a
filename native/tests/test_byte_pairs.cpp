// Texts and vocabularies at random: the encoder merges as the rule says, and stays within its memory on all texts.

#include <map>
#include <memory>

#include "rbee/byte_pairs.h"

#include "check.h"

namespace {

using rbee::BytePairs;

constexpr rbee::WordRule kRules[] = {
    {false, rbee::Contractions::small, 0, rbee::Alone::none},
    {false, rbee::Contractions::small, 0, rbee::Alone::digits},
    {true, rbee::Contractions::folded, 3, rbee::Alone::none},
    {true, rbee::Contractions::both_cases, 1, rbee::Alone::none},
};

/// All bytes, and tokens that merges of earlier ones make.
struct Vocabulary {
    explicit Vocabulary(Random& random) {
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            tokens.push_back({std::string(1, static_cast<char>(byte)), byte});
        }
        std::map<std::string, std::uint32_t> known;
        const std::string letters = "ab' 1\n";
        for (std::uint32_t i = 0; i < 60; ++i) {
            const auto some = [&] {
                const std::size_t late = tokens.size() - 256;
                const bool is_letter = late == 0 || random.below(2) == 0;
                return is_letter ? static_cast<unsigned char>(letters[random.below(6)])
                                 : 256 + random.below(static_cast<std::uint32_t>(late));
            };
            const std::uint32_t left = some(), right = some();
            const std::string joined = tokens[left].bytes + tokens[right].bytes;
            const auto [place, is_new] = known.emplace(joined, static_cast<std::uint32_t>(tokens.size()));
            if (is_new) {
                tokens.push_back({joined, place->second});
            }
            merges.push_back({left, right, place->second});
        }
    }

    /// The tokens of a word, by the rule itself: the soonest merge, the leftmost of equals, again and again.
    std::vector<std::uint32_t> merged(std::string_view word) const {
        std::map<std::pair<std::uint32_t, std::uint32_t>, std::size_t> ranks;
        for (std::size_t rank = 0; rank < merges.size(); ++rank) {
            ranks[{merges[rank].left, merges[rank].right}] = rank;
        }
        std::vector<std::uint32_t> ids;
        for (const char byte : word) {
            ids.push_back(static_cast<unsigned char>(byte));
        }
        for (;;) {
            std::size_t best = merges.size(), place = 0;
            for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
                const auto found = ranks.find({ids[i], ids[i + 1]});
                if (found != ranks.end() && found->second < best) {
                    best = found->second;
                    place = i;
                }
            }
            if (best == merges.size()) {
                return ids;
            }
            ids[place] = merges[best].merged;
            ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(place) + 1);
        }
    }

    std::vector<rbee::ByteToken> tokens;
    std::vector<rbee::Merge> merges;
};

/// In memory of its own size, so that AddressSanitizer sees a step beyond its end.
std::vector<std::uint32_t> encoded(const BytePairs& pairs, const std::string& text) {
    const std::unique_ptr<char[]> exact(new char[text.size()]);
    std::copy(text.begin(), text.end(), exact.get());
    std::vector<std::uint32_t> ids;
    CHECK(pairs.encode({exact.get(), text.size()}, ids));
    return ids;
}

void words_merge_by_the_rule() {
    Random random{5};
    for (std::uint32_t round = 0; round < repeats(200, 40); ++round) {
        const Vocabulary vocabulary(random);
        const BytePairs pairs(rbee::Words(kRules[0]), vocabulary.tokens, vocabulary.merges, {}, "", false, false);
        for (std::uint32_t i = 0; i < 20; ++i) {
            std::string word;
            for (std::uint32_t length = 1 + random.below(i < 18 ? 12 : 90); length > 0; --length) {
                word += one_of(random, {'a', 'b'});
            }
            CHECK(encoded(pairs, word) == vocabulary.merged(word));
        }
    }
}

void the_tokens_of_any_text_are_the_text() {
    Random random{9};
    const std::vector<rbee::AddedToken> added = {{"<a>", 1000}, {"<a>b", 1001}, {"<", 1002}};
    const char* const pieces[] = {"a",
                                  "b",
                                  "'",
                                  "s",
                                  "LL",
                                  " ",
                                  "\n",
                                  "\r",
                                  "1",
                                  "\xC2\xA0",
                                  "\xC5\xBF",
                                  "\xE4\xB8\xAD",
                                  "\xF0\x9F\x90\x9D",
                                  "\xF0\x91\xB7\xA1",
                                  "<a>",
                                  "<a",
                                  "<",
                                  "!",
                                  "\xCC\x81"};
    for (std::uint32_t round = 0; round < repeats(400, 80); ++round) {
        const Vocabulary vocabulary(random);
        const BytePairs pairs(rbee::Words(kRules[random.below(4)]), vocabulary.tokens, vocabulary.merges, added, "",
                              random.below(2) == 0, false);
        for (std::uint32_t i = 0; i < 20; ++i) {
            std::string text, read;
            for (std::uint32_t length = random.below(30); length > 0; --length) {
                text += pieces[random.below(static_cast<std::uint32_t>(std::size(pieces)))];
            }
            for (const std::uint32_t token_id : encoded(pairs, text)) {
                read += token_id >= 1000 ? added[token_id - 1000].content : vocabulary.tokens[token_id].bytes;
            }
            CHECK(read == text);
        }
    }
}

void a_long_word_takes_little_more_than_a_short_one() {
    Random random{3};
    const Vocabulary vocabulary(random);
    const BytePairs pairs(rbee::Words(kRules[2]), vocabulary.tokens, vocabulary.merges, {}, "", false, false);
    CHECK(!encoded(pairs, std::string(1 << 20, 'a')).empty());  // with n * n steps this would take hours
    CHECK(!encoded(pairs, std::string(1 << 20, ' ') + std::string(1 << 20, '\n')).empty());
}

}  // namespace

extern const Test kBytePairsTests[];
const Test kBytePairsTests[] = {
    {"words merge by the rule", words_merge_by_the_rule},
    {"the tokens of any text are the text", the_tokens_of_any_text_are_the_text},
    {"a long word takes little more than a short one", a_long_word_takes_little_more_than_a_short_one},
    {nullptr, nullptr}};
