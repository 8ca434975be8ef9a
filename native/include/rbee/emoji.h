// Emoji at the end of a text that may still become other ones.
//
// Owns which characters belong to one emoji (Unicode Technical Standard 51): a pictograph with what follows it, several
// that are joined, the two halves of a flag. Does not know tokens, or when a text ends.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

namespace rbee {

/// Withholds an emoji until the next character shows that it is whole. Text that ends in none passes at once.
///
/// A digit with a keycap is no such emoji: every digit would wait.
class EmojiHold {
public:
    /// `out` ends in new text, from `from` on, which is whole characters of UTF-8. Puts what was held before in front of
    /// that, and takes off its end what may change.
    void push(std::string& out, std::size_t from) {
        if (held_.empty() && std::none_of(out.begin() + static_cast<std::ptrdiff_t>(from), out.end(), begins_here)) {
            return;
        }
        const std::string text = held_ + out.substr(from);
        out.resize(from);
        held_.clear();
        for (std::size_t i = 0; i < text.size();) {
            const std::size_t size = size_of(text[i]);
            const std::string_view character = std::string_view(text).substr(i, size);
            i += size;
            take(code_of(character), character, out);
        }
    }

    /// Appends what is held: no further character comes.
    void flush(std::string& out) {
        out += held_;
        held_.clear();
    }

private:
    static constexpr std::size_t kLongest = 64;  // bytes; the longest emoji that Unicode recommends has 35
    static constexpr char32_t kJoiner = 0x200d;

    /// Of characters below U+00A9 none is a pictograph.
    static bool begins_here(char byte) { return static_cast<unsigned char>(byte) >= 0xc2; }

    void take(char32_t code, std::string_view character, std::string& out) {
        const bool flag = is_half_flag(code) && held_.size() == character.size() && is_half_flag(last_);
        const bool joins = last_ == kJoiner && is_pictograph(code) && !is_half_flag(first_);
        if (!held_.empty() && (flag || extends(code) || joins)) {
            held_ += character;
            if (flag || held_.size() >= kLongest) {
                flush(out);
            }
        } else {
            flush(out);
            (is_pictograph(code) || is_half_flag(code) ? held_ : out) += character;
            first_ = code;
        }
        last_ = code;
    }

    static bool is_half_flag(char32_t code) { return code >= 0x1f1e6 && code <= 0x1f1ff; }

    /// Joiner, variation selectors, enclosing keycap, colours of skin, tags of flags.
    static bool extends(char32_t code) {
        return code == kJoiner || code == 0xfe0e || code == 0xfe0f || code == 0x20e3 ||
               (code >= 0x1f3fb && code <= 0x1f3ff) || (code >= 0xe0020 && code <= 0xe007f);
    }

    static bool is_pictograph(char32_t code) {
        const Range* after = std::upper_bound(std::begin(kPictographs), std::end(kPictographs), code,
                                              [](char32_t value, const Range& range) { return value < range.first; });
        return after != std::begin(kPictographs) && code <= std::prev(after)->last;
    }

    static std::size_t size_of(char first) {
        const auto byte = static_cast<unsigned char>(first);
        return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
    }

    static char32_t code_of(std::string_view character) {
        const std::size_t size = character.size();
        auto code = static_cast<char32_t>(static_cast<unsigned char>(character[0]));
        code &= size == 1 ? 0x7fU : 0xffU >> (size + 1);
        for (std::size_t i = 1; i < size; ++i) {
            code = code << 6U | (static_cast<unsigned char>(character[i]) & 0x3fU);
        }
        return code;
    }

    struct Range {
        char32_t first;
        char32_t last;
    };

