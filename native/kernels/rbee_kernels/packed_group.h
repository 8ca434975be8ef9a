// One row's 32 weights in a panel, as `weights.h` lays them out.
//
// Owns reading and writing them one row after the other, and what they are as floats. Does not know where they come
// from (`pack.cpp`). What packs is always inlined: g++ would call it for some types of blocks, whose packing then takes
// a tenth longer.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rbee_kernels/half.h"
#include "rbee_kernels/weights.h"

namespace rbee::kernels {

/// A scale or minimum, as its format holds it.
struct StoredFactor {
    float number = 0;        // Factor::kFloat
    Half half{};             // kHalf, and one of two in products
    std::uint8_t times = 0;  // the other one: the bits of a byte, which may be signed, or half of one; kPower
};

/// 32 weights of a row, as their format holds them. In `scales` and `minimums` [1] is of columns 16 to 31 where the
/// format has two of them, and not used otherwise. What a format does not have is not used.
struct WeightGroup {
    std::uint8_t quants[kGroup] = {};
    StoredFactor scales[2];
    StoredFactor minimums[2];

    /// One for all columns.
    void set_scale(Half half) { scales[0].half = scales[1].half = half; }
    void set_minimum(Half half) { minimums[0].half = minimums[1].half = half; }
    void set_scale(float number) { scales[0].number = scales[1].number = number; }
    void set_minimum(float number) { minimums[0].number = minimums[1].number = number; }
};

template <typename T>
inline T read(const std::uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

/// 2^(exponent - 128).
inline float power_of_two(std::uint32_t exponent) {
    return from_bits(exponent < 2 ? 0x00200000U << exponent : (exponent - 1) << 23U);
}

template <Factor K>
inline float float_of(const StoredFactor& factor) {
    if constexpr (K == Factor::kNone) {
        return 0;
    } else if constexpr (K == Factor::kPower) {
        return power_of_two(factor.times);
    } else if constexpr (K == Factor::kSignedByte) {
        return float_of(factor.half) * static_cast<float>(static_cast<std::int8_t>(factor.times));
    } else if constexpr (is_product(K)) {
        return float_of(factor.half) * static_cast<float>(factor.times);
    } else if constexpr (K == Factor::kHalf) {
        return float_of(factor.half);
    } else {
        return factor.number;
    }
}

/// Where there is a minimum, scale * number is exact, so that each weight is rounded once at most.
template <WeightFormat F>
inline void get_floats(const WeightGroup& group, float* out) {
    constexpr FormatLayout layout = layout_of(F);
    for (std::size_t i = 0; i < kGroup; ++i) {
        const std::size_t half = layout.fine ? i / 16 : 0;
        const std::uint8_t quant = group.quants[i];
        const int number = layout.table != nullptr ? layout.table[quant]
                           : layout.is_signed()    ? static_cast<std::int8_t>(quant)
                                                   : static_cast<int>(quant) - layout.offset;
        out[i] = float_of<layout.scale>(group.scales[half]) * static_cast<float>(number) +
                 float_of<layout.minimum>(group.minimums[half]);
    }
}

/// A plane's bytes of one row: Bits bits of each quant, from bit `From` on.
template <unsigned Bits, unsigned From>
[[gnu::always_inline]] inline void put_plane(const std::uint32_t* quads, std::uint8_t* plane) {
    constexpr std::size_t shared = 8 / Bits;  // quads in the same bytes
    constexpr std::uint32_t bits = 0x01010101U * ((1U << Bits) - 1);
    for (std::size_t at = 0; at < Bits; ++at) {
        std::uint32_t bytes = 0;
        for (std::size_t i = 0; i < shared; ++i) {
            bytes |= ((quads[at * shared + i] >> From) & bits) << (i * Bits);
        }
        std::memcpy(plane + kQuadBytes * at, &bytes, sizeof bytes);
    }
}

template <unsigned Bits, unsigned From>
inline void get_plane(const std::uint8_t* plane, std::uint32_t* quads) {
    constexpr std::size_t shared = 8 / Bits;
    constexpr std::uint32_t bits = 0x01010101U * ((1U << Bits) - 1);
    for (std::size_t j = 0; j < kQuads; ++j) {
        const auto bytes = read<std::uint32_t>(plane + kQuadBytes * (j / shared));
        quads[j] |= ((bytes >> (j % shared * Bits)) & bits) << From;
    }
}

/// `at` is the first quad's bytes of the row.
template <WeightFormat F>
[[gnu::always_inline]] inline void put_quants(const std::uint8_t* quants, std::uint8_t* at) {
    constexpr FormatLayout layout = layout_of(F);
    std::uint32_t quads[kQuads];
    std::memcpy(quads, quants, sizeof quads);
    put_plane<layout.low_bits, 0>(quads, at + kQuadBytes * layout.high_bits);
    if constexpr (layout.high_bits != 0) {
        put_plane<layout.high_bits, layout.low_bits>(quads, at);
    }
}

template <WeightFormat F>
inline void get_quants(const std::uint8_t* at, std::uint8_t* quants) {
    constexpr FormatLayout layout = layout_of(F);
    std::uint32_t quads[kQuads] = {};
    get_plane<layout.low_bits, 0>(at + kQuadBytes * layout.high_bits, quads);
    if constexpr (layout.high_bits != 0) {
        get_plane<layout.high_bits, layout.low_bits>(at, quads);
    }
    std::memcpy(quants, quads, sizeof quads);
}

/// Entry `lane` of 16.
template <typename T>
inline void put_lane(T value, std::size_t lane, std::uint8_t* entries) {
    std::memcpy(entries + lane * sizeof value, &value, sizeof value);
}
template <typename T>
inline T get_lane(const std::uint8_t* entries, std::size_t lane) {
    return read<T>(entries + lane * sizeof(T));
}

/// `entries` are the group's own factors, `shared` the block's.
template <Factor K>
[[gnu::always_inline]] inline void put_factor(const StoredFactor& factor, std::size_t lane, std::uint8_t* entries,
                                              std::uint8_t* shared) {
    if constexpr (is_product(K)) {
        if constexpr (K == Factor::kHighHalf) {  // beside the other half, which is there already
            entries[lane] = static_cast<std::uint8_t>(entries[lane] | factor.times << 4U);
        } else {
            entries[lane] = factor.times;
        }
        put_lane(factor.half, lane, shared);
    } else if constexpr (K == Factor::kHalf) {
        put_lane(factor.half, lane, entries);
    } else if constexpr (K == Factor::kPower) {
        put_lane(factor.times, lane, entries);
    } else if constexpr (K == Factor::kFloat) {
        put_lane(factor.number, lane, entries);
    }
}

template <Factor K>
inline StoredFactor get_factor(std::size_t lane, const std::uint8_t* entries, const std::uint8_t* shared) {
    StoredFactor factor;
    if constexpr (is_product(K)) {
        const unsigned byte = entries[lane];
        factor.times = static_cast<std::uint8_t>(K == Factor::kLowHalf    ? byte & 15U
                                                 : K == Factor::kHighHalf ? byte >> 4U
                                                                          : byte);
        factor.half = get_lane<Half>(shared, lane);
    } else if constexpr (K == Factor::kHalf) {
        factor.half = get_lane<Half>(entries, lane);
    } else if constexpr (K == Factor::kPower) {
        factor.times = get_lane<std::uint8_t>(entries, lane);
    } else if constexpr (K == Factor::kFloat) {
        factor.number = get_lane<float>(entries, lane);
    }
    return factor;
}

template <WeightFormat F>
[[gnu::always_inline]] inline void put_group(const WeightGroup& group, std::size_t lane, std::uint8_t* panel,
                                             std::size_t index) {
    using Place = GroupPlace<F>;
    constexpr FormatLayout layout = layout_of(F);
    put_quants<F>(group.quants, panel + Place::quants(index) + 4 * lane);
    for (std::size_t half = 0; half < (layout.fine ? 2 : 1); ++half) {
        put_factor<layout.scale>(group.scales[half], lane, panel + Place::scales(index, half),
                                 panel + Place::shared_scales(index));
        put_factor<layout.minimum>(group.minimums[half], lane, panel + Place::minimums(index, half),
                                   panel + Place::shared_minimums(index));
    }
}

template <WeightFormat F>
WeightGroup get_group(const std::uint8_t* panel, std::size_t index, std::size_t lane) {
    using Place = GroupPlace<F>;
    constexpr FormatLayout layout = layout_of(F);
    WeightGroup group;
    get_quants<F>(panel + Place::quants(index) + 4 * lane, group.quants);
    for (std::size_t half = 0; half < (layout.fine ? 2 : 1); ++half) {
        group.scales[half] =
            get_factor<layout.scale>(lane, panel + Place::scales(index, half), panel + Place::shared_scales(index));
        group.minimums[half] = get_factor<layout.minimum>(lane, panel + Place::minimums(index, half),
                                                          panel + Place::shared_minimums(index));
    }
    return group;
}

}  // namespace rbee::kernels
