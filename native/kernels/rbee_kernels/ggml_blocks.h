// How ggml's quantized blocks lie in a GGUF file, and what is in 32 columns of one.
//
// Owns the layouts of ggml-common.h whose bits are numbers, and which format holds each; `ggml_table_blocks.h` has
// those whose bits are indices. Does not know how they are packed (`pack.cpp`).

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rbee_kernels/half.h"
#include "rbee_kernels/packed_group.h"

namespace rbee::kernels {

/// A block is a binary16 scale, then bytes whose low halves are columns 0 to 15 and whose high halves are the others.
struct BlockQ4_0 {
    static constexpr WeightFormat kFormat = WeightFormat::kQ4_0;
    static constexpr std::size_t kCols = 32, kBytes = 18;

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        unpack_halves(block + 2, group.quants);
        group.set_scale(read<Half>(block));
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
    static constexpr WeightFormat kFormat = WeightFormat::kQ4;
    static constexpr std::size_t kCols = 32, kBytes = 20;

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        BlockQ4_0::unpack_halves(block + 4, group.quants);
        group.set_scale(read<Half>(block));
        group.set_minimum(read<Half>(block + 2));
        return group;
    }
};

/// The same as Q4_0 with 4 bytes behind the scale: their bit i is the fifth bit of column i.
struct BlockQ5_0 {
    static constexpr WeightFormat kFormat = WeightFormat::kQ5_0;
    static constexpr std::size_t kCols = 32, kBytes = 22;

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        unpack(block + 2, group.quants);
        group.set_scale(read<Half>(block));
        return group;
    }
    static void unpack(const std::uint8_t* bytes, std::uint8_t* quants) {
        BlockQ4_0::unpack_halves(bytes + 4, quants);
        const auto fifths = read<std::uint32_t>(bytes);
        for (std::size_t i = 0; i < kGroup; i += 4) {
            // Four bits, 7 places from one to the next: bit k is the lowest of byte k.
            const std::uint32_t four = ((fifths >> i & 15U) * 0x00204081U) & 0x01010101U;
            const std::uint32_t all = read<std::uint32_t>(quants + i) | four << 4U;
            std::memcpy(quants + i, &all, sizeof all);
        }
    }
};

/// The same as Q4_1 with those 4 bytes behind scale and minimum.
struct BlockQ5_1 {
    static constexpr WeightFormat kFormat = WeightFormat::kQ5_1;
    static constexpr std::size_t kCols = 32, kBytes = 24;

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        BlockQ5_0::unpack(block + 4, group.quants);
        group.set_scale(read<Half>(block));
        group.set_minimum(read<Half>(block + 2));
        return group;
    }
};

/// A binary16 scale and 32 signed bytes.
struct BlockQ8_0 {
    static constexpr WeightFormat kFormat = WeightFormat::kQ8;
    static constexpr std::size_t kCols = 32, kBytes = 34;

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        std::memcpy(group.quants, block + 2, sizeof group.quants);
        group.set_scale(read<Half>(block));
        return group;
    }
};

inline Half negative(Half half) { return {static_cast<std::uint16_t>(half.bits ^ 0x8000U)}; }

/// 16 bytes, one for 16 columns, whose low halves multiply the first of two binary16 factors at the end (that is the
/// scale) and whose high halves multiply the second (that is to be subtracted); in between two bits per column: in 32
/// bytes, lowest first, those of groups 0 to 3, and in 32 more those of the others.
struct BlockQ2_K {
    static constexpr WeightFormat kFormat = WeightFormat::kQ2K;
    static constexpr std::size_t kCols = 256, kBytes = 84;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group;
        unpack_two(block + 16, index, group.quants);
        for (std::size_t i = 0; i < 2; ++i) {
            const unsigned times = block[2 * index + i];
            group.scales[i] = {0, read<Half>(block + 80), static_cast<std::uint8_t>(times & 15U)};
            group.minimums[i] = {0, negative(read<Half>(block + 82)), static_cast<std::uint8_t>(times >> 4U)};
        }
        return group;
    }
    static void unpack_two(const std::uint8_t* bytes, std::size_t index, std::uint8_t* quants) {
        const std::size_t shift = index % 4 * 2;
        for (std::size_t i = 0; i < kGroup; ++i) {
            quants[i] = static_cast<std::uint8_t>((bytes[index / 4 * 32 + i] >> shift) & 3U);
        }
    }
};