    /// Extended_Pictographic of Unicode 17.
    static constexpr Range kPictographs[] = {
        {0x00a9, 0x00a9},   {0x00ae, 0x00ae},   {0x203c, 0x203c},   {0x2049, 0x2049},   {0x2122, 0x2122},
        {0x2139, 0x2139},   {0x2194, 0x2199},   {0x21a9, 0x21aa},   {0x231a, 0x231b},   {0x2328, 0x2328},
        {0x23cf, 0x23cf},   {0x23e9, 0x23f3},   {0x23f8, 0x23fa},   {0x24c2, 0x24c2},   {0x25aa, 0x25ab},
        {0x25b6, 0x25b6},   {0x25c0, 0x25c0},   {0x25fb, 0x25fe},   {0x2600, 0x2604},   {0x260e, 0x260e},
        {0x2611, 0x2611},   {0x2614, 0x2615},   {0x2618, 0x2618},   {0x261d, 0x261d},   {0x2620, 0x2620},
        {0x2622, 0x2623},   {0x2626, 0x2626},   {0x262a, 0x262a},   {0x262e, 0x262f},   {0x2638, 0x263a},
        {0x2640, 0x2640},   {0x2642, 0x2642},   {0x2648, 0x2653},   {0x265f, 0x2660},   {0x2663, 0x2663},
        {0x2665, 0x2666},   {0x2668, 0x2668},   {0x267b, 0x267b},   {0x267e, 0x267f},   {0x2692, 0x2697},
        {0x2699, 0x2699},   {0x269b, 0x269c},   {0x26a0, 0x26a1},   {0x26a7, 0x26a7},   {0x26aa, 0x26ab},
        {0x26b0, 0x26b1},   {0x26bd, 0x26be},   {0x26c4, 0x26c5},   {0x26c8, 0x26c8},   {0x26ce, 0x26cf},
        {0x26d1, 0x26d1},   {0x26d3, 0x26d4},   {0x26e9, 0x26ea},   {0x26f0, 0x26f5},   {0x26f7, 0x26fa},
        {0x26fd, 0x26fd},   {0x2702, 0x2702},   {0x2705, 0x2705},   {0x2708, 0x270d},   {0x270f, 0x270f},
        {0x2712, 0x2712},   {0x2714, 0x2714},   {0x2716, 0x2716},   {0x271d, 0x271d},   {0x2721, 0x2721},
        {0x2728, 0x2728},   {0x2733, 0x2734},   {0x2744, 0x2744},   {0x2747, 0x2747},   {0x274c, 0x274c},
        {0x274e, 0x274e},   {0x2753, 0x2755},   {0x2757, 0x2757},   {0x2763, 0x2764},   {0x2795, 0x2797},
        {0x27a1, 0x27a1},   {0x27b0, 0x27b0},   {0x27bf, 0x27bf},   {0x2934, 0x2935},   {0x2b05, 0x2b07},
        {0x2b1b, 0x2b1c},   {0x2b50, 0x2b50},   {0x2b55, 0x2b55},   {0x3030, 0x3030},   {0x303d, 0x303d},
        {0x3297, 0x3297},   {0x3299, 0x3299},   {0x1f004, 0x1f004}, {0x1f02c, 0x1f02f}, {0x1f094, 0x1f09f},
        {0x1f0af, 0x1f0b0}, {0x1f0c0, 0x1f0c0}, {0x1f0cf, 0x1f0d0}, {0x1f0f6, 0x1f0ff}, {0x1f170, 0x1f171},
        {0x1f17e, 0x1f17f}, {0x1f18e, 0x1f18e}, {0x1f191, 0x1f19a}, {0x1f1af, 0x1f1e5}, {0x1f201, 0x1f20f},
        {0x1f21a, 0x1f21a}, {0x1f22f, 0x1f22f}, {0x1f232, 0x1f23a}, {0x1f23c, 0x1f23f}, {0x1f249, 0x1f25f},
        {0x1f266, 0x1f321}, {0x1f324, 0x1f393}, {0x1f396, 0x1f397}, {0x1f399, 0x1f39b}, {0x1f39e, 0x1f3f0},
        {0x1f3f3, 0x1f3f5}, {0x1f3f7, 0x1f3fa}, {0x1f400, 0x1f4fd}, {0x1f4ff, 0x1f53d}, {0x1f549, 0x1f54e},
        {0x1f550, 0x1f567}, {0x1f56f, 0x1f570}, {0x1f573, 0x1f57a}, {0x1f587, 0x1f587}, {0x1f58a, 0x1f58d},
        {0x1f590, 0x1f590}, {0x1f595, 0x1f596}, {0x1f5a4, 0x1f5a5}, {0x1f5a8, 0x1f5a8}, {0x1f5b1, 0x1f5b2},
        {0x1f5bc, 0x1f5bc}, {0x1f5c2, 0x1f5c4}, {0x1f5d1, 0x1f5d3}, {0x1f5dc, 0x1f5de}, {0x1f5e1, 0x1f5e1},
        {0x1f5e3, 0x1f5e3}, {0x1f5e8, 0x1f5e8}, {0x1f5ef, 0x1f5ef}, {0x1f5f3, 0x1f5f3}, {0x1f5fa, 0x1f64f},
        {0x1f680, 0x1f6c5}, {0x1f6cb, 0x1f6d2}, {0x1f6d5, 0x1f6e5}, {0x1f6e9, 0x1f6e9}, {0x1f6eb, 0x1f6f0},
        {0x1f6f3, 0x1f6ff}, {0x1f7dc, 0x1f7f0}, {0x1f80c, 0x1f80f}, {0x1f848, 0x1f84f}, {0x1f85a, 0x1f85f},
        {0x1f888, 0x1f88f}, {0x1f8ae, 0x1f8af}, {0x1f8bc, 0x1f8bf}, {0x1f8c2, 0x1f8cf}, {0x1f8d9, 0x1f8ff},
        {0x1f90c, 0x1f93a}, {0x1f93c, 0x1f945}, {0x1f947, 0x1f9ff}, {0x1fa58, 0x1fa5f}, {0x1fa6e, 0x1faff},
        {0x1fc00, 0x1fffd},
    };

    std::string held_;
    char32_t first_ = 0;  // of what is held
    char32_t last_ = 0;   // the character that came last
};

}  // namespace rbee
