// ggml's quantized blocks whose bits are indices into tables, and what is in 32 columns of one.
//
// Owns these layouts of ggml-common.h: an index is of one number (IQ4, MXFP4, NVFP4), or of several at once in a
// codebook (IQ1, IQ2, IQ3). `ggml_blocks.h` has those of plain numbers.

#pragma once

#include "rbee_kernels/ggml_blocks.h"
#include "rbee_kernels/ggml_codebooks.h"

namespace rbee::kernels {

/// quants[i] is the number of the low half of byte i, quants[count + i] that of its high half.
inline void look_up(const std::int8_t* numbers, const std::uint8_t* bytes, std::size_t count, std::uint8_t* quants) {
    for (std::size_t i = 0; i < count; ++i) {
        quants[i] = static_cast<std::uint8_t>(numbers[bytes[i] & 15U]);
        quants[count + i] = static_cast<std::uint8_t>(numbers[bytes[i] >> 4U]);
    }
}

/// A binary16 scale, then bytes whose low halves are columns 0 to 15.
struct BlockIQ4_NL {
    static constexpr WeightFormat kFormat = WeightFormat::kIQ4NL;
    static constexpr std::size_t kCols = 32, kBytes = 18;

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        BlockQ4_0::unpack_halves(block + 2, group.quants);
        group.set_scale(read<Half>(block));
        return group;
    }
};

/// A binary16 factor; 6 bits per group to multiply it by, less 32: the upper two of each in 2 bytes, the lower four in
/// 4 bytes; then per group 16 bytes like those of IQ4_NL.
struct BlockIQ4_XS {
    static constexpr WeightFormat kFormat = WeightFormat::kIQ4XS;
    static constexpr std::size_t kCols = 256, kBytes = 136;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        const unsigned high = (read<std::uint16_t>(block + 2) >> (2 * index)) & 3U;
        const unsigned low = (block[4 + index / 2] >> (index % 2 * 4)) & 15U;
        WeightGroup group;
        BlockQ4_0::unpack_halves(block + 8 + 16 * index, group.quants);
        group.scales[0] = {0, read<Half>(block), static_cast<std::uint8_t>((low | (high << 4U)) - 32U)};
        return group;
    }
};

/// A scale that is a power of two, then bytes whose low halves are columns 0 to 15.
struct BlockMXFP4 {
    static constexpr WeightFormat kFormat = WeightFormat::kMXFP4;
    static constexpr std::size_t kCols = 32, kBytes = 17;

    static WeightGroup group(const std::uint8_t* block, std::size_t /*index*/) {
        WeightGroup group;
        BlockQ4_0::unpack_halves(block + 1, group.quants);
        group.scales[0].times = block[0];
        return group;
    }
};

/// Four scales of 8 bits for 16 columns each, then per 16 columns 8 bytes whose low halves are the first eight.
struct BlockNVFP4 {
    static constexpr WeightFormat kFormat = WeightFormat::kQ8Fine;
    static constexpr std::size_t kCols = 64, kBytes = 36;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group;
        for (std::size_t i = 0; i < 2; ++i) {
            const std::size_t part = 2 * index + i;
            look_up(kFp4Numbers, block + 4 + 8 * part, 8, group.quants + 16 * i);
            group.scales[i].number = half_of_ue4m3(block[part]);
        }
        return group;
    }
    /// Half of an unsigned number with 4 bits of exponent and 3 of mantissa; 127 is none, and 0 here as in ggml.
    static float half_of_ue4m3(unsigned bits) {
        const unsigned exponent = (bits >> 3U) & 15U, mantissa = bits & 7U;
        if (bits == 127) {
            return 0;
        }
        return exponent == 0 ? static_cast<float>(mantissa) * 0x1p-10F
                             : from_bits(((exponent + 119) << 23U) | (mantissa << 20U));
    }
};