/// 32 bytes, in which bit g of byte i is the third bit of column i of group g; the lower two bits as in Q2_K; 12 bytes
/// that hold 6 bits for 16 columns, less 32, to multiply the binary16 factor at the end by.
struct BlockQ3_K {
    static constexpr WeightFormat kFormat = WeightFormat::kQ3K;
    static constexpr std::size_t kCols = 256, kBytes = 110;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        const std::uint8_t* scales = block + 96;
        WeightGroup group;
        BlockQ2_K::unpack_two(block + 32, index, group.quants);
        for (std::size_t i = 0; i < kGroup; ++i) {
            const unsigned third = (static_cast<unsigned>(block[i]) >> index) & 1U;
            group.quants[i] = static_cast<std::uint8_t>(group.quants[i] | (third << 2U));
        }
        for (std::size_t i = 0; i < 2; ++i) {
            const std::size_t part = 2 * index + i;  // of 16
            const unsigned low = (scales[part % 8] >> (part / 8 * 4)) & 15U;
            const unsigned high = (scales[8 + part % 4] >> (part / 4 * 2)) & 3U;
            group.scales[i] = {0, read<Half>(block + 108), static_cast<std::uint8_t>((low | (high << 4U)) - 32U)};
        }
        return group;
    }
};

/// Two binary16 factors; 12 bytes that hold, for each of 8 groups, 6 bits to multiply the first by (that is the scale)
/// and 6 bits to multiply the second by (that is to be subtracted); then for each two groups 32 bytes, of which the
/// first group has the low halves.
struct BlockQ4_K {
    static constexpr WeightFormat kFormat = WeightFormat::kQ4K;
    static constexpr std::size_t kCols = 256, kBytes = 144;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group;
        set_factors(block, index, group);
        unpack_half(block + 16, index, group.quants);
        return group;
    }
    static void set_factors(const std::uint8_t* block, std::size_t index, WeightGroup& group) {
        const std::uint8_t* bits = block + 4;
        unsigned scale = bits[index % 4], minimum = bits[4 + index % 4];
        if (index < 4) {
            scale &= 63U;
            minimum &= 63U;
        } else {
            scale = (bits[4 + index] & 15U) | (scale >> 6U << 4U);
            minimum = static_cast<unsigned>(bits[4 + index] >> 4U) | (minimum >> 6U << 4U);
        }
        group.scales[0] = {0, read<Half>(block), static_cast<std::uint8_t>(scale)};
        group.minimums[0] = {0, negative(read<Half>(block + 2)), static_cast<std::uint8_t>(minimum)};
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
    static constexpr WeightFormat kFormat = WeightFormat::kQ5K;
    static constexpr std::size_t kCols = 256, kBytes = 176;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group;
        BlockQ4_K::set_factors(block, index, group);
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
/// for 16 columns, to multiply the binary16 factor at the end by.
struct BlockQ6_K {
    static constexpr WeightFormat kFormat = WeightFormat::kQ6K;
    static constexpr std::size_t kCols = 256, kBytes = 210;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        const std::uint8_t* low = block + index / 4 * 64 + index % 2 * 32;
        const std::uint8_t* high = block + 128 + index / 4 * 32;
        const std::uint8_t* scales = block + 192 + index * 2;
        const std::size_t low_shift = index % 4 / 2 * 4, high_shift = index % 4 * 2;
        WeightGroup group;
        for (std::size_t i = 0; i < kGroup; ++i) {
            const unsigned quant = ((low[i] >> low_shift) & 15U) | (((high[i] >> high_shift) & 3U) << 4U);
            group.quants[i] = static_cast<std::uint8_t>(quant);
        }
        for (std::size_t i = 0; i < 2; ++i) {
            group.scales[i] = {0, read<Half>(block + 208), scales[i]};
        }
        return group;
    }
};

