// What a decoder layer computes besides matrix products and attention.
//
// Owns the list; `elementwise.h` computes. Rows are contiguous; n is a multiple of nothing in particular.

#pragma once

#include <cstddef>
#include <cstdint>

namespace rbee::kernels {

/// Of the quants of columns 0 to 15 of a group, and of columns 16 to 31.
struct HalfSums {
    std::int16_t of[2];
};

/// A row of activations in 8 bits, quantized in groups of 32: value = scale * quant. The last group is filled with
/// zeros.
struct QuantizedRow {
    std::int8_t* quants;   // [groups * 32], -127 to 127
    float* scales;         // [groups]
    float* sums;           // [groups], scale * (sum of the quants)
    std::int32_t* biases;  // [groups], -128 * (sum of the quants)
    HalfSums* half_sums;   // [groups]
};

/// kRelu2: the square of what is positive. (So et al., 2021.)
enum class Activation : std::uint32_t { kSilu = 0, kGeluTanh = 1, kRelu2 = 2 };

struct ElementwiseFunctions {
    /// out = x / sqrt(mean(x^2) + epsilon) * weight; out may be x. (Zhang and Sennrich, 2019.)
    void (*rms_norm)(const float* x, const float* weight, float epsilon, std::size_t n, float* out);
    /// scale = greatest magnitude of the group / 127, quants rounded to nearest. A group with NaN or infinity gets a
    /// scale of NaN, so that whatever is computed with it is not finite.
    void (*quantize)(const float* x, std::size_t n, QuantizedRow row);
    /// Rotates the pairs (i, n/2 + i) of the first n of a head in place, by the angles whose cosines and sines are given
    /// ([n / 2]).
    void (*rotate)(float* head, const float* cosines, const float* sines, std::size_t n);
    /// out = activation(gate) * up; out may be either.
    void (*gate)(Activation activation, const float* gate, const float* up, std::size_t n, float* out);
    /// out = activation(x); out may be x.
    void (*activate)(Activation activation, const float* x, std::size_t n, float* out);
    /// x += y
    void (*add)(float* x, const float* y, std::size_t n);
    /// out = x * factor; out may be x.
    void (*scale)(const float* x, float factor, std::size_t n, float* out);
};

}  // namespace rbee::kernels
