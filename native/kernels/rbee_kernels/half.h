// Conversions between float and the 16-bit formats, on any machine and without its help.
//
// For code that is compiled once: files that are compiled per instruction set have the ones of `vector16.h`.

#pragma once

#include <cstdint>
#include <cstring>

#include "rbee_kernels/weights.h"

namespace rbee::kernels {

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

/// Exact: every binary16 is a float. Without branches, so that a loop of it becomes vector instructions.
inline float float_of(Half half) {
    const std::uint32_t magnitude = half.bits & 0x7FFFU;
    const std::uint32_t exponent = magnitude >= 0x7C00U ? 0x70000000U : 0x38000000U;  // infinite or NaN: stays so
    const std::uint32_t normal = (magnitude << 13U) + exponent;
    const std::uint32_t subnormal = bits_of(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24F);
    const std::uint32_t sign = (half.bits & 0x8000U) << 16U;
    return from_bits(sign | (magnitude >= 0x0400U ? normal : subnormal));
}

/// Exact.
inline float float_of(BFloat value) { return from_bits(static_cast<std::uint32_t>(value.bits) << 16U); }

/// To the nearest, of two the even one. NaN stays NaN; 65520 and more become infinite.
inline Half half_of(float value) {
    const std::uint32_t sign = (bits_of(value) >> 16U) & 0x8000U;
    const std::uint32_t magnitude = bits_of(value) & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) {
        return {static_cast<std::uint16_t>(sign | 0x7E00U | ((magnitude >> 13U) & 0x3FFU))};
    }
    if (magnitude >= 0x477FF000U) {
        return {static_cast<std::uint16_t>(sign | 0x7C00U)};
    }
    if (magnitude < 0x38800000U) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the lowest bits, rounded
        return {static_cast<std::uint16_t>(sign | (bits_of(from_bits(magnitude) + 0.5F) - 0x3F000000U))};
    }
    const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13U) & 1U);
    return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13U))};
}

inline float float_of(float value) { return value; }

inline bool is_finite(Half half) { return (half.bits & 0x7C00U) != 0x7C00U; }

}  // namespace rbee::kernels
