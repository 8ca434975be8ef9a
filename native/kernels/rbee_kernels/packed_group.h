// One row's 32 weights in a block of a panel, as `weights.h` lays them out.
//
// Owns reading and writing them one row after the other. Does not know where they come from (`pack.cpp`).

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rbee_kernels/ggml_blocks.h"
#include "rbee_kernels/half.h"
#include "rbee_kernels/weights.h"

namespace rbee::kernels {

template <WeightFormat F>
constexpr bool kFourBits = F == WeightFormat::kQ4 || F == WeightFormat::kQ4Wide;
template <WeightFormat F>
constexpr bool kHalfFactors = F == WeightFormat::kQ4 || F == WeightFormat::kQ8;

/// Column 4 j to 4 j + 3 of one row are 4 bytes at 64 j; with 4 bits these have columns 16 + 4 j and so on as well.
template <WeightFormat F>
void put_quants(const std::uint8_t* quants, std::uint8_t* at) {
    std::uint8_t bytes[kGroup];
    constexpr std::size_t size = kFourBits<F> ? kGroup / 2 : kGroup;
    for (std::size_t i = 0; i < size; ++i) {
        bytes[i] = kFourBits<F> ? static_cast<std::uint8_t>(quants[i] | (quants[16 + i] << 4U)) : quants[i];
    }
    for (std::size_t j = 0; j < size / 4; ++j) {
        std::memcpy(at + 64 * j, bytes + 4 * j, 4);
    }
}

template <WeightFormat F>
void put_factor(float factor, std::size_t index, std::size_t lane, std::uint8_t* factors) {
    if constexpr (kHalfFactors<F>) {
        const Half half = half_of(factor);
        std::memcpy(factors + (index * kPanelRows + lane) * sizeof half, &half, sizeof half);
    } else {
        std::memcpy(factors + (index * kPanelRows + lane) * sizeof factor, &factor, sizeof factor);
    }
}

template <WeightFormat F>
float get_factor(const std::uint8_t* factors, std::size_t index, std::size_t lane) {
    if constexpr (kHalfFactors<F>) {
        return float_of(read<Half>(factors + (index * kPanelRows + lane) * sizeof(Half)));
    } else {
        return read<float>(factors + (index * kPanelRows + lane) * sizeof(float));
    }
}

/// Where the factors begin, of which there are 16 or 32.
template <WeightFormat F>
constexpr std::size_t kFactors = kFourBits<F> ? 256 : 512;

template <WeightFormat F>
void put_group(const WeightGroup& group, std::size_t lane, std::uint8_t* block) {
    put_quants<F>(group.quants, block + 4 * lane);
    put_factor<F>(group.scales[0], 0, lane, block + kFactors<F>);
    if constexpr (F == WeightFormat::kQ8Fine) {
        put_factor<F>(group.scales[1], 1, lane, block + kFactors<F>);
    } else if constexpr (F != WeightFormat::kQ8) {
        put_factor<F>(group.minimums[0], 1, lane, block + kFactors<F>);
    }
}

template <WeightFormat F>
WeightGroup get_group(const std::uint8_t* block, std::size_t lane) {
    WeightGroup group;
    for (std::size_t i = 0; i < kGroup; ++i) {
        const std::size_t column = kFourBits<F> ? i % 16 : i;
        const std::uint8_t byte = block[64 * (column / 4) + 4 * lane + column % 4];
        group.quants[i] = static_cast<std::uint8_t>(!kFourBits<F> ? byte : i < 16 ? byte & 15U : byte >> 4U);
    }
    group.set_scale(get_factor<F>(block + kFactors<F>, 0, lane));
    if constexpr (F == WeightFormat::kQ8Fine) {
        group.scales[1] = get_factor<F>(block + kFactors<F>, 1, lane);
    } else if constexpr (F != WeightFormat::kQ8) {
        group.set_minimum(get_factor<F>(block + kFactors<F>, 1, lane));
    }
    return group;
}

/// Where there is a minimum, scale * quant is exact, so that each weight is rounded once at most.
inline void get_floats(const WeightGroup& group, float* out) {
    for (std::size_t i = 0; i < kGroup; ++i) {
        const auto quant = static_cast<float>(static_cast<std::int8_t>(group.quants[i]));
        out[i] = group.scales[i / 16] * quant + group.minimums[i / 16];
    }
}

}  // namespace rbee::kernels
