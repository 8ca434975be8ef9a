// The native module rbee.server.text._byte_pairs. Its documentation is _byte_pairs.pyi beside it.
//
// Owns conversions: texts and token ids. Gives up the GIL for long texts, and while it reads a vocabulary.

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "rbee/byte_pairs.h"
#include "rbee/byte_vocabulary.h"

#include "python_memory.h"

using namespace nb::literals;

namespace {

// Bytes of a text: for so long the GIL is kept, for to ask for it again takes as long if another thread has it.
constexpr std::size_t kLong = 8 * 1024;

using AddedTokens = std::vector<std::pair<std::string, std::uint32_t>>;

class BytePairEncoder {
public:
    BytePairEncoder(bool llama3, int contractions, std::uint32_t most_digits, int alone, const nb::bytes& vocabulary,
                    const nb::bytes& merges, const AddedTokens& added, const nb::bytes& removed, bool ignore_merges,
                    bool only_composed)
        : pairs_(make(
              {llama3, static_cast<rbee::Contractions>(contractions), most_digits, static_cast<rbee::Alone>(alone)},
              bytes_of(vocabulary), bytes_of(merges), added, std::string(bytes_of(removed)), ignore_merges,
              only_composed)) {}

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
    static rbee::BytePairs make(rbee::WordRule rule, std::string_view vocabulary, std::string_view merges,
                                const AddedTokens& added, std::string removed, bool ignore_merges, bool only_composed) {
        const nb::gil_scoped_release released;
        std::vector<rbee::AddedToken> added_tokens;
        for (const auto& [content, token_id] : added) {
            if (content.empty()) {
                throw std::invalid_argument("An added token has no text.");
            }
            added_tokens.push_back({content, token_id});
        }
        const rbee::ByteVocabulary read(vocabulary, merges);
        return {rbee::Words(rule),  read.tokens,   read.merges,  std::move(added_tokens),
                std::move(removed), ignore_merges, only_composed};
    }

    rbee::BytePairs pairs_;
};

}  // namespace

NB_MODULE(_byte_pairs, m) {
    m.doc() = "Token ids of a text by a byte-level byte-pair vocabulary, in C++; see native/include/rbee/byte_pairs.h.";
    nb::class_<BytePairEncoder>(m, "BytePairEncoder")
        .def(nb::init<bool, int, std::uint32_t, int, const nb::bytes&, const nb::bytes&, const AddedTokens&,
                      const nb::bytes&, bool, bool>(),
             nb::kw_only(), "llama3"_a, "contractions"_a, "most_digits"_a, "alone"_a, "vocabulary"_a, "merges"_a,
             "added"_a, "removed"_a, "ignore_merges"_a, "only_composed"_a)
        .def("encode", &BytePairEncoder::encode, "text"_a, "limit"_a);
}
