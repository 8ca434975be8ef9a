// Which merge makes each piece of a SentencePiece vocabulary, which has scores and no merges.
//
// Owns the decision. Does not know scores: pieces come in their order.
//
// Two neighbours merge if together they are a piece, the best piece first, and the leftmost of equals. A merge across an
// edge of a piece's characters would keep that piece from being made. So what happens inside of it until it is made does
// not depend on the text around it, and its last merge is always the one that happens when its characters are the whole
// text. That merge joins shorter pieces, of which the same is true: from the shortest piece on, each decision needs
// those before it only.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string_view>
#include <unordered_map>
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

    /// Merge the characters of `text` until two parts are left.
    void decide(std::string_view text, std::uint32_t rank) {
        starts_.clear();
        for (std::size_t i = 0; i < text.size(); ++i) {
            if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) {  // not inside a character
                starts_.push_back(i);
            }
        }
        if (starts_.size() < 2) {
            characters_.emplace(text, rank);
            return;
        }
        parts_.clear();
        offers_.clear();
        for (std::size_t i = 0; i < starts_.size(); ++i) {
            const std::size_t end = i + 1 < starts_.size() ? starts_[i + 1] : text.size();
            const auto found = characters_.find(text.substr(starts_[i], end - starts_[i]));
            if (found == characters_.end()) {
                return;
            }
            parts_.push_back(found->second);
            if (i > 0) {
                offers_.push_back(pairs_.rank(parts_[i - 1], parts_[i]));
            }
        }
        while (parts_.size() > 2) {
            const auto best = std::min_element(offers_.begin(), offers_.end());
            if (*best == kNone) {
                return;
            }
            const auto left = best - offers_.begin();
            parts_[static_cast<std::size_t>(left)] = *best;
            parts_.erase(parts_.begin() + left + 1);
            starts_.erase(starts_.begin() + left + 1);
            offers_.erase(best);
            for (const auto i : {left - 1, left}) {
                if (i >= 0 && i < static_cast<std::ptrdiff_t>(offers_.size())) {
                    const auto part = static_cast<std::size_t>(i);
                    offers_[part] = pairs_.rank(parts_[part], parts_[part + 1]);
                }
            }
        }
        cuts_[rank] = starts_[1];
        pairs_.add(parts_[0], parts_[1], rank);
    }

    std::vector<std::size_t> cuts_;
    std::unordered_map<std::string_view, std::uint32_t> characters_;  // pieces of one character
    Pairs pairs_;                                                     // of the pieces that are decided
    // Of the text at hand.
    std::vector<std::uint32_t> parts_;   // their ranks
    std::vector<std::size_t> starts_;    // where they begin
    std::vector<std::uint32_t> offers_;  // for each part but the last: what it and the next one merge to
};

}  // namespace rbee
