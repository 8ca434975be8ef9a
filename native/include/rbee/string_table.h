// Numbers by strings, looked up several times for each word of a text.
//
// Owns the strings and the hash table. Does not know tokens.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace rbee {

/// Numbers by strings: a hash table with open addressing, which keeps the strings.
class StringTable {
public:
    static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

    explicit StringTable(std::size_t most) {
        std::size_t size = 2;
        while (size < 2 * most) {
            size *= 2;
        }
        entries_.assign(size, Entry{0, 0, kNone});
    }

    /// No more than `most`. Of a string that is there twice the later number counts.
    void add(std::string_view text, std::uint32_t number) {
        entries_[find(text)] = {static_cast<std::uint32_t>(texts_.size()), static_cast<std::uint32_t>(text.size()),
                                number};
        texts_ += text;
    }

    std::uint32_t get(std::string_view text) const { return entries_[find(text)].number; }

private:
    struct Entry {
        std::uint32_t start, size, number;
    };

    static std::uint64_t mixed(std::uint64_t hash) {
        hash = (hash ^ hash >> 29) * 0xBF58476D1CE4E5B9U;
        return hash ^ hash >> 32;
    }

    static std::uint64_t hash_of(std::string_view text) {
        std::uint64_t hash = text.size();
        while (!text.empty()) {
            std::uint64_t eight = 0;
            const std::size_t size = std::min<std::size_t>(text.size(), sizeof(eight));
            std::memcpy(&eight, text.data(), size);
            hash = mixed(hash ^ eight);
            text.remove_prefix(size);
        }
        return hash;
    }

    /// Where `text` is, or would be.
    std::size_t find(std::string_view text) const {
        std::size_t place = hash_of(text) & (entries_.size() - 1);
        while (entries_[place].number != kNone &&
               std::string_view(texts_).substr(entries_[place].start, entries_[place].size) != text) {
            place = (place + 1) & (entries_.size() - 1);
        }
        return place;
    }

    std::vector<Entry> entries_;
    std::string texts_;
};

}  // namespace rbee
