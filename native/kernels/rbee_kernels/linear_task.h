// The task of a matrix product.
//
// Owns the description; `linear.h` computes. Does not know threads.

#pragma once

#include <cstddef>
#include <cstdint>

#include "rbee_kernels/elementwise_functions.h"
#include "rbee_kernels/weights.h"

namespace rbee::kernels {

/// `rows` rows of activations, `cols` numbers each. The quantized half is there for matrices in a quantized format,
/// unless the product is to be exact; the floats otherwise.
struct Activations {
    std::size_t rows;
    const float* values;
    std::size_t values_stride;
    const std::int8_t* quants;  // [rows][groups * 32], see QuantizedRow; the others are [rows][groups]
    const float* scales;
    const float* sums;
    const std::int32_t* biases;
    const HalfSums* half_sums;
};

struct LinearFunctions {
    /// Bytes of scratch memory (64-byte aligned) that `multiply` needs for a matrix with so many columns.
    std::size_t (*scratch_bytes)(std::size_t cols);
    /// out[m * stride + r] = sum over k of activations[m][k] * weight[16 panel + r][k], for all rows of `activations`
    /// and r < 16; `next` is the panel that the thread will read afterwards (null: none, or not known).
    void (*multiply)(const Matrix& matrix, std::size_t panel, const Activations& activations, const std::uint8_t* next,
                     void* scratch, float* out, std::size_t stride);
    /// Row `row` of a matrix as floats, [cols].
    void (*unpack_row)(const Matrix& matrix, std::size_t row, float* out);
    /// Four-bit weights times activations in registers, as fast as it goes, without memory, unpacking or scales: what
    /// no product can be faster than. Returns how many products and sums that were in `rounds` rounds.
    std::size_t (*peak)(std::size_t rounds);
};

}  // namespace rbee::kernels
