// Token ids of a text by a byte-level byte-pair vocabulary, as the `tokenizers` library has them.
//
// Owns the merges, the words that are one token, and the tokens that are found in a text before it is cut into words.
// Keeps nothing of a text: how long one takes tells nothing of those before it. Does not know where words end.
//
// In a word the two neighbours merge that come first in the list of merges, the leftmost of equals, until none do. n
// bytes take n log n steps, whatever they are; a short word takes n * n, which are fewer.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rbee/string_table.h"
#include "rbee/words.h"

namespace rbee {

/// Two tokens that become one.
struct Merge {
    std::uint32_t left, right, merged;
};

/// What two tokens merge to, and how soon.
class MergeTable {
public:
    static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

    /// The first merge is the soonest. Of one that is there twice the later place counts.
    explicit MergeTable(const std::vector<Merge>& merges) {
        std::size_t size = 2;
        while (size < 2 * merges.size()) {
            size *= 2;
        }
        entries_.assign(size, Entry{0, 0, kNone});
        merged_.reserve(merges.size());
        for (const auto& [left, right, merged] : merges) {
            entries_[find(left, right)] = {left, right, static_cast<std::uint32_t>(merged_.size())};
            merged_.push_back(merged);
        }
    }

    /// The place of this merge among all; kNone if there is none.
    std::uint32_t rank(std::uint32_t left, std::uint32_t right) const { return entries_[find(left, right)].rank; }

    /// What the merge at that place makes.
    std::uint32_t merged(std::uint32_t rank) const { return merged_[rank]; }

private:
    struct Entry {
        std::uint32_t left, right;
        std::uint32_t rank;  // kNone: the entry is free
    };

    std::size_t find(std::uint32_t left, std::uint32_t right) const {
        std::uint64_t hash = std::uint64_t{left} << 32 | right;
        hash = (hash ^ hash >> 29) * 0xBF58476D1CE4E5B9U;
        std::size_t place = (hash ^ hash >> 32) & (entries_.size() - 1);
        while (entries_[place].rank != kNone && (entries_[place].left != left || entries_[place].right != right)) {
            place = (place + 1) & (entries_.size() - 1);
        }
        return place;
    }

    std::vector<Entry> entries_;
    std::vector<std::uint32_t> merged_;
};

/// A token that stands for itself wherever a text has it.
struct AddedToken {
    std::string content;  // not empty
    std::uint32_t token_id;
};

/// A token as its bytes.
struct ByteToken {
    std::string bytes;
    std::uint32_t token_id;
};

class BytePairs {
public:
    static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