/// A binary16 scale and a bit per column: a set bit is the scale, another one its negative.
struct BlockQ1_0 {
    static constexpr WeightFormat kFormat = WeightFormat::kQ4_0;
    static constexpr std::size_t kCols = 128, kBytes = 18;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group;
        for (std::size_t i = 0; i < kGroup; ++i) {
            const unsigned byte = block[2 + 4 * index + i / 8];
            group.quants[i] = static_cast<std::uint8_t>(((byte >> (i % 8)) & 1U) * 2);
        }
        finish(block, group);
        return group;
    }
    /// 1 is to be subtracted from each quant, and 8 is what the format subtracts.
    static void finish(const std::uint8_t* half, WeightGroup& group) {
        for (std::uint8_t& quant : group.quants) {
            quant = static_cast<std::uint8_t>(quant + 7U);
        }
        group.set_scale(read<Half>(half));
    }
};

/// A binary16 scale and two bits per column, four columns in a byte, lowest first. 1 is to be subtracted.
struct BlockQ2_0 {
    static constexpr WeightFormat kFormat = WeightFormat::kQ4_0;
    static constexpr std::size_t kCols = 64, kBytes = 18;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group;
        for (std::size_t i = 0; i < kGroup; ++i) {
            const unsigned byte = block[2 + 8 * index + i / 4];
            group.quants[i] = static_cast<std::uint8_t>((byte >> (i % 4 * 2)) & 3U);
        }
        BlockQ1_0::finish(block, group);
        return group;
    }
};

/// Five numbers from 0 to 2 in a byte, as a fraction of 256 to the base 3: 32 bytes with the first, second ... number
/// of each, for groups 0 to 4; 16 bytes for five times 16 columns; 4 bytes for four times 4 columns. Then a binary16
/// scale. 1 is to be subtracted.
struct BlockTQ1_0 {
    static constexpr WeightFormat kFormat = WeightFormat::kQ4_0;
    static constexpr std::size_t kCols = 256, kBytes = 54;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group;
        if (index < 5) {
            unpack(block, kGroup, index, group.quants);
        } else {
            unpack(block + 32, 16, 2 * index - 10, group.quants);
            if (index < 7) {
                unpack(block + 32, 16, 2 * index - 9, group.quants + 16);
            }
            for (std::size_t digit = 0; index == 7 && digit < 4; ++digit) {
                unpack(block + 48, 4, digit, group.quants + 16 + 4 * digit);
            }
        }
        BlockQ1_0::finish(block + 52, group);
        return group;
    }
    static void unpack(const std::uint8_t* bytes, std::size_t count, std::size_t digit, std::uint8_t* quants) {
        constexpr unsigned powers[5] = {1, 3, 9, 27, 81};
        for (std::size_t i = 0; i < count; ++i) {
            const unsigned rest = bytes[i] * powers[digit] & 255U;  // behind the digits before
            quants[i] = static_cast<std::uint8_t>(rest * 3 >> 8U);
        }
    }
};

/// Two bits per column as in Q2_K, then a binary16 scale. 1 is to be subtracted.
struct BlockTQ2_0 {
    static constexpr WeightFormat kFormat = WeightFormat::kQ4_0;
    static constexpr std::size_t kCols = 256, kBytes = 66;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group;
        BlockQ2_K::unpack_two(block, index, group.quants);
        BlockQ1_0::finish(block + 64, group);
        return group;
    }
};

}  // namespace rbee::kernels
