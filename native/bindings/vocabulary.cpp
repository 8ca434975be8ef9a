// The Python face of vocabulary.h and emoji.h, in rbee.transport._native. Its documentation is rbee/transport/_native.pyi.
//
// Owns conversions. Does not know whose tokens they are.

#include <memory>
#include <string>
#include <string_view>

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>

#include "rbee/emoji.h"
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

nb::object text_of(const std::string& text) {
    nb::object object = nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr));
    if (!object.is_valid()) {
        throw nb::python_error();
    }
    return object;
}

nb::object push(rbee::EmojiHold& hold, const nb::str& text) {
    Py_ssize_t size = 0;
    const char* utf8 = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (utf8 == nullptr) {
        throw nb::python_error();
    }
    std::string out(utf8, static_cast<std::size_t>(size));
    hold.push(out, 0);
    return text_of(out);
}

nb::object flush(rbee::EmojiHold& hold) {
    std::string out;
    hold.flush(out);
    return text_of(out);
}

}  // namespace

void bind_vocabulary(nb::module_& m) {
    nb::class_<rbee::EmojiHold>(m, "EmojiHold").def(nb::init<>()).def("push", &push, "text"_a).def("flush", &flush);
    nb::class_<rbee::Vocabulary>(m, "Vocabulary")
        .def(nb::new_(&make_vocabulary), "pieces"_a)
        .def("__len__", &rbee::Vocabulary::size)
        .def("piece", &piece_of, "token_id"_a);
}
