// How weight matrices lie in memory for the kernels.
//
// Owns the formats and their sizes. Does not know files, models, or how a matrix got here (`pack.h`) and what is
// computed with it (`linear.h`).
//
// A matrix has `rows` outputs and `cols` inputs. Sixteen rows make a panel; the last one is filled up with rows of
// zeros. A panel is one linear stream, so that a processor reads nothing but what comes next. In a floating-point
// format a panel is [cols][16 rows]. In a quantized format columns are groups of 32, and
//
//   weight = scale * number + minimum
//
// A number is made of a quant of 2 to 8 bits; `FormatLayout` describes how, and what scale and minimum are made of.
//
// Quants. The four quants of columns 4 j to 4 j + 3 of row r are the bytes 4 r to 4 r + 3 of 64 bytes, the quad j of a
// group: so are they the 32-bit lane r of a vector, which integer dot products take against four activations broadcast
// to all lanes. The 8 quads are stored in one plane, or in two: the first one has the high bits of every quant. A plane
// of b bits has those of 8 / b quads in the same 64 bytes, the first one lowest: quad j is in the bytes from
// 64 * (j / (8 / b)) on, from bit j % (8 / b) * b of each. A plane has 64 b bytes. The high plane comes first because
// all quads need its few lines: with the low plane in front of it, five bits were read from memory at 0.7 of the speed
// (AVX-512, timed by hand).
//
// Factors. Scales, and minimums if there are any, are arrays of 16, entry r for row r; with a scale per 16 columns
// there are two arrays of each, first that of columns 0 to 15. A factor that is a product has one array of binary16
// numbers for the 8 groups of 256 columns, and one of bytes for each group. A block is what shares these numbers: 256
// columns, or a group. Its factors are, in this order: the numbers of the scales, those of the minimums, and for each
// group its scales and its minimums.
//
// A run is so many blocks that their factors fill whole lines of 64 bytes. It has all their factors first, then all
// their quants. So no load of 64 quants touches two lines. The last run of a panel may have fewer blocks; then what is
// left of the place of the factors is not used. With eight bits a run is one block: from memory such weights are read
// about 8 % faster so on AVX-512 (timed by hand, one row of activations), though half of the loads touch two lines.

#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <type_traits>

