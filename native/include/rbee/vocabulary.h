// What the tokens of a vocabulary stand for, and the text of one sequence of them.
//
// Owns the two families of vocabularies whose tokens can be looked up one by one: byte-level (a token is bytes) and
// byte fallback (a token is text, or one byte). Everything else is the server's Python detokenizers' business.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "rbee/emoji.h"
#include "rbee/text.h"

namespace rbee {

/// Immutable once filled; shared by all streams.
class Vocabulary {
public:
    /// The next token's piece. `text` is complete characters, and ends a character whose bytes were incomplete.
    void add(std::string_view piece, bool text) {
        bytes_.append(piece);
        ends_.push_back(bytes_.size() << 1 | (text ? 1 : 0));
    }

    std::size_t size() const { return ends_.size(); }

    /// A token that the vocabulary does not have stands for no bytes.
    std::string_view piece(std::uint32_t token) const {
        if (token >= ends_.size()) {
            return {};
        }
        const std::size_t start = token == 0 ? 0 : ends_[token - 1] >> 1;
        return std::string_view(bytes_).substr(start, (ends_[token] >> 1) - start);
    }

    bool is_text(std::uint32_t token) const { return token < ends_.size() && (ends_[token] & 1) != 0; }

private:
    std::string bytes_;
    std::vector<std::size_t> ends_;  // where each piece ends in bytes_, << 1 | is text
};

/// The text of one sequence, token by token, as the inside of JSON strings.
class TokenText {
public:
    /// `strip`: the vocabulary writes a space before the first word, which is not shown.
    TokenText(const Vocabulary& vocabulary, bool strip) : vocabulary_(vocabulary), strip_(strip) {}

    /// Appends the text that this token completes, but for an emoji at its end.
    void push(std::uint32_t token, std::string& out) {
        const std::size_t before = out.size();
        if (vocabulary_.is_text(token)) {
            utf8_.flush(out);
            append_json(out, vocabulary_.piece(token));
        } else {
            utf8_.push(vocabulary_.piece(token), out);
        }
        if (strip_ && out.size() > before) {
            strip_ = false;
            if (out[before] == ' ') {
                out.erase(before, 1);
            }
        }
        emoji_.push(out, before);
    }

    /// Appends the text of what is still incomplete, once no further token comes.
    void flush(std::string& out) {
        const std::size_t before = out.size();
        utf8_.flush(out);
        emoji_.push(out, before);
        emoji_.flush(out);
    }

private:
    const Vocabulary& vocabulary_;
    Utf8Stream utf8_;
    EmojiHold emoji_;
    bool strip_;
};

}  // namespace rbee