/// Writes the numbers of an index, those negative whose bits in `signs` are set.
template <std::size_t Size, std::size_t Numbers>
inline void look_up(const Codebook<Size, Numbers>& book, std::size_t index, unsigned signs, std::uint8_t* quants) {
    for (std::size_t k = 0; k < Numbers; ++k) {
        const int negative = -static_cast<int>((signs >> k) & 1U);
        quants[k] = static_cast<std::uint8_t>((book.numbers[index][k] ^ negative) - negative);
    }
}

/// Signs of eight numbers of which seven are stored: an even count of them is negative.
inline unsigned eight_signs(unsigned seven) {
    unsigned parity = seven ^ (seven >> 4U);
    parity ^= parity >> 2U;
    parity ^= parity >> 1U;
    return seven | (parity & 1U) << 7U;
}

/// A binary16 factor, then 8 bytes per group: four indices, four times seven signs, and 4 bits of scale.
struct BlockIQ2_XXS {
    static constexpr WeightFormat kFormat = WeightFormat::kQ8Float;
    static constexpr std::size_t kCols = 256, kBytes = 66;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        const std::uint8_t* indices = block + 2 + 8 * index;
        const auto rest = read<std::uint32_t>(indices + 4);
        WeightGroup group;
        for (std::size_t i = 0; i < 4; ++i) {
            look_up(kIq2Xxs, indices[i], eight_signs((rest >> (7 * i)) & 127U), group.quants + 8 * i);
        }
        group.set_scale(float_of(read<Half>(block)) * (0.5F + static_cast<float>(rest >> 28U)) * 0.25F);
        return group;
    }
};

/// A binary16 factor; 2 bytes per 8 columns, 9 bits of index and seven signs; 4 bits of scale per 16 columns.
struct BlockIQ2_XS {
    static constexpr WeightFormat kFormat = WeightFormat::kQ8Fine;
    static constexpr std::size_t kCols = 256, kBytes = 74;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        WeightGroup group;
        for (std::size_t i = 0; i < 4; ++i) {
            const unsigned bits = read<std::uint16_t>(block + 2 + 2 * (4 * index + i));
            look_up(kIq2Xs, bits & 511U, eight_signs(bits >> 9U), group.quants + 8 * i);
        }
        scale(block, block[66 + index], group);
        return group;
    }
    static void scale(const std::uint8_t* block, unsigned bits, WeightGroup& group) {
        for (std::size_t i = 0; i < 2; ++i) {
            const auto times = static_cast<float>((bits >> (4 * i)) & 15U);
            group.scales[i].number = float_of(read<Half>(block)) * (0.5F + times) * 0.25F;
        }
    }
};

/// A binary16 factor; per 8 columns a byte of index, then a byte of signs; per group a byte with two more bits of four
/// indices; 4 bits of scale per 16 columns.
struct BlockIQ2_S {
    static constexpr WeightFormat kFormat = WeightFormat::kQ8Fine;
    static constexpr std::size_t kCols = 256, kBytes = 82;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        const std::uint8_t* low = block + 2 + 4 * index;
        const unsigned high = block[66 + index];
        WeightGroup group;
        for (std::size_t i = 0; i < 4; ++i) {
            look_up(kIq2S, low[i] | (high >> (2 * i) & 3U) << 8U, low[32 + i], group.quants + 8 * i);
        }
        BlockIQ2_XS::scale(block, block[74 + index], group);
        return group;
    }
};

/// A binary16 factor; per 4 columns a byte of index; per group four times seven signs and 4 bits of scale.
struct BlockIQ3_XXS {
    static constexpr WeightFormat kFormat = WeightFormat::kQ8Float;
    static constexpr std::size_t kCols = 256, kBytes = 98;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        const std::uint8_t* indices = block + 2 + 8 * index;
        const auto rest = read<std::uint32_t>(block + 66 + 4 * index);
        WeightGroup group;
        for (std::size_t i = 0; i < 4; ++i) {
            const unsigned signs = eight_signs((rest >> (7 * i)) & 127U);
            look_up(kIq3Xxs, indices[2 * i], signs, group.quants + 8 * i);
            look_up(kIq3Xxs, indices[2 * i + 1], signs >> 4U, group.quants + 8 * i + 4);
        }
        group.set_scale(float_of(read<Half>(block)) * (0.5F + static_cast<float>(rest >> 28U)) * 0.5F);
        return group;
    }
};

