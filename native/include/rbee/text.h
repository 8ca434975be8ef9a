// Bytes of tokens to the inside of a JSON string, piece by piece.
//
// Owns UTF-8 that is cut at any byte, and JSON's escapes. Does not know tokens. What comes out equals Python's
// incremental UTF-8 decoder with errors="replace", followed by msgspec's JSON encoder: the server's other path uses
// these. (Python's waits for a third byte behind 0xED even when the second has shown that this is no character.)

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace rbee {

/// Appends text that is known to be UTF-8 as the inside of a JSON string.
inline void append_json(std::string& out, std::string_view text) {
    std::size_t plain = 0;  // from here on nothing needed an escape so far
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        if (byte >= 0x20 && byte != '"' && byte != '\\') {
            continue;
        }
        out.append(text, plain, i - plain);
        plain = i + 1;
        switch (byte) {
            case '"': out += "\\\""; break;
            case '\\': out += "\\\\"; break;
            case '\b': out += "\\b"; break;
            case '\f': out += "\\f"; break;
            case '\n': out += "\\n"; break;
            case '\r': out += "\\r"; break;
            case '\t': out += "\\t"; break;
            default:
                constexpr char digits[] = "0123456789abcdef";
                out += "\\u00";
                out += digits[byte >> 4];
                out += digits[byte & 15];
        }
    }
    out.append(text, plain, text.size() - plain);
}

/// Decodes a stream of bytes. A character is shown when its last byte is there; of what cannot be UTF-8, each maximal
/// part that could have begun a character becomes one U+FFFD, as the Unicode standard recommends (chapter 3.9).
class Utf8Stream {
public:
    /// Appends the characters that `bytes` completes to a JSON string.
    void push(std::string_view bytes, std::string& out) {
        std::size_t whole = 0;  // bytes from here on are complete characters that have not been appended yet
        std::size_t i = 0;
        while (i < bytes.size()) {
            const auto byte = static_cast<unsigned char>(bytes[i]);
            if (missing_ != 0) {
                if (byte < lowest_ || byte > highest_) {
                    out += kReplacement;
                    missing_ = pending_size_ = 0;
                    whole = i;
                    continue;  // this byte may begin a character
                }
                pending_[pending_size_++] = bytes[i++];
                lowest_ = 0x80;
                highest_ = 0xbf;
                if (--missing_ == 0) {
                    out.append(pending_, pending_size_);
                    pending_size_ = 0;
                }
                whole = i;
            } else if (byte < 0x80) {
                ++i;
            } else {
                append_json(out, bytes.substr(whole, i - whole));
                begin(bytes[i++], out);
                whole = i;
            }
        }
        append_json(out, bytes.substr(whole, i - whole));
    }

    /// No further byte belongs to the character that is incomplete, if one is.
    void flush(std::string& out) {
        if (missing_ != 0) {
            out += kReplacement;
            missing_ = pending_size_ = 0;
        }
    }

private:
    static constexpr const char* kReplacement = "\xef\xbf\xbd";

    /// The first byte of a character beyond ASCII; which second bytes may follow is table 3-7 of the Unicode standard.
    void begin(char first, std::string& out) {
        const auto byte = static_cast<unsigned char>(first);
        if (byte < 0xc2 || byte > 0xf4) {
            out += kReplacement;
            return;
        }
        missing_ = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
        lowest_ = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
        highest_ = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
        pending_[0] = first;
        pending_size_ = 1;
    }

    char pending_[4] = {};
    unsigned char pending_size_ = 0;
    unsigned char missing_ = 0;
    unsigned char lowest_ = 0x80;
    unsigned char highest_ = 0xbf;
};

}  // namespace rbee
