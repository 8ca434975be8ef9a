// The native module rbee.models.gguf.tokenizer._merges. Its documentation is _merges.pyi beside it.
//
// Owns conversions. Keeps the GIL: the texts that it looks at are Python's.

#include <string>
#include <string_view>
#include <vector>

#include "rbee/merges.h"

#include "python_memory.h"

using namespace nb::literals;

namespace {

std::string_view text_of(nb::handle text) {
    Py_ssize_t size = 0;
    const char* const data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) {
        throw nb::python_error();
    }
    return {data, static_cast<std::size_t>(size)};
}

nb::object merges_of(const nb::list& pieces) {
    std::vector<std::string_view> texts;
    texts.reserve(pieces.size());
    for (nb::handle piece : pieces) {
        texts.push_back(text_of(piece));
    }
    const rbee::Merges merges(texts);
    std::vector<std::size_t> made;
    for (std::size_t rank = 0; rank < texts.size(); ++rank) {
        if (merges.cuts()[rank] != 0) {
            made.push_back(rank);
        }
    }
    std::string line;
    return list_of(made.size(), [&](std::size_t i) {
        line = texts[made[i]];
        line.insert(merges.cuts()[made[i]], 1, ' ');
        return PyUnicode_DecodeUTF8(line.data(), static_cast<Py_ssize_t>(line.size()), nullptr);
    });
}

}  // namespace

NB_MODULE(_merges, m) {
    m.doc() = "Which merge makes each piece of a vocabulary, in C++; see native/include/rbee/merges.h.";
    m.def("merges_of", &merges_of, "pieces"_a);
}