/// A binary16 factor; per 4 columns a byte of index; per group a byte with one more bit of eight indices; per 8 columns
/// a byte of signs; 4 bits of scale per group.
struct BlockIQ3_S {
    static constexpr WeightFormat kFormat = WeightFormat::kQ8Float;
    static constexpr std::size_t kCols = 256, kBytes = 110;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        const std::uint8_t* low = block + 2 + 8 * index;
        const unsigned high = block[66 + index];
        const std::uint8_t* signs = block + 74 + 4 * index;
        const unsigned times = 1 + 2 * ((block[106 + index / 2] >> (index % 2 * 4)) & 15U);
        WeightGroup group;
        for (std::size_t i = 0; i < 8; ++i) {
            const unsigned four_signs = signs[i / 2] >> (i % 2 * 4);
            look_up(kIq3S, low[i] | (high >> i & 1U) << 8U, four_signs, group.quants + 4 * i);
        }
        group.set_scale(float_of(read<Half>(block)) * static_cast<float>(times));
        return group;
    }
};

/// A binary16 factor; per 8 columns a byte of index; per group 2 bytes: three more bits of four indices, 3 bits of
/// scale, and whether 1/8 is subtracted from the numbers or added to them.
struct BlockIQ1_S {
    static constexpr WeightFormat kFormat = WeightFormat::kQ8Float;
    static constexpr std::size_t kCols = 256, kBytes = 50;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        const unsigned high = read<std::uint16_t>(block + 34 + 2 * index);
        WeightGroup group;
        for (std::size_t i = 0; i < 4; ++i) {
            const unsigned low = block[2 + 4 * index + i];
            look_up_shifted(low | (high >> (3 * i) & 7U) << 8U, (high >> 15U) != 0, group.quants + 8 * i);
        }
        group.set_scale(float_of(read<Half>(block)) * static_cast<float>(2 * (high >> 12U & 7U) + 1) * 0.125F);
        return group;
    }
    static void look_up_shifted(std::size_t index, bool down, std::uint8_t* quants) {
        for (std::size_t k = 0; k < 8; ++k) {
            quants[k] = static_cast<std::uint8_t>(kIq1.numbers[index][k] + (down ? -1 : 1));
        }
    }
};

/// Per 8 columns a byte of index, then 4 bits: three of index, and whether 1/8 is subtracted or added. Then 4 times 2
/// bytes, each with four times 3 bits of scale per 16 columns and 4 of the 16 bits of the factor.
struct BlockIQ1_M {
    static constexpr WeightFormat kFormat = WeightFormat::kQ8Fine;
    static constexpr std::size_t kCols = 256, kBytes = 56;

    static WeightGroup group(const std::uint8_t* block, std::size_t index) {
        unsigned factor = 0;
        for (std::size_t i = 0; i < 4; ++i) {
            factor |= (read<std::uint16_t>(block + 48 + 2 * i) >> 12U) << (4 * i);
        }
        const float scale = float_of(Half{static_cast<std::uint16_t>(factor)}) * 0.125F;
        const unsigned times = read<std::uint16_t>(block + 48 + index / 2 * 2) >> (6 * (index % 2));
        WeightGroup group;
        for (std::size_t i = 0; i < 4; ++i) {
            const unsigned low = block[4 * index + i], high = block[32 + 2 * index + i / 2] >> (i % 2 * 4);
            BlockIQ1_S::look_up_shifted(low | (high & 7U) << 8U, (high & 8U) != 0, group.quants + 8 * i);
        }
        for (std::size_t i = 0; i < 2; ++i) {
            group.scales[i].number = scale * static_cast<float>(2 * (times >> (3 * i) & 7U) + 1);
        }
        return group;
    }
};

}  // namespace rbee::kernels
