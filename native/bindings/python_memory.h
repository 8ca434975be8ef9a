// Memory of Python objects, as the core takes it, and lists of numbers, as Python takes them.
//
// Owns conversions that nanobind has none for, or too slow ones. Does not know arenas.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include <nanobind/nanobind.h>

namespace nb = nanobind;

/// A view of a Python object's memory; while it exists, that memory cannot be unmapped.
class Buffer {
public:
    /// `flags` as PyObject_GetBuffer() takes them: PyBUF_WRITABLE, or PyBUF_SIMPLE for memory that is only read.
    Buffer(nb::handle object, int flags) {
        if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) {
            throw nb::python_error();
        }
    }
    ~Buffer() { PyBuffer_Release(&view_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* data() const { return view_.buf; }
    std::uint64_t size() const { return static_cast<std::uint64_t>(view_.len); }

private:
    Py_buffer view_{};
};

/// The numbers of a contiguous one-dimensional array, or of None, which has none. Through the buffer protocol directly:
/// for arrays of a few entries, nanobind's own conversion takes longer than the commit.
template <typename T>
class Column {
public:
    Column(nb::handle array, const char* name) {
        if (array.is_none()) {
            return;
        }
        if (PyObject_GetBuffer(array.ptr(), &view_, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) {
            PyErr_Clear();
            throw nb::type_error((std::string(name) + " must be a contiguous array.").c_str());
        }
        if (view_.ndim != 1 || view_.format == nullptr || view_.format[0] != format() || view_.format[1] != 0) {
            PyBuffer_Release(&view_);
            throw nb::type_error((std::string(name) + " must be a one-dimensional array of " + type() + ".").c_str());
        }
    }
    ~Column() {
        if (view_.obj != nullptr) {
            PyBuffer_Release(&view_);
        }
    }
    Column(const Column&) = delete;
    Column& operator=(const Column&) = delete;

    std::size_t size() const { return static_cast<std::size_t>(view_.len) / sizeof(T); }
    const T* data() const { return static_cast<const T*>(view_.buf); }

private:
    static constexpr char format() {
        return std::is_same_v<T, float> ? 'f' : std::is_same_v<T, std::uint32_t> ? 'I' : 'B';
    }
    static constexpr const char* type() {
        return std::is_same_v<T, float> ? "float32" : std::is_same_v<T, std::uint32_t> ? "uint32" : "uint8";
    }

    Py_buffer view_{};
};

inline std::string_view bytes_of(nb::handle object) {
    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(object.ptr(), &data, &size) != 0) {
        throw nb::python_error();
    }
    return {data, static_cast<std::size_t>(size)};
}

/// A list of `size` objects made by `make(i)`, each a new reference.
template <typename Make>
nb::object list_of(std::size_t size, Make make) {
    nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(size)));
    if (!list.is_valid()) {
        throw nb::python_error();
    }
    for (std::size_t i = 0; i < size; ++i) {
        PyObject* item = make(i);
        if (item == nullptr) {
            throw nb::python_error();
        }
        PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), item);
    }
    return list;
}
