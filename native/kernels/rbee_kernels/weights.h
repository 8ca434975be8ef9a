// How weight matrices lie in memory for the kernels.
//
// Owns the formats and their sizes. Does not know files, models, or how a matrix got here (`pack.h`) and what is
// computed with it (`linear.h`).
//
// A matrix has `rows` outputs and `cols` inputs. Sixteen rows make a panel; the last one is filled up with rows of
// zeros. A panel is one linear stream, so that a processor reads nothing but what comes next. In a quantized format
// columns are groups of 32, and
//
//   weight = scale * quant + minimum
//
// A panel is a block per group: the quants, then 16 scales (32 in kQ8Fine: first those of columns 0 to 15, then those
// of 16 to 31), then 16 minimums if the format has any; entry r of those belongs to row r. In kQ4K a block has eight
// groups, whose scales and minimums are bytes times a binary16 factor: first 16 factors of scales and 16 of minimums,
// then for each group 16 bytes for scales and 16 for minimums, then the quants of each group. Quants of 64 bytes never
// lie in two cache lines: there 8 groups fill 37 lines.
//
//   8 bits, signed:   byte 64 j + 4 r + i is column 4 j + i of row r, for j < 8
//   4 bits, unsigned: byte 64 j + 4 r + i has column 4 j + i in its low half, 16 + 4 j + i in its high half, for j < 4
//
// So that four columns of a row are the 32-bit lane r of a vector, which integer dot products take against four
// activations broadcast to all lanes. In a floating-point format a panel is [cols][16 rows].

#pragma once

#include <cstddef>
#include <cstdint>

namespace rbee::kernels {

constexpr std::size_t kPanelRows = 16;
constexpr std::size_t kGroup = 32;

/// IEEE binary16 and bfloat16, as bits.
struct Half {
    std::uint16_t bits;
};
struct BFloat {
    std::uint16_t bits;
};

/// What each can hold without loss is in the comment.
enum class WeightFormat : std::uint32_t {
    kF32 = 0,
    kF16 = 1,
    kBF16 = 2,
    kQ4 = 3,      // 4 bits, scale and minimum in binary16: GGUF Q4_0 and Q4_1
    kQ4K = 4,     // 4 bits, scale and minimum in bytes times binary16: GGUF Q4_K
    kQ8 = 5,      // 8 bits, scale in binary16: GGUF Q8_0
    kQ8Min = 6,   // 8 bits, scale and minimum in float: GGUF Q5_K
    kQ8Fine = 7,  // 8 bits, two scales in float, for 16 columns each: GGUF Q6_K
};

/// Names for messages, by format number.
constexpr const char* kWeightFormatNames[] = {"float32", "float16", "bfloat16", "q4",
                                              "q4-k",    "q8",      "q8-min",   "q8-fine"};
constexpr std::uint32_t kNumWeightFormats = sizeof kWeightFormatNames / sizeof kWeightFormatNames[0];
static_assert(static_cast<std::uint32_t>(WeightFormat::kQ8Fine) + 1 == kNumWeightFormats);

constexpr bool is_quantized(WeightFormat format) { return format >= WeightFormat::kQ4; }

/// Columns of a panel's block in a quantized format.
constexpr std::size_t block_cols(WeightFormat format) { return format == WeightFormat::kQ4K ? 8 * kGroup : kGroup; }

/// Bytes of a panel's block in a quantized format.
constexpr std::size_t block_bytes(WeightFormat format) {
    switch (format) {
        case WeightFormat::kQ4: return 256 + 2 * 32;
        case WeightFormat::kQ4K: return 2 * 32 + 8 * (2 * 16 + 256);
        case WeightFormat::kQ8: return 512 + 32;
        case WeightFormat::kQ8Min:
        case WeightFormat::kQ8Fine: return 512 + 2 * 64;
        default: return 0;
    }
}

/// Where a group of 32 columns is in a panel of a quantized format: its quants, and what its factors are made of.
template <WeightFormat F>
struct GroupPlace {
    static constexpr bool kFourBits = F == WeightFormat::kQ4 || F == WeightFormat::kQ4K;
    static constexpr bool kHalfFactors = F == WeightFormat::kQ4 || F == WeightFormat::kQ8;
    static constexpr bool kByteFactors = F == WeightFormat::kQ4K;
    static constexpr bool kTwoScales = F == WeightFormat::kQ8Fine;
    static constexpr bool kMinimum = kFourBits || F == WeightFormat::kQ8Min;
    static constexpr std::size_t kQuantBytes = kFourBits ? 256 : 512;

    static constexpr std::size_t quants(std::size_t group) {
        return kByteFactors ? block(group) + 2 * 32 + 8 * 2 * 16 + group % 8 * kQuantBytes : block(group);
    }
    /// `which` 0: the scales, 1: the minimums, or the scales of the last 16 columns.
    static constexpr std::size_t factors(std::size_t group, std::size_t which) {
        return kByteFactors ? block(group) + 2 * 32 + (group % 8 * 2 + which) * 16
                            : block(group) + kQuantBytes + which * (kHalfFactors ? 32 : 64);
    }
    /// What all bytes of `factors` in a block are to be multiplied by.
    static constexpr std::size_t block_factors(std::size_t group, std::size_t which) {
        return block(group) + which * 32;
    }

private:
    static constexpr std::size_t block(std::size_t group) { return group * kGroup / block_cols(F) * block_bytes(F); }
};

/// Bytes of a panel. `cols` is a multiple of `block_cols` if the format is quantized.
constexpr std::size_t panel_bytes(WeightFormat format, std::size_t cols) {
    if (is_quantized(format)) {
        return cols / block_cols(format) * block_bytes(format);
    }
    return cols * kPanelRows * (format == WeightFormat::kF32 ? 4 : 2);
}

/// A packed matrix; the memory is not its own, 64-byte aligned. Panels follow each other, or lie `stride` bytes apart:
/// between those of two matrices that are read together are the other one's.
struct Matrix {
    WeightFormat format = WeightFormat::kF32;
    std::size_t rows = 0;
    std::size_t cols = 0;
    const std::uint8_t* data = nullptr;
    std::size_t stride = 0;

    std::size_t num_panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
    std::size_t bytes() const { return num_panels() * panel_bytes(format, cols); }
    const std::uint8_t* panel(std::size_t index) const {
        return data + index * (stride != 0 ? stride : panel_bytes(format, cols));
    }
};

}  // namespace rbee::kernels
