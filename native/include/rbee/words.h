// Cuts a text into the words of a byte-pair vocabulary, which no token crosses.
//
// Owns two rules: GPT-2's, and the one of Llama 3, Qwen 2 and their like. As regular expressions (contractions first):
//
//   gpt2:    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   llama3:  's|'t|...|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//
// Each character is looked at a few times at most. Does not know tokens.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>
#include <vector>

#include "rbee/character_classes.h"

namespace rbee {

enum class CharacterClass : unsigned char { other, letter, number, space };  // other: punctuation and all else

enum class Contractions { small, both_cases, folded };  // 's; 's and 'S; also 'ſ, as case folding has it

enum class Alone {
    none,
    numbers,
    digits
};  // numbers: as regular expressions have them; digits: as the step Digits has

struct WordRule {
    bool llama3;  // else gpt2
    Contractions contractions;
    std::uint32_t most_digits;  // of a word; llama3 only
    Alone alone;  // each of these is a word, and the text on each side of it is cut as if there were no more
};

/// A character and where the next one begins.
struct Character {
    std::uint32_t code;
    std::size_t end;
};

/// The character of valid UTF-8 that begins at `start`.
inline Character character_at(std::string_view text, std::size_t start) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[start + i]); };
    const std::uint32_t first = byte(0);
    const auto more = [&](std::size_t i) { return byte(i) & 0x3FU; };
    if (first < 0x80) {
        return {first, start + 1};
    }
    if (first < 0xE0) {
        return {(first & 0x1F) << 6 | more(1), start + 2};
    }
    if (first < 0xF0) {
        return {(first & 0x0F) << 12 | more(1) << 6 | more(2), start + 3};
    }
    return {(first & 0x07) << 18 | more(1) << 12 | more(2) << 6 | more(3), start + 4};
}

class Words {
public:
    explicit Words(WordRule rule) : rule_(rule) {
        fill(classes_, kLetters, CharacterClass::letter);
        fill(classes_, kNumbers, CharacterClass::number);
        fill(classes_, kSpaces, CharacterClass::space);
        if (rule_.alone == Alone::numbers) {
            fill(alone_, kNumbers, CharacterClass::number);
        } else if (rule_.alone == Alone::digits) {
            fill(alone_, kDigits, CharacterClass::number);
        }
    }

    /// Call `visit(word)` for each word of `text`, which is valid UTF-8.
    template <typename Visit>
    void each(std::string_view text, Visit visit) const {
        for (std::size_t start = 0; start < text.size();) {
            std::size_t end = text.size();
            if (rule_.alone != Alone::none) {
                end = run_of(alone_, text, start, CharacterClass::other);
                if (end == start) {
                    end = character_at(text, start).end;
                }
            }
            const std::string_view part = text.substr(start, end - start);
            for (std::size_t word = 0; word < part.size();) {
                const std::size_t next = rule_.llama3 ? llama3_end(part, word) : gpt2_end(part, word);
                visit(part.substr(word, next - word));
                word = next;
            }
            start = end;
        }
    }

private:
    using Classes = std::vector<CharacterClass>;  // by code point; those beyond its end are others

    template <std::size_t size>
    static void fill(Classes& classes, const CharacterRun (&runs)[size], CharacterClass of) {
        classes.resize(std::max<std::size_t>(classes.size(), runs[size - 1].last + 1), CharacterClass::other);
        for (const CharacterRun& each : runs) {
            std::fill(classes.begin() + each.first, classes.begin() + each.last + 1, of);
        }
    }

    static CharacterClass class_in(const Classes& classes, std::uint32_t code) {
        return code < classes.size() ? classes[code] : CharacterClass::other;
    }

    CharacterClass class_of(std::uint32_t code) const { return class_in(classes_, code); }

