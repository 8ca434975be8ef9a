// How ggml's quantized blocks lie in a GGUF file, and what is in 32 columns of one.
//
// Owns the layouts of ggml-common.h that can be packed. Does not know what they are packed into (`pack.cpp`).

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rbee_kernels/half.h"

namespace rbee::kernels {

/// 32 weights of a row: scales[i / 16] * quants[i] + minimum.
struct WeightGroup {
    std::uint8_t quants[kGroup] = {};  // 0 to 15 or 0 to 31, or a signed byte's bits
    float scales[2] = {};              // for 16 columns each
    float minimum = 0;
};

template <typename T>
inline T read(const std::uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

/// A block is a binary16 scale, then bytes whose low halves are columns 0 to 15 and whose high halves are the others.
struct BlockQ4_0 {
    static constexpr std::size_t kCols = 32, kBytes = 18;
    // 8 times this overflows binary16, and so does the minimum of a group (if it is not infinite or NaN anyway).
    static constexpr std::uint16_t kTooLarge = 0x7000;  // 8192

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        unpack_halves(block + 2, group.quants);
        group.scales[0] = group.scales[1] = float_of(read<Half>(block));
        group.minimum = -8.0F * group.scales[0];
        return group;
    }
    static void unpack_halves(const std::uint8_t* bytes, std::uint8_t* quants) {
        for (std::size_t i = 0; i < 16; ++i) {
            quants[i] = static_cast<std::uint8_t>(bytes[i] & 15U);
            quants[16 + i] = static_cast<std::uint8_t>(bytes[i] >> 4U);
        }
    }
};

/// The same with a minimum behind the scale.
struct BlockQ4_1 {
    static constexpr std::size_t kCols = 32, kBytes = 20;

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        BlockQ4_0::unpack_halves(block + 4, group.quants);
        group.scales[0] = group.scales[1] = float_of(read<Half>(block));
        group.minimum = float_of(read<Half>(block + 2));
        return group;
    }
};

/// A binary16 scale and 32 signed bytes.
struct BlockQ8_0 {
    static constexpr std::size_t kCols = 32, kBytes = 34;

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        std::memcpy(group.quants, block + 2, sizeof group.quants);
        group.scales[0] = group.scales[1] = float_of(read<Half>(block));
        return group;
    }
};

/// Two binary16 factors; 12 bytes that hold, for each of 8 groups, 6 bits to multiply the first by (that is the scale)
/// and 6 bits to multiply the second by (that is to be subtracted); then for each two groups 32 bytes, of which the
/// first group has the low halves.
struct BlockQ4_K {
    static constexpr std::size_t kCols = 256, kBytes = 144;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group = factors(block, index);
        unpack_half(block + 16, index, group.quants);
        return group;
    }
    static WeightGroup factors(const std::uint8_t* block, std::size_t index) {
        const std::uint8_t* bits = block + 4;
        unsigned scale = bits[index % 4], minimum = bits[4 + index % 4];
        if (index < 4) {
            scale &= 63U;
            minimum &= 63U;
        } else {
            scale = (bits[4 + index] & 15U) | (scale >> 6U << 4U);
            minimum = static_cast<unsigned>(bits[4 + index] >> 4U) | (minimum >> 6U << 4U);
        }
        WeightGroup group;
        group.scales[0] = group.scales[1] = float_of(read<Half>(block)) * static_cast<float>(scale);
        group.minimum = -(float_of(read<Half>(block + 2)) * static_cast<float>(minimum));
        return group;
    }
    static void unpack_half(const std::uint8_t* bytes, std::size_t index, std::uint8_t* quants) {
        const std::size_t shift = index % 2 * 4;
        for (std::size_t i = 0; i < kGroup; ++i) {
            quants[i] = static_cast<std::uint8_t>((bytes[index / 2 * 32 + i] >> shift) & 15U);
        }
    }
};

/// The same with 32 bytes more behind the first 16: bit g of byte i is the fifth bit of column i of group g.
struct BlockQ5_K {
    static constexpr std::size_t kCols = 256, kBytes = 176;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group = BlockQ4_K::factors(block, index);
        BlockQ4_K::unpack_half(block + 48, index, group.quants);
        for (std::size_t i = 0; i < kGroup; ++i) {
            const unsigned fifth = (static_cast<unsigned>(block[16 + i]) >> index) & 1U;
            group.quants[i] = static_cast<std::uint8_t>(group.quants[i] | (fifth << 4U));
        }
        return group;
    }
};

/// Two halves of 4 groups. First the low four bits of both: of groups 0 and 1 in the low halves of 64 bytes, of 2 and 3
/// in the high ones. Then two more bits: in 32 bytes, lowest first, those of groups 0 to 3. Then 16 signed bytes, one
/// for 16 columns, to multiply the binary16 factor at the end by. 32 is to be subtracted from each number of 6 bits.
struct BlockQ6_K {
    static constexpr std::size_t kCols = 256, kBytes = 210;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        const std::uint8_t* low = block + index / 4 * 64 + index % 2 * 32;
        const std::uint8_t* high = block + 128 + index / 4 * 32;
        const std::uint8_t* scales = block + 192 + index * 2;
        const float factor = float_of(read<Half>(block + 208));
        const std::size_t low_shift = index % 4 / 2 * 4, high_shift = index % 4 * 2;
        WeightGroup group;
        for (std::size_t i = 0; i < kGroup; ++i) {
            const unsigned quant = ((low[i] >> low_shift) & 15U) | (((high[i] >> high_shift) & 3U) << 4U);
            group.quants[i] = static_cast<std::uint8_t>(quant - 32U);
        }
        for (std::size_t i = 0; i < 2; ++i) {
            group.scales[i] = factor * static_cast<float>(read<std::int8_t>(scales + i));
        }
        return group;
    }
};

}  // namespace rbee::kernels
