// The tokens and merges of a byte-level vocabulary, as tokenizer.json has them.
//
// Owns how they are read: straight from JSON, for hundreds of thousands of Python's objects take longer than all that is
// made of them. What is no such JSON is refused, whatever it is. Does not know the other parts of tokenizer.json.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "rbee/byte_pairs.h"
#include "rbee/string_table.h"

namespace rbee {

/// Reads a JSON text from its beginning, as its reader expects it; throws std::invalid_argument if it is not so.
class JsonReader {
public:
    explicit JsonReader(std::string_view text) : text_(text) {}

    /// Whether this comes next, behind white space; then it is read.
    bool take(char wanted) {
        skip_space();
        const bool is_next = place_ < text_.size() && text_[place_] == wanted;
        place_ += is_next ? 1 : 0;
        return is_next;
    }

    void expect(char wanted) {
        if (!take(wanted)) {
            throw std::invalid_argument("The vocabulary has something else than " + std::string(1, wanted) +
                                        " at byte " + std::to_string(place_) + " of its JSON.");
        }
    }

    /// Call `read()` for each part of what `open` and `close` enclose.
    template <typename Read>
    void each(char open, char close, Read read) {
        expect(open);
        if (take(close)) {
            return;
        }
        do {
            read();
        } while (take(','));
        expect(close);
    }

    void string(std::string& read) {
        expect('"');
        read.clear();
        for (;;) {
            const std::size_t end = text_.find_first_of("\"\\", place_);
            if (end == std::string_view::npos) {
                place_ = text_.size();
                expect('"');
            }
            read += text_.substr(place_, end - place_);
            place_ = end + 1;
            if (text_[end] == '"') {
                return;
            }
            escape(read);
        }
    }

    std::uint32_t number() {
        std::uint64_t read = 0;
        skip_space();
        const std::size_t start = place_;
        for (; place_ < text_.size() && text_[place_] >= '0' && text_[place_] <= '9' && read <= kMost; ++place_) {
            read = 10 * read + static_cast<std::uint64_t>(text_[place_] - '0');
        }
        if (place_ == start || read > kMost) {
            throw std::invalid_argument("The vocabulary has something else than a token id at byte " +
                                        std::to_string(start) + " of its JSON.");
        }
        return static_cast<std::uint32_t>(read);
    }

private:
    static constexpr std::uint64_t kMost = StringTable::kNone - 1;

    void skip_space() { place_ = std::min(text_.find_first_not_of(" \n\r\t", place_), text_.size()); }

    /// What is behind a backslash.
    void escape(std::string& read) {
        static constexpr std::string_view kEscapes = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
        const char letter = place_ < text_.size() ? text_[place_++] : '\0';
        if (letter != 'u') {
            const std::size_t found = kEscapes.find(letter);
            if (found == std::string_view::npos) {
                throw std::invalid_argument("The vocabulary has an unknown escape in its JSON.");
            }
            read += kMeant[found];
            return;
        }
        std::uint32_t code = hexadecimal();
        if (code >= 0xD800 && code < 0xDC00 && text_.substr(place_, 2) == "\\u") {
            place_ += 2;
            code = 0x10000 + ((code - 0xD800) << 10) + (hexadecimal() & 0x3FF);
        }
        append(read, code);
    }

    std::uint32_t hexadecimal() {
        std::uint32_t read = 0;
        for (const char digit : text_.substr(place_, 4)) {
            const std::size_t value = std::string_view("0123456789abcdefABCDEF").find(digit);
            if (value == std::string_view::npos) {
                break;
            }
            read = read << 4 | static_cast<std::uint32_t>(value < 16 ? value : value - 6);
            ++place_;
        }
        return read;
    }

    /// In UTF-8.
    static void append(std::string& read, std::uint32_t code) {
        const auto add = [&](std::uint32_t byte) { read += static_cast<char>(byte); };
        const auto more = [&](std::uint32_t shift) { add(0x80 | ((code >> shift) & 0x3F)); };
        if (code < 0x80) {
            add(code);
        } else if (code < 0x800) {
            add(0xC0 | code >> 6);
            more(0);
        } else if (code < 0x10000) {
            add(0xE0 | code >> 12);
            more(6);
            more(0);
        } else {
            add(0xF0 | code >> 18);
            more(12);
            more(6);
            more(0);
        }
    }

    std::string_view text_;
    std::size_t place_ = 0;
};

/// GPT-2's alphabet for bytes.
class ByteAlphabet {
public:
    ByteAlphabet() {
        bytes_.fill(-1);
        std::uint32_t other = 256;
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            const bool is_printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
            bytes_[is_printable ? byte : other++] = static_cast<int>(byte);
        }
    }

    /// False if the name, which is any bytes, has something that stands for no byte.
    bool spell(std::string_view name, std::string& spelled) const {
        spelled.clear();
        for (std::size_t place = 0; place < name.size(); ++place) {
            std::uint32_t code = static_cast<unsigned char>(name[place]);
            if (code >= 0x80) {  // of two bytes: the alphabet has no others
                if ((code & 0xE0) != 0xC0 || ++place == name.size()) {
                    return false;
                }
                code = (code & 0x1F) << 6 | (static_cast<unsigned char>(name[place]) & 0x3F);
            }
            if (code >= bytes_.size() || bytes_[code] < 0) {
                return false;
            }
            spelled += static_cast<char>(bytes_[code]);
        }
        return true;
    }

private:
    std::array<int, 256 + 68> bytes_{};
};

/// What `BytePairs` is made of.
struct ByteVocabulary {
    /// `vocabulary`: an object of token ids by name. `pairs`: the merges, an array of pairs of names, each an array or a text with a
    /// space between them. Of a name that is there twice the later token id counts.
    ByteVocabulary(std::string_view vocabulary, std::string_view pairs) {
        const auto most = static_cast<std::size_t>(std::count(vocabulary.begin(), vocabulary.end(), ':'));
        tokens.reserve(most);
        StringTable by_name(most);
        std::string name, other;
        const ByteAlphabet alphabet;
        JsonReader reader(vocabulary);
        reader.each('{', '}', [&] {
            reader.string(name);
            reader.expect(':');
            const std::uint32_t token_id = reader.number();
            if (alphabet.spell(name, other)) {
                tokens.push_back({other, token_id});
            }
            by_name.add(name, token_id);
        });
        merges.reserve(most);
        reader = JsonReader(pairs);
        reader.each('[', ']', [&] {
            if (reader.take('[')) {
                reader.string(name);
                reader.expect(',');
                reader.string(other);
                reader.expect(']');
            } else {
                reader.string(name);
                if (name.compare(0, kComment.size(), kComment) == 0) {
                    return;
                }
                const std::size_t end = std::min(name.find(' '), name.size());
                other = name.substr(std::min(end + 1, name.size()));
                name.resize(end);
            }
            const std::uint32_t left = id_of(by_name, name), right = id_of(by_name, other);
            merges.push_back({left, right, id_of(by_name, name += other)});
        });
    }

    std::vector<ByteToken> tokens;  // those that are bytes
    std::vector<Merge> merges;

private:
    static constexpr std::string_view kComment = "#version";  // the first line of a file of merges

    static std::uint32_t id_of(const StringTable& by_name, std::string_view name) {
        const std::uint32_t token_id = by_name.get(name);
        if (token_id == StringTable::kNone) {
            throw std::invalid_argument("A merge has " + std::string(name) + ", which is no token.");
        }
        return token_id;
    }
};

}  // namespace rbee