    /// `tokens`: no two the same. Bytes that are none of them become nothing. `removed`: bytes that become nothing
    /// either, and over which nothing merges. `ignore_merges`: a word that is a token stays one. `only_composed`: a text
    /// that might change in Unicode's form NFC is not encoded.
    BytePairs(Words words, const std::vector<ByteToken>& tokens, const std::vector<Merge>& merges,
              std::vector<AddedToken> added, std::string removed, bool ignore_merges, bool only_composed)
        : words_(std::move(words)),
          merges_(merges),
          whole_words_(tokens.size()),
          added_(std::move(added)),
          removed_(std::move(removed)),
          only_composed_(only_composed) {
        byte_ids_.fill(kNone);
        for (const auto& [bytes, token_id] : tokens) {
            if (bytes.size() == 1) {
                byte_ids_[static_cast<unsigned char>(bytes[0])] = token_id;
            }
        }
        std::sort(added_.begin(), added_.end(),
                  [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
        for (const AddedToken& token : added_) {
            AddedRange& range = added_from_[static_cast<unsigned char>(token.content[0])];
            range = {range.first == nullptr ? &token : range.first, &token + 1};
        }
        Scratch scratch;
        std::vector<std::uint32_t> ids;
        for (const auto& [bytes, token_id] : tokens) {
            if (bytes.empty()) {  // no word
                continue;
            }
            if (!ignore_merges) {
                if (bytes.size() > kLongestWhole) {
                    continue;
                }
                ids.clear();
                merge(bytes, scratch, ids);
                if (ids.size() != 1 || ids[0] != token_id) {
                    continue;
                }
            }
            whole_words_.add(bytes, token_id);
        }
    }
    BytePairs(const BytePairs&) = delete;
    BytePairs& operator=(const BytePairs&) = delete;

    /// Append the token ids of `text`, which is valid UTF-8. False, without any, if NFC might change it.
    bool encode(std::string_view text, std::vector<std::uint32_t>& ids) const {
        if (only_composed_ && !is_composed(text)) {
            return false;
        }
        Scratch scratch;
        std::size_t start = 0;
        for (std::size_t place = 0; place < text.size();) {
            const AddedToken* const found = added_at(text, place);
            if (found == nullptr) {
                ++place;
                continue;
            }
            encode_words(text.substr(start, place - start), scratch, ids);
            ids.push_back(found->token_id);
            start = place += found->content.size();
        }
        encode_words(text.substr(start), scratch, ids);
        return true;
    }

private:
    static constexpr std::size_t kLongestWhole = 32;  // bytes: longer words are merged, or all would be tried at first
    static constexpr std::size_t kShort = 32;         // bytes: of such a word all ranks are looked at for each merge

    /// A token in a word; it begins as one byte, whose number it keeps.
    struct Part {
        std::size_t before, next;
        std::uint32_t token_id;
        std::uint32_t rank;  // of the merge with the next part; kNone if there is none
    };

    /// Memory of one call.
    struct Scratch {
        std::vector<Part> parts;
        std::vector<std::uint64_t> queue;  // a heap of (rank, part), the soonest and leftmost first
        std::vector<std::uint32_t> ranks;  // of a short word: of the merge of each part with the next one
    };

    /// Added tokens that lie one behind the other.
    struct AddedRange {
        const AddedToken *first, *end;
    };

    /// The longest added token that begins at `place`. Their number hardly counts: many models have hundreds, which all
    /// begin with the same character.
    const AddedToken* added_at(std::string_view text, std::size_t place) const {
        auto [first, end] = added_from_[static_cast<unsigned char>(text[place])];  // those that the text may have here
        const AddedToken* longest = nullptr;
        for (std::size_t size = 1; first != end; ++size) {
            if (first->content.size() == size) {  // it comes before those that it begins
                longest = first++;
            }
            if (place + size == text.size()) {
                break;
            }
            const auto byte_of = [size](const AddedToken& token) {
                return static_cast<unsigned char>(token.content[size]);
            };
            const auto wanted = static_cast<unsigned char>(text[place + size]);
            first = std::partition_point(first, end, [&](const AddedToken& each) { return byte_of(each) < wanted; });
            if (first == end || byte_of(*first) != wanted) {
                break;
            }
            end = std::partition_point(first, end, [&](const AddedToken& each) { return byte_of(each) == wanted; });
        }
        return longest;
    }

    void encode_words(std::string_view text, Scratch& scratch, std::vector<std::uint32_t>& ids) const {
        words_.each(text, [&](std::string_view word) {
            if (removed_.empty()) {
                encode_word(word, scratch, ids);
                return;
            }
            for (std::size_t start = 0; start < word.size();) {
                const std::size_t end = std::min(word.find_first_of(removed_, start), word.size());
                encode_word(word.substr(start, end - start), scratch, ids);
                start = end + 1;
            }
        });
    }

    void encode_word(std::string_view word, Scratch& scratch, std::vector<std::uint32_t>& ids) const {
        if (const std::uint32_t whole = whole_words_.get(word); whole != kNone) {
            ids.push_back(whole);
        } else {
            merge(word, scratch, ids);
        }
    }

    /// Append the token ids of a word.
    void merge(std::string_view word, Scratch& scratch, std::vector<std::uint32_t>& ids) const {
        if (word.size() <= kShort) {
            merge_short(word, scratch.ranks, ids);
        } else {
            merge_long(word, scratch, ids);
        }
    }

    void merge_short(std::string_view word, std::vector<std::uint32_t>& ranks, std::vector<std::uint32_t>& ids) const {
        const std::size_t start = ids.size();
        for (const char byte : word) {
            if (const std::uint32_t token_id = byte_ids_[static_cast<unsigned char>(byte)]; token_id != kNone) {
                ids.push_back(token_id);
            }
        }
        ranks.clear();
        for (std::size_t i = start; i + 1 < ids.size(); ++i) {
            ranks.push_back(merges_.rank(ids[i], ids[i + 1]));
        }
        while (!ranks.empty()) {
            const auto best = std::min_element(ranks.begin(), ranks.end());
            if (*best == kNone) {
                break;
            }
            const auto merged = ids.begin() + static_cast<std::ptrdiff_t>(start) + (best - ranks.begin());
            *merged = merges_.merged(*best);
            ids.erase(merged + 1);
            const auto next = ranks.erase(best);
            if (next != ranks.end()) {
                *next = merges_.rank(*merged, merged[1]);
            }
            if (next != ranks.begin()) {
                next[-1] = merges_.rank(merged[-1], *merged);
            }
        }
    }

    void merge_long(std::string_view word, Scratch& scratch, std::vector<std::uint32_t>& ids) const {
        auto& parts = scratch.parts;
        auto& queue = scratch.queue;
        parts.clear();
        queue.clear();
        for (const char byte : word) {
            const std::uint32_t token_id = byte_ids_[static_cast<unsigned char>(byte)];
            if (token_id != kNone) {
                parts.push_back({parts.size() - 1, parts.size() + 1, token_id, kNone});
            }
        }
        for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
            if ((parts[i].rank = merges_.rank(parts[i].token_id, parts[i + 1].token_id)) != kNone) {
                queue.push_back(offer_of(parts[i], i));
            }
        }
        std::make_heap(queue.begin(), queue.end(), std::greater<>());
        while (!queue.empty()) {
            const std::uint64_t best = queue.front();
            std::pop_heap(queue.begin(), queue.end(), std::greater<>());
            queue.pop_back();
            const std::size_t left = best & 0xFFFFFFFFU;
            if (offer_of(parts[left], left) == best) {  // else one of the two has merged with another part since
                join(left, scratch);
            }
        }
        for (std::size_t i = 0; i < parts.size(); i = parts[i].next) {
            ids.push_back(parts[i].token_id);
        }
    }

    static std::uint64_t offer_of(const Part& part, std::size_t place) {
        return std::uint64_t{part.rank} << 32 | place;
    }

    void join(std::size_t left, Scratch& scratch) const {
        auto& parts = scratch.parts;
        Part& part = parts[left];
        Part& right = parts[part.next];
        part.token_id = merges_.merged(part.rank);
        part.next = right.next;
        right.rank = kNone;
        if (part.next < parts.size()) {
            parts[part.next].before = left;
        }
        offer(left, scratch);
        if (left > 0) {
            offer(part.before, scratch);
        }
    }

    /// Look for the merge of this part and the next one.
    void offer(std::size_t left, Scratch& scratch) const {
        const auto& parts = scratch.parts;
        Part& part = scratch.parts[left];
        part.rank = part.next < parts.size() ? merges_.rank(part.token_id, parts[part.next].token_id) : kNone;
        if (part.rank != kNone) {
            scratch.queue.push_back(offer_of(part, left));
            std::push_heap(scratch.queue.begin(), scratch.queue.end(), std::greater<>());
        }
    }

    /// Whether all characters are of blocks in which NFC changes nothing, in every version of Unicode.
    static bool is_composed(std::string_view text) {
        static constexpr std::uint32_t kBlocks[][2] = {
            {0x0000, 0x02FF}, {0x0400, 0x0482}, {0x048A, 0x052F}, {0x1E00, 0x1EFF},   {0x2010, 0x2027},
            {0x2030, 0x205E}, {0x20A0, 0x20BF}, {0x2190, 0x2194}, {0x2500, 0x25FF},   {0x2701, 0x27BF},
            {0x3000, 0x3029}, {0x3041, 0x3096}, {0x309B, 0x30FF}, {0x3400, 0x4DBF},   {0x4E00, 0x9FFF},
            {0xAC00, 0xD7A3}, {0xFE0F, 0xFE0F}, {0xFF01, 0xFFEE}, {0x1F300, 0x1FAFF},
        };
        for (std::size_t place = 0; place < text.size();) {
            const Character next = character_at(text, place);
            place = next.end;
            if (next.code <= kBlocks[0][1]) {
                continue;
            }
            const auto* const block = std::find_if(std::begin(kBlocks), std::end(kBlocks),
                                                   [&](const auto& of) { return next.code <= of[1]; });
            if (block == std::end(kBlocks) || next.code < (*block)[0]) {
                return false;
            }
        }
        return true;
    }

    Words words_;
    std::array<std::uint32_t, 256> byte_ids_{};
    MergeTable merges_;
    StringTable whole_words_;
    std::vector<AddedToken> added_;             // in the order of their bytes
    std::array<AddedRange, 256> added_from_{};  // those that begin with each byte
    std::string removed_;
    bool only_composed_;
};

}  // namespace rbee
