// Texts and vocabularies at random: the encoder merges as the rule says, and stays within its memory on all texts.

#include <map>
#include <memory>
#include <stdexcept>

#include "rbee/byte_pairs.h"
#include "rbee/byte_vocabulary.h"

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

/// A text in memory of its own size, so that AddressSanitizer sees a step beyond its end.
struct Exact {
    explicit Exact(std::string_view text) : copy(new char[text.size()]), view(copy.get(), text.size()) {
        std::copy(text.begin(), text.end(), copy.get());
    }

    std::unique_ptr<char[]> copy;
    std::string_view view;
};

std::vector<std::uint32_t> encoded(const BytePairs& pairs, const std::string& text) {
    std::vector<std::uint32_t> ids;
    CHECK(pairs.encode(Exact(text).view, ids));
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

/// The longest at each place, from the left, however they begin one another.
void added_tokens_are_found() {
    Random random{11};
    const std::vector<rbee::ByteToken> tokens = {{"a", 0}, {"b", 1}, {"\xC3", 2}, {"\xA9", 3}};
    const char* const pieces[] = {"a", "b", "\xC3\xA9"};
    const auto some = [&](std::uint32_t most) {
        std::string text;
        for (std::uint32_t length = 1 + random.below(most); length > 0; --length) {
            text += one_of(random, {pieces[0], pieces[1], pieces[2]});
        }
        return text;
    };
    for (std::uint32_t round = 0; round < repeats(400, 80); ++round) {
        std::map<std::string, std::uint32_t> by_content;
        for (std::uint32_t i = random.below(40); i > 0; --i) {
            by_content.emplace(some(6), 1000 + static_cast<std::uint32_t>(by_content.size()));
        }
        std::vector<rbee::AddedToken> added;
        for (const auto& [content, token_id] : by_content) {
            added.insert(added.begin() + random.below(static_cast<std::uint32_t>(added.size()) + 1),
                         {content, token_id});
        }
        const BytePairs pairs(rbee::Words(kRules[0]), tokens, {}, added, "", false, false);
        const std::string text = some(60);
        std::vector<std::uint32_t> expected;
        for (std::size_t place = 0; place < text.size();) {
            std::size_t size = text.size() - place;
            while (size > 0 && by_content.count(text.substr(place, size)) == 0) {
                --size;
            }
            const char byte = text[place];
            const std::uint32_t alone = byte == 'a' ? 0 : byte == 'b' ? 1 : byte == '\xC3' ? 2 : 3;
            expected.push_back(size == 0 ? alone : by_content[text.substr(place, size)]);
            place += std::max<std::size_t>(size, 1);
        }
        CHECK(encoded(pairs, text) == expected);
    }
}

constexpr std::string_view kVocabulary =
    R"( {"a":0 , "\u0120":1,"\u00e9\"\\\/\b\f\n\r\t":2,"\ud83d\udc1d": 4294967294,"\u0120a":4,"é":5,"":6} )";
constexpr std::string_view kMerges = R"(["#version: 0.2", "\u0120 a" ,["a", ""] , [ "\u0120","a" ]])";

void a_vocabulary_is_read_from_json() {
    const rbee::ByteVocabulary read(kVocabulary, kMerges);
    const std::pair<std::string, std::uint32_t> expected[] = {{"a", 0}, {" ", 1}, {" a", 4}, {"\xE9", 5}, {"", 6}};
    CHECK(read.tokens.size() == std::size(expected));
    for (std::size_t i = 0; i < read.tokens.size(); ++i) {
        CHECK(read.tokens[i].bytes == expected[i].first && read.tokens[i].token_id == expected[i].second);
    }
    CHECK(read.merges.size() == 3);
    CHECK(read.merges[0].left == 1 && read.merges[0].right == 0 && read.merges[0].merged == 4);
    CHECK(read.merges[1].left == 0 && read.merges[1].right == 6 && read.merges[1].merged == 0);
    CHECK(rbee::ByteVocabulary("{}", "[]").tokens.empty());
    std::string name;
    rbee::JsonReader(R"("\u00e9\"\\\/\b\f\n\r\t\uD83D\uDC1d\u4e2d")").string(name);
    CHECK(name == "\xC3\xA9\"\\/\b\f\n\r\t\xF0\x9F\x90\x9D\xE4\xB8\xAD");
}

bool is_refused(std::string_view vocabulary, std::string_view merges) {
    try {
        rbee::ByteVocabulary(Exact(vocabulary).view, Exact(merges).view);
        return false;
    } catch (const std::invalid_argument&) {
        return true;
    }
}

void no_vocabulary_leads_out_of_its_json() {
    const auto last = kVocabulary.find_last_of('}'), last_merge = kMerges.size() - 1;
    for (std::size_t size = 0; size <= last; ++size) {
        CHECK(is_refused(kVocabulary.substr(0, size), kMerges));
    }
    for (std::size_t size = 0; size <= last_merge; ++size) {
        CHECK(is_refused(kVocabulary, kMerges.substr(0, size)));
    }
    for (const char* const vocabulary : {"[]", R"({"a":4294967295})", R"({"a":-1})", R"({"a":"b"})", R"({"\x":1})"}) {
        CHECK(is_refused(vocabulary, "[]"));
    }
    for (const char* const merges : {"{}", R"(["ab"])", R"([["a"]])", R"([["a","b"]])", R"([1])"}) {
        CHECK(is_refused(kVocabulary, merges));
    }
    Random random{13};
    const std::string_view letters = "\"\\{}[],: u0d8\xFF\xC3";
    for (std::uint32_t round = 0; round < repeats(40000, 4000); ++round) {
        std::string vocabulary(kVocabulary), merges(kMerges);
        std::string& broken = random.below(2) == 0 ? vocabulary : merges;
        for (std::uint32_t changes = 1 + random.below(3); changes > 0; --changes) {
            broken[random.below(static_cast<std::uint32_t>(broken.size()))] =
                letters[random.below(static_cast<std::uint32_t>(letters.size()))];
        }
        is_refused(vocabulary, merges);  // or not: the sanitizers see what it reads
    }
}

}  // namespace

extern const Test kBytePairsTests[];
const Test kBytePairsTests[] = {
    {"words merge by the rule", words_merge_by_the_rule},
    {"the tokens of any text are the text", the_tokens_of_any_text_are_the_text},
    {"a long word takes little more than a short one", a_long_word_takes_little_more_than_a_short_one},
    {"added tokens are found", added_tokens_are_found},
    {"a vocabulary is read from JSON", a_vocabulary_is_read_from_json},
    {"no vocabulary leads out of its JSON", no_vocabulary_leads_out_of_its_json},
    {nullptr, nullptr}};