    /// Where the characters of this class end, from `start` on.
    static std::size_t run_of(const Classes& classes, std::string_view text, std::size_t start, CharacterClass wanted) {
        while (start < text.size()) {
            const Character next = character_at(text, start);
            if (class_in(classes, next.code) != wanted) {
                break;
            }
            start = next.end;
        }
        return start;
    }

    std::size_t run_of(std::string_view text, std::size_t start, CharacterClass wanted) const {
        return run_of(classes_, text, start, wanted);
    }

    /// Where the word ends that begins at `start`.
    std::size_t gpt2_end(std::string_view text, std::size_t start) const {
        if (const std::size_t end = contraction_end(text, start); end != start) {
            return end;
        }
        const std::size_t behind_space = text[start] == ' ' ? start + 1 : start;
        if (behind_space < text.size()) {
            const CharacterClass of = class_of(character_at(text, behind_space).code);
            if (of != CharacterClass::space) {
                return run_of(text, behind_space, of);
            }
        }
        return spaces_end(text, start);
    }

    std::size_t llama3_end(std::string_view text, std::size_t start) const {
        if (const std::size_t end = contraction_end(text, start); end != start) {
            return end;
        }
        const Character first = character_at(text, start);
        const CharacterClass of = class_of(first.code);
        if (of == CharacterClass::letter) {
            return run_of(text, start, of);
        }
        if (of == CharacterClass::number) {
            std::size_t end = first.end;
            for (std::uint32_t digits = 1; digits < rule_.most_digits && end < text.size(); ++digits) {
                const Character next = character_at(text, end);
                if (class_of(next.code) != CharacterClass::number) {
                    break;
                }
                end = next.end;
            }
            return end;
        }
        if (!is_line_end(first.code)) {
            if (const std::size_t end = run_of(text, first.end, CharacterClass::letter); end != first.end) {
                return end;
            }
        }
        const std::size_t behind_space = first.code == ' ' ? first.end : start;
        if (std::size_t end = run_of(text, behind_space, CharacterClass::other); end != behind_space) {
            while (end < text.size() && is_line_end(static_cast<unsigned char>(text[end]))) {
                ++end;
            }
            return end;
        }
        const std::size_t end = run_of(text, start, CharacterClass::space);
        for (std::size_t line_end = end; line_end > start; --line_end) {
            if (is_line_end(static_cast<unsigned char>(text[line_end - 1]))) {
                return line_end;
            }
        }
        return spaces_end(text, start);
    }

    /// Of white space: all of it at the text's end, else all but the last character, if there are others.
    std::size_t spaces_end(std::string_view text, std::size_t start) const {
        std::size_t end = start, last = start;
        while (end < text.size()) {
            const Character next = character_at(text, end);
            if (class_of(next.code) != CharacterClass::space) {
                return last == start ? end : last;
            }
            last = end;
            end = next.end;
        }
        return end;
    }

    static bool is_line_end(std::uint32_t code) { return code == '\r' || code == '\n'; }

    /// `start` if there is none.
    std::size_t contraction_end(std::string_view text, std::size_t start) const {
        if (text[start] != '\'') {
            return start;
        }
        const std::string_view rest = text.substr(start + 1, 2);
        if (rule_.contractions == Contractions::folded && rest == "\xC5\xBF") {
            return start + 3;
        }
        const auto letter = [&](std::size_t i) {
            const char given = i < rest.size() ? rest[i] : '\0';
            const bool is_capital = rule_.contractions != Contractions::small && given >= 'A' && given <= 'Z';
            return is_capital ? static_cast<char>(given - 'A' + 'a') : given;
        };
        const char first = letter(0), second = letter(1);
        if (first == 's' || first == 't' || first == 'm' || first == 'd') {
            return start + 2;
        }
        const bool is_pair = (second == 'e' && (first == 'r' || first == 'v')) || (second == 'l' && first == 'l');
        return is_pair ? start + 3 : start;
    }

    Classes classes_;
    Classes alone_;  // number: is a word of its own
    WordRule rule_;
};

}  // namespace rbee