namespace rbee::kernels {

constexpr std::size_t kPanelRows = 16;
constexpr std::size_t kGroup = 32;
constexpr std::size_t kQuads = kGroup / 4;
constexpr std::size_t kQuadBytes = 4 * kPanelRows;
constexpr std::size_t kLineBytes = 64;

/// IEEE binary16 and bfloat16, as bits.
struct Half {
    std::uint16_t bits;
};
struct BFloat {
    std::uint16_t bits;
};

/// Whose weights each holds without loss is in the comment.
enum class WeightFormat : std::uint32_t {
    kF32 = 0,
    kF16 = 1,
    kBF16 = 2,
    kQ4 = 3,        // GGUF Q4_1
    kQ8 = 4,        // GGUF Q8_0
    kQ4_0 = 5,      // GGUF Q4_0, Q1_0, Q2_0, TQ1_0, TQ2_0
    kQ5_0 = 6,      // GGUF Q5_0
    kQ5_1 = 7,      // GGUF Q5_1
    kQ2K = 8,       // GGUF Q2_K
    kQ3K = 9,       // GGUF Q3_K
    kQ4K = 10,      // GGUF Q4_K
    kQ5K = 11,      // GGUF Q5_K
    kQ6K = 12,      // GGUF Q6_K
    kIQ4NL = 13,    // GGUF IQ4_NL
    kIQ4XS = 14,    // GGUF IQ4_XS
    kMXFP4 = 15,    // GGUF MXFP4
    kQ8Float = 16,  // 8 bits with scales in float
    kQ8Fine = 17,   // 8 bits with scales in float for 16 columns each
};

/// What a scale or minimum is made of.
enum class Factor : std::uint8_t {
    kNone,
    kHalf,        // binary16
    kFloat,       // float
    kPower,       // a byte b: 2^(b - 128), of which the smallest two are subnormal floats
    kByte,        // an unsigned byte times binary16
    kSignedByte,  // a signed byte times binary16
    kLowHalf,     // of scales: the low half of a byte times binary16
    kHighHalf,    // of minimums: the high half of the same byte times binary16
};

constexpr std::size_t factor_bytes(Factor factor) {
    switch (factor) {
        case Factor::kNone: return 0;
        case Factor::kHalf: return 2;
        case Factor::kFloat: return 4;
        case Factor::kPower:
        case Factor::kByte:
        case Factor::kSignedByte:
        case Factor::kLowHalf: return 1;
        case Factor::kHighHalf: return 0;
    }
    return 0;
}
constexpr bool is_product(Factor factor) { return factor >= Factor::kByte; }

// What the quants of some formats stand for: the numbers of IQ4, and twice the numbers of E2M1.
constexpr std::int8_t kIq4Numbers[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr std::int8_t kFp4Numbers[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// A format in a line. Of a quantized one: number = quant - offset, or what `table` has at the quant.
struct FormatLayout {
    const char* name;           // for messages
    std::uint8_t low_bits = 0;  // of a quant, each in a plane of its own
    std::uint8_t high_bits = 0;
    std::uint8_t offset = 0;  // makes numbers unsigned; 128 and no table: the quants are signed bytes
    Factor scale = Factor::kNone;
    Factor minimum = Factor::kNone;
    bool fine = false;  // a scale, and a minimum if there is any, per 16 columns
    const std::int8_t* table = nullptr;

    constexpr bool is_signed() const { return table == nullptr && offset == 128; }
    constexpr unsigned bits() const { return low_bits + 0U + high_bits; }
    constexpr std::size_t quant_bytes() const { return kQuadBytes * bits(); }
    constexpr std::size_t block_groups() const { return is_product(scale) || is_product(minimum) ? 8 : 1; }
    /// Of the binary16 numbers of a block.
    constexpr std::size_t shared_bytes() const {
        return kPanelRows * 2 * ((is_product(scale) ? 1 : 0) + (is_product(minimum) ? 1 : 0));
    }
    constexpr std::size_t scales_bytes() const { return kPanelRows * (fine ? 2 : 1) * factor_bytes(scale); }
    constexpr std::size_t minimums_bytes() const { return kPanelRows * (fine ? 2 : 1) * factor_bytes(minimum); }
    /// Of all factors of a block.
    constexpr std::size_t factors_bytes() const {
        return shared_bytes() + block_groups() * (scales_bytes() + minimums_bytes());
    }
    constexpr std::size_t run_blocks() const {
        return low_bits == 8 ? 1 : kLineBytes / std::gcd(kLineBytes, factors_bytes());
    }
    constexpr std::size_t run_groups() const { return run_blocks() * block_groups(); }
    constexpr std::size_t run_factors_bytes() const { return run_blocks() * factors_bytes(); }
};

/// By format number.
constexpr FormatLayout kFormatLayouts[] = {
    {"float32"},
    {"float16"},
    {"bfloat16"},
    {"q4", 4, 0, 0, Factor::kHalf, Factor::kHalf},
    {"q8", 8, 0, 128, Factor::kHalf},
    {"q4-0", 4, 0, 8, Factor::kHalf},
    {"q5-0", 4, 1, 16, Factor::kHalf},
    {"q5-1", 4, 1, 0, Factor::kHalf, Factor::kHalf},
    {"q2-k", 2, 0, 0, Factor::kLowHalf, Factor::kHighHalf, true},
    {"q3-k", 2, 1, 4, Factor::kSignedByte, Factor::kNone, true},
    {"q4-k", 4, 0, 0, Factor::kByte, Factor::kByte},
    {"q5-k", 4, 1, 0, Factor::kByte, Factor::kByte},
    {"q6-k", 4, 2, 32, Factor::kSignedByte, Factor::kNone, true},
    {"iq4-nl", 4, 0, 128, Factor::kHalf, Factor::kNone, false, kIq4Numbers},
    {"iq4-xs", 4, 0, 128, Factor::kSignedByte, Factor::kNone, false, kIq4Numbers},
    {"mxfp4", 4, 0, 12, Factor::kPower, Factor::kNone, false, kFp4Numbers},
    {"q8-float", 8, 0, 128, Factor::kFloat},
    {"q8-fine", 8, 0, 128, Factor::kFloat, Factor::kNone, true},
};
constexpr std::uint32_t kNumWeightFormats = sizeof kFormatLayouts / sizeof kFormatLayouts[0];
static_assert(static_cast<std::uint32_t>(WeightFormat::kQ8Fine) + 1 == kNumWeightFormats);

constexpr const FormatLayout& layout_of(WeightFormat format) {
    return kFormatLayouts[static_cast<std::uint32_t>(format)];
}

constexpr bool is_quantized(WeightFormat format) { return layout_of(format).bits() != 0; }

/// Columns that a matrix has a multiple of.
constexpr std::size_t block_cols(WeightFormat format) {
    return is_quantized(format) ? layout_of(format).block_groups() * kGroup : 1;
}

/// Bytes of a panel. `cols` is a multiple of `block_cols`.
constexpr std::size_t panel_bytes(WeightFormat format, std::size_t cols) {
    if (is_quantized(format)) {
        const FormatLayout& layout = layout_of(format);
        const std::size_t groups = cols / kGroup, per_run = layout.run_groups();
        return (groups + per_run - 1) / per_run * layout.run_factors_bytes() + groups * layout.quant_bytes();
    }
    return cols * kPanelRows * (format == WeightFormat::kF32 ? 4 : 2);
}

/// Where a group's quants and factors are in a panel of a quantized format, in bytes.
template <WeightFormat F>
struct GroupPlace {
    static constexpr FormatLayout kLayout = layout_of(F);
    static constexpr std::size_t kRun = kLayout.run_groups();

    static constexpr std::size_t quants(std::size_t group) {
        return run(group) + kLayout.run_factors_bytes() + group % kRun * kLayout.quant_bytes();
    }
    /// `half` 0: of columns 0 to 15, or of all if the format is not fine; 1: of columns 16 to 31.
    static constexpr std::size_t scales(std::size_t group, std::size_t half) {
        return own(group) + half * kPanelRows * factor_bytes(kLayout.scale);
    }
    static constexpr std::size_t minimums(std::size_t group, std::size_t half) {
        return kLayout.minimum == Factor::kHighHalf
                   ? scales(group, half)
                   : own(group) + kLayout.scales_bytes() + half * kPanelRows * factor_bytes(kLayout.minimum);
    }
    /// The binary16 numbers that the bytes of `scales` or `minimums` are to be multiplied by.
    static constexpr std::size_t shared_scales(std::size_t group) { return block(group); }
    static constexpr std::size_t shared_minimums(std::size_t group) {
        return block(group) + (is_product(kLayout.scale) ? kPanelRows * 2 : 0);
    }

private:
    static constexpr std::size_t run(std::size_t group) {
        return group / kRun * (kLayout.run_factors_bytes() + kRun * kLayout.quant_bytes());
    }
    static constexpr std::size_t block(std::size_t group) {
        return run(group) + group % kRun / kLayout.block_groups() * kLayout.factors_bytes();
    }
    static constexpr std::size_t own(std::size_t group) {
        return block(group) + kLayout.shared_bytes() +
               group % kLayout.block_groups() * (kLayout.scales_bytes() + kLayout.minimums_bytes());
    }
};

/// Calls `function` with the format as a constant, and returns what it returns.
template <std::uint32_t Number = 0, typename Function>
inline auto with_format(WeightFormat format, Function&& function) {
    if constexpr (Number + 1 < kNumWeightFormats) {
        if (static_cast<std::uint32_t>(format) != Number) {
            return with_format<Number + 1>(format, function);
        }
    }
    return function(std::integral_constant<WeightFormat, static_cast<WeightFormat>(Number)>());
}

/// A packed matrix; the memory is not its own, 64-byte aligned. Panels follow each other, or lie further apart: between
/// those of two matrices that are read together are the other one's.
struct Matrix {
    Matrix() = default;
    /// `panel_stride`: bytes from one panel to the next; 0 if there is nothing between them.
    Matrix(WeightFormat its_format, std::size_t num_rows, std::size_t num_cols, const std::uint8_t* packed = nullptr,
           std::size_t panel_stride = 0)
        : format(its_format),
          rows(num_rows),
          cols(num_cols),
          data(packed),
          stride(panel_stride != 0 ? panel_stride : panel_bytes(its_format, num_cols)) {}

    WeightFormat format = WeightFormat::kF32;
    std::size_t rows = 0;
    std::size_t cols = 0;
    const std::uint8_t* data = nullptr;
    std::size_t stride = 0;

    std::size_t num_panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
    std::size_t bytes() const { return num_panels() * panel_bytes(format, cols); }
    const std::uint8_t* panel(std::size_t index) const { return data + index * stride; }
};

}  // namespace rbee::kernels
