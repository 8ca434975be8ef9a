// One row's 32 weights in a panel, as `weights.h` lays them out.
//
// Owns reading and writing them one row after the other. Does not know where they come from (`pack.cpp`). What packs
// is always inlined: g++ would call it for some types of blocks, whose packing then takes a tenth longer.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rbee_kernels/ggml_blocks.h"
#include "rbee_kernels/half.h"
#include "rbee_kernels/weights.h"

namespace rbee::kernels {

/// Column 4 j to 4 j + 3 of one row are 4 bytes at 64 j; with 4 bits these have columns 16 + 4 j and so on as well.
template <WeightFormat F>
[[gnu::always_inline]] inline void put_quants(const std::uint8_t* quants, std::uint8_t* at) {
    constexpr bool four = GroupPlace<F>::kFourBits;
    std::uint8_t bytes[kGroup];
    constexpr std::size_t size = four ? kGroup / 2 : kGroup;
    for (std::size_t i = 0; i < size; ++i) {
        bytes[i] = four ? static_cast<std::uint8_t>(quants[i] | (quants[16 + i] << 4U)) : quants[i];
    }
    for (std::size_t j = 0; j < size / 4; ++j) {
        std::memcpy(at + 64 * j, bytes + 4 * j, 4);
    }
}

/// Entry `lane` of 16.
template <typename T>
void put_lane(T value, std::size_t lane, std::uint8_t* entries) {
    std::memcpy(entries + lane * sizeof value, &value, sizeof value);
}

template <WeightFormat F>
void put_factor(float factor, std::size_t lane, std::uint8_t* factors) {
    if constexpr (GroupPlace<F>::kHalfFactors) {
        put_lane(half_of(factor), lane, factors);
    } else {
        put_lane(factor, lane, factors);
    }
}

template <WeightFormat F>
[[gnu::always_inline]] inline void put_group(const WeightGroup& group, std::size_t lane, std::uint8_t* panel,
                                             std::size_t index) {
    using Place = GroupPlace<F>;
    put_quants<F>(group.quants, panel + Place::quants(index) + 4 * lane);
    put_factor<F>(group.scales[0], lane, panel + Place::factors(index, 0));
    if constexpr (Place::kTwoScales) {
        put_factor<F>(group.scales[1], lane, panel + Place::factors(index, 1));
    } else if constexpr (Place::kMinimum) {
        put_factor<F>(group.minimums[0], lane, panel + Place::factors(index, 1));
    }
}

/// The same with `factors` instead of the group's own.
template <WeightFormat F>
[[gnu::always_inline]] inline void put_group(const WeightGroup& group, const ByteFactors& factors, std::size_t lane,
                                             std::uint8_t* panel, std::size_t index) {
    using Place = GroupPlace<F>;
    put_quants<F>(group.quants, panel + Place::quants(index) + 4 * lane);
    put_lane(factors.scale, lane, panel + Place::block_factors(index, 0));
    put_lane(factors.minimum, lane, panel + Place::block_factors(index, 1));
    put_lane(factors.scale_times, lane, panel + Place::factors(index, 0));
    put_lane(factors.minimum_times, lane, panel + Place::factors(index, 1));
}

template <typename T>
T get_lane(const std::uint8_t* entries, std::size_t lane) {
    return read<T>(entries + lane * sizeof(T));
}

template <WeightFormat F>
float get_factor(const std::uint8_t* panel, std::size_t index, std::size_t which, std::size_t lane) {
    using Place = GroupPlace<F>;
    const std::uint8_t* factors = panel + Place::factors(index, which);
    if constexpr (Place::kByteFactors) {
        const Half factor = get_lane<Half>(panel + Place::block_factors(index, which), lane);
        return float_of(factor) * static_cast<float>(factors[lane]);
    } else if constexpr (Place::kHalfFactors) {
        return float_of(get_lane<Half>(factors, lane));
    } else {
        return get_lane<float>(factors, lane);
    }
}

template <WeightFormat F>
WeightGroup get_group(const std::uint8_t* panel, std::size_t index, std::size_t lane) {
    using Place = GroupPlace<F>;
    const std::uint8_t* quants = panel + Place::quants(index);
    WeightGroup group;
    for (std::size_t i = 0; i < kGroup; ++i) {
        const std::size_t column = Place::kFourBits ? i % 16 : i;
        const std::uint8_t byte = quants[64 * (column / 4) + 4 * lane + column % 4];
        group.quants[i] = static_cast<std::uint8_t>(!Place::kFourBits ? byte : i < 16 ? byte & 15U : byte >> 4U);
    }
    group.set_scale(get_factor<F>(panel, index, 0, lane));
    if constexpr (Place::kTwoScales) {
        group.scales[1] = get_factor<F>(panel, index, 1, lane);
    } else if constexpr (Place::kMinimum) {
        group.set_minimum(get_factor<F>(panel, index, 1, lane));
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
