// Which merge makes each piece of a SentencePiece vocabulary, which has scores and no merges.
//
// Owns the decision. Does not know scores: pieces come in their order.
//
// Two neighbours merge if together they are a piece, the best piece first, and the leftmost of equals. A merge across an
// edge of a piece's characters would keep that piece from being made. So what happens inside of it until it is made does
// not depend on the text around it, and its last merge is always the one that happens when its characters are the whole
// text. That merge joins shorter pieces, of which the same is true: from the shortest piece on, each decision needs
// those before it only. n characters take n log n steps: a file may have tokens of any length.

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace rbee {

class Merges {
public:
    /// `pieces`: UTF-8, best first, no two the same. A piece's rank is its number in them.
    explicit Merges(const std::vector<std::string_view>& pieces) : cuts_(pieces.size(), 0), pairs_(pieces.size()) {
        std::vector<std::uint32_t> order(pieces.size());
        std::iota(order.begin(), order.end(), 0U);
        std::stable_sort(order.begin(), order.end(),
                         [&](std::uint32_t a, std::uint32_t b) { return pieces[a].size() < pieces[b].size(); });
        for (const std::uint32_t rank : order) {
            decide(pieces[rank], rank);
        }
    }

    /// By rank: where in the piece, in bytes, the two parts meet that its merge joins; 0 if no merge makes it.
    const std::vector<std::size_t>& cuts() const { return cuts_; }

private:
    static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

    /// The piece that a pair of pieces merges to: a hash table with open addressing.
    class Pairs {
    public:
        explicit Pairs(std::size_t most) {
            std::size_t size = 2;
            while (size < 2 * most) {
                size *= 2;
            }
            keys_.assign(size, kEmpty);
            ranks_.assign(size, kNone);
        }

        void add(std::uint32_t left, std::uint32_t right, std::uint32_t rank) {
            const std::size_t place = find(key_of(left, right));
            keys_[place] = key_of(left, right);
            ranks_[place] = rank;
        }

        /// kNone if the two merge to nothing.
        std::uint32_t rank(std::uint32_t left, std::uint32_t right) const { return ranks_[find(key_of(left, right))]; }

    private:
        static constexpr std::uint64_t kEmpty = std::numeric_limits<std::uint64_t>::max();

        static std::uint64_t key_of(std::uint32_t left, std::uint32_t right) {
            return std::uint64_t{left} << 32 | right;
        }

        /// Where `key` is, or would be.
        std::size_t find(std::uint64_t key) const {
            std::uint64_t hash = (key ^ key >> 29) * 0xBF58476D1CE4E5B9U;
            hash ^= hash >> 32;
            std::size_t place = hash & (keys_.size() - 1);
            while (keys_[place] != key && keys_[place] != kEmpty) {
                place = (place + 1) & (keys_.size() - 1);
            }
            return place;
        }

        std::vector<std::uint64_t> keys_;
        std::vector<std::uint32_t> ranks_;
    };

    /// A piece in a text, by the number of its first character.
    struct Part {
        std::size_t start;  // in bytes
        std::size_t before, next;
        std::uint32_t rank;
        std::uint32_t offer;  // what it and the next part merge to; kNone if that is nothing
    };

    /// Merge the characters of `text` until two parts are left.
    void decide(std::string_view text, std::uint32_t rank) {
        parts_.clear();
        for (std::size_t start = 0, end = 0; start < text.size(); start = end) {
            end = start + 1;
            while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) {  // in a character
                ++end;
            }
            if (start == 0 && end == text.size()) {
                characters_.emplace(text, rank);
                return;
            }
            const auto found = characters_.find(text.substr(start, end - start));
            if (found == characters_.end()) {
                return;
            }
            parts_.push_back({start, parts_.size() - 1, parts_.size() + 1, found->second, kNone});
        }
        queue_.clear();
        for (std::size_t i = 0; i + 1 < parts_.size(); ++i) {
            offer(i);
        }
        std::size_t left_over = parts_.size();
        while (left_over > 2 && !queue_.empty()) {
            const auto [best, left] = queue_.front();
            std::pop_heap(queue_.begin(), queue_.end(), std::greater<>());
            queue_.pop_back();
            if (parts_[left].offer == best) {  // else one of the two has merged with another part since
                merge(left);
                --left_over;
            }
        }
        if (left_over == 2) {
            const Part& second = parts_[parts_[0].next];
            cuts_[rank] = second.start;
            pairs_.add(parts_[0].rank, second.rank, rank);
        }
    }

    void merge(std::size_t left) {
        Part& part = parts_[left];
        parts_[part.next].offer = kNone;
        part.rank = part.offer;
        part.next = parts_[part.next].next;
        if (part.next < parts_.size()) {
            parts_[part.next].before = left;
        }
        offer(left);
        if (left > 0) {
            offer(part.before);
        }
    }

    /// Offer the merge of this part and the next one.
    void offer(std::size_t left) {
        Part& part = parts_[left];
        part.offer = part.next < parts_.size() ? pairs_.rank(part.rank, parts_[part.next].rank) : kNone;
        if (part.offer != kNone) {
            queue_.emplace_back(part.offer, left);
            std::push_heap(queue_.begin(), queue_.end(), std::greater<>());
        }
    }

    std::vector<std::size_t> cuts_;
    std::unordered_map<std::string_view, std::uint32_t> characters_;  // pieces of one character
    Pairs pairs_;                                                     // of the pieces that are decided
    // Of the text at hand.
    std::vector<Part> parts_;
    std::vector<std::pair<std::uint32_t, std::size_t>> queue_;  // a heap of offers, the best and leftmost first
};

}  // namespace rbee
