// The Python face of vocabulary.h, in rbee.transport._native. Its documentation is rbee/transport/_native.pyi.
//
// Owns conversions. Does not know whose tokens they are.

#include <memory>
#include <string_view>

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>

#include "rbee/vocabulary.h"

#include "python_memory.h"
#include "transport_module.h"

using namespace nb::literals;

namespace {

std::shared_ptr<rbee::Vocabulary> make_vocabulary(const nb::iterable& pieces) {
    auto vocabulary = std::make_shared<rbee::Vocabulary>();
    for (nb::handle piece : pieces) {
        if (PyUnicode_Check(piece.ptr())) {
            Py_ssize_t size = 0;
            const char* text = PyUnicode_AsUTF8AndSize(piece.ptr(), &size);
            if (text == nullptr) {
                throw nb::python_error();
            }
            vocabulary->add({text, static_cast<std::size_t>(size)}, true);
        } else {
            vocabulary->add(bytes_of(piece), false);
        }
    }
    return vocabulary;
}

nb::object piece_of(const rbee::Vocabulary& vocabulary, std::uint32_t token) {
    const std::string_view piece = vocabulary.piece(token);
    const auto size = static_cast<Py_ssize_t>(piece.size());
    nb::object object = nb::steal(vocabulary.is_text(token) ? PyUnicode_DecodeUTF8(piece.data(), size, nullptr)
                                                            : PyBytes_FromStringAndSize(piece.data(), size));
    if (!object.is_valid()) {
        throw nb::python_error();
    }
    return object;
}

}  // namespace

void bind_vocabulary(nb::module_& m) {
    nb::class_<rbee::Vocabulary>(m, "Vocabulary")
        .def(nb::new_(&make_vocabulary), "pieces"_a)
        .def("__len__", &rbee::Vocabulary::size)
        .def("piece", &piece_of, "token_id"_a);
}
