// The native module rbee.server.text._byte_pairs. Its documentation is _byte_pairs.pyi beside it.
//
// Owns conversions: the vocabulary from Python's objects, texts and token ids. Gives up the GIL for long texts.

#include <array>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "rbee/byte_pairs.h"

#include "python_memory.h"

using namespace nb::literals;

namespace {

// Bytes of a text: for so long the GIL is kept, for to ask for it again takes as long if another thread has it.
constexpr std::size_t kLong = 8 * 1024;

using AddedTokens = std::vector<std::pair<std::string, std::uint32_t>>;

std::string_view text_of(nb::handle text) {
    Py_ssize_t size = 0;
    const char* const data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) {
        throw nb::python_error();
    }
    return {data, static_cast<std::size_t>(size)};
}

/// GPT-2's alphabet for bytes, as tables both ways.
struct Alphabet {
    Alphabet() {
        bytes.fill(-1);
        std::uint32_t other = 256;
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            const bool is_printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
            bytes[is_printable ? byte : other++] = static_cast<int>(byte);
        }
    }

    /// False if it has a character that stands for no byte.
    bool spell(std::string_view token, std::string& spelled) const {
        spelled.clear();
        for (std::size_t place = 0; place < token.size();) {
            const rbee::Character next = rbee::character_at(token, place);
            if (next.code >= bytes.size() || bytes[next.code] < 0) {
                return false;
            }
            spelled += static_cast<char>(bytes[next.code]);
            place = next.end;
        }
        return true;
    }

    std::array<int, 256 + 68> bytes{};
};

/// The tokens of a vocabulary as Python has it.
class Vocabulary {
public:
    explicit Vocabulary(const nb::dict& ids) : by_name_(ids.size()) {
        const Alphabet alphabet;
        std::string spelled;
        for (auto [name, token_id] : ids) {
            const auto number = nb::cast<std::uint32_t>(token_id);
            by_name_.add(text_of(name), number);
            if (alphabet.spell(text_of(name), spelled)) {
                tokens.push_back({spelled, number});
            }
        }
    }

    std::uint32_t id_of(std::string_view name) const {
        const std::uint32_t token_id = by_name_.get(name);
        if (token_id == rbee::StringTable::kNone) {
            throw std::invalid_argument("A merge has " + std::string(name) + ", which is no token.");
        }
        return token_id;
    }

    std::vector<rbee::ByteToken> tokens;

private:
    rbee::StringTable by_name_;
};

std::vector<rbee::Merge> merges_of(const nb::list& given, const Vocabulary& vocabulary) {
    std::vector<rbee::Merge> merges;
    merges.reserve(given.size());
    std::string joined;
    for (nb::handle merge : given) {
        std::string_view left, right;
        if (nb::isinstance<nb::str>(merge)) {
            const std::string_view line = text_of(merge);
            const std::size_t space = line.find(' ');
            if (space == line.npos) {
                throw std::invalid_argument("The merge " + std::string(line) + " has no space.");
            }
            left = line.substr(0, space);
            right = line.substr(space + 1);
        } else {
            left = text_of(merge[0]);
            right = text_of(merge[1]);
        }
        joined = left;
        joined += right;
        merges.push_back({vocabulary.id_of(left), vocabulary.id_of(right), vocabulary.id_of(joined)});
    }
    return merges;
}

class BytePairEncoder {
public:
    BytePairEncoder(bool llama3, int contractions, std::uint32_t most_digits, int alone, const nb::dict& vocabulary,
                    const nb::list& merges, const AddedTokens& added, const nb::bytes& removed, bool ignore_merges,
                    bool only_composed)
        : pairs_(make(
              {llama3, static_cast<rbee::Contractions>(contractions), most_digits, static_cast<rbee::Alone>(alone)},
              Vocabulary(vocabulary), merges, added, removed, ignore_merges, only_composed)) {}

    nb::object encode(nb::handle text, std::uint64_t limit) const {
        Py_ssize_t size = 0;
        const char* const data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
        if (data == nullptr) {  // half of a surrogate pair
            PyErr_Clear();
            return nb::none();
        }
        const std::string_view bytes{data, static_cast<std::size_t>(size)};
        std::vector<std::uint32_t> ids;
        bool is_known = false;
        if (bytes.size() <= kLong) {
            is_known = pairs_.encode(bytes, ids);
        } else {
            const nb::gil_scoped_release released;
            is_known = pairs_.encode(bytes, ids);
        }
        if (!is_known) {
            return nb::none();
        }
        if (ids.size() > limit) {
            return nb::int_(ids.size());
        }
        return list_of(ids.size(), [&](std::size_t i) { return PyLong_FromUnsignedLong(ids[i]); });
    }

private:
    static rbee::BytePairs make(rbee::WordRule rule, const Vocabulary& vocabulary, const nb::list& merges,
                                const AddedTokens& added, const nb::bytes& removed, bool ignore_merges,
                                bool only_composed) {
        std::vector<rbee::AddedToken> added_tokens;
        for (const auto& [content, token_id] : added) {
            if (content.empty()) {
                throw std::invalid_argument("An added token has no text.");
            }
            added_tokens.push_back({content, token_id});
        }
        return {rbee::Words(rule),
                vocabulary.tokens,
                merges_of(merges, vocabulary),
                std::move(added_tokens),
                std::string(bytes_of(removed)),
                ignore_merges,
                only_composed};
    }

    rbee::BytePairs pairs_;
};

}  // namespace

NB_MODULE(_byte_pairs, m) {
    m.doc() = "Token ids of a text by a byte-level byte-pair vocabulary, in C++; see native/include/rbee/byte_pairs.h.";
    nb::class_<BytePairEncoder>(m, "BytePairEncoder")
        .def(nb::init<bool, int, std::uint32_t, int, const nb::dict&, const nb::list&, const AddedTokens&,
                      const nb::bytes&, bool, bool>(),
             nb::kw_only(), "llama3"_a, "contractions"_a, "most_digits"_a, "alone"_a, "vocabulary"_a, "merges"_a,
             "added"_a, "removed"_a, "ignore_merges"_a, "only_composed"_a)
        .def("encode", &BytePairEncoder::encode, "text"_a, "limit"_a);
}
