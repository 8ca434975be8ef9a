// The Python face of pack.h, in rbee.engine._kernels. Its documentation is rbee/engine/_kernels.pyi.
//
// Owns conversions. The GIL is released while rows are packed; the arrays are held.

#include <optional>
#include <stdexcept>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include "rbee_kernels/pack.h"

#include "kernels_module.h"
#include "python_memory.h"

using namespace nb::literals;

namespace {

namespace kernels = rbee::kernels;

using Bytes = Column<std::uint8_t>;
using Packed = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<nb::numpy, float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

kernels::WeightFormat format_of(std::uint32_t format) { return static_cast<kernels::WeightFormat>(format); }

/// The arrays of a matrix of a file, held.
class Source {
public:
    Source(nb::handle source, std::uint32_t type, std::size_t rows, std::size_t cols, nb::handle row_order)
        : bytes_(source, "source"), order_(row_order, "row_order"), type_(type), rows_(rows), cols_(cols) {
        if (!row_order.is_none() && order_.size() != rows) {
            throw std::invalid_argument("row_order must have an entry per row.");
        }
    }
    kernels::SourceMatrix matrix() const {
        return {static_cast<kernels::SourceType>(type_), bytes_.data(), bytes_.size(), rows_, cols_, order_.data()};
    }

private:
    Bytes bytes_;
    Column<std::uint32_t> order_;
    std::uint32_t type_;
    std::size_t rows_, cols_;
};

/// A new array for `fill` to write to without the GIL.
template <typename Fill>
Weights new_weights(std::size_t rows, std::size_t cols, Fill fill) {
    float* const weights = new float[rows * cols];
    nb::capsule owner(weights, [](void* array) noexcept { delete[] static_cast<float*>(array); });
    {
        const nb::gil_scoped_release release;
        fill(weights);
    }
    return Weights(weights, {rows, cols}, owner);
}

void pack(nb::handle source, std::uint32_t source_type, std::size_t rows, std::size_t cols, std::uint32_t format,
          nb::handle row_order, const Packed& packed, std::size_t first_row, std::optional<std::size_t> end_row) {
    const Source from(source, source_type, rows, cols, row_order);
    const nb::gil_scoped_release release;
    kernels::pack(from.matrix(), format_of(format), first_row, end_row.value_or(rows), packed.data(), packed.size());
}

Weights dequantize(nb::handle source, std::uint32_t source_type, std::size_t rows, std::size_t cols,
                   nb::handle row_order, std::size_t first_row, std::optional<std::size_t> end_row) {
    const Source from(source, source_type, rows, cols, row_order);
    const std::size_t end = end_row.value_or(rows);
    kernels::check_rows(from.matrix(), first_row, end);
    return new_weights(end - first_row, cols,
                       [&](float* weights) { kernels::dequantize(from.matrix(), first_row, end, weights); });
}

std::uint32_t held_by(std::uint32_t source_type) {
    return static_cast<std::uint32_t>(kernels::held_by(static_cast<kernels::SourceType>(source_type)));
}

Weights unpack(nb::handle packed, std::uint32_t format, std::size_t rows, std::size_t cols) {
    const Bytes bytes(packed, "packed");
    const kernels::Matrix matrix = kernels::packed_matrix(format_of(format), rows, cols, bytes.data(), bytes.size());
    return new_weights(rows, cols, [&](float* weights) { kernels::unpack(matrix, weights); });
}

}  // namespace

void bind_packing(nb::module_& m) {
    m.def("pack", &pack, "source"_a, "source_type"_a, "rows"_a, "cols"_a, nb::kw_only(), "format"_a,
          nb::arg("row_order").none() = nb::none(), nb::arg("packed").noconvert(), "first_row"_a = 0,
          nb::arg("end_row").none() = nb::none());
    m.def("dequantize", &dequantize, "source"_a, "source_type"_a, "rows"_a, "cols"_a, nb::kw_only(),
          nb::arg("row_order").none() = nb::none(), "first_row"_a = 0, nb::arg("end_row").none() = nb::none());
    m.def("held_by", &held_by, "source_type"_a);
    m.def(
        "packed_bytes",
        [](std::uint32_t format, std::size_t rows, std::size_t cols) {
            return kernels::packed_bytes(format_of(format), rows, cols);
        },
        "format"_a, "rows"_a, "cols"_a);
    m.def("unpack", &unpack, "packed"_a, "format"_a, "rows"_a, "cols"_a);
    nb::list types;
    for (const char* name : kernels::source_types()) {
        types.append(name);
    }
    m.attr("SOURCE_TYPES") = nb::tuple(types);
}
