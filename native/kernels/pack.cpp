// Every pair of a source's type and a format that it can be packed into is one instance of pack_blocks, copy_floats or
// quantize_groups, all of which fill one panel.

#include "rbee_kernels/pack.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "rbee_kernels/ggml_table_blocks.h"
#include "rbee_kernels/packed_group.h"
#include "rbee_kernels/quantize.h"

namespace rbee::kernels {
namespace {

// Keeps all sizes in bytes far from overflow.
constexpr std::size_t kMostRowsOrCols = std::size_t{1} << 28U;

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

std::string text(std::size_t number) { return std::to_string(number); }

// Rows of a source, group by group of 32 columns.

template <typename Block>
struct BlockReader {
    static constexpr std::size_t kPerBlock = Block::kCols / kGroup;

    static WeightGroup group(const std::uint8_t* row, std::size_t index) {
        return Block::group(row + index / kPerBlock * Block::kBytes, index % kPerBlock);
    }
    static void floats(const std::uint8_t* row, std::size_t index, float* out) {
        get_floats<Block::kFormat>(group(row, index), out);
    }
};

template <typename T>
struct FloatReader {
    static void floats(const std::uint8_t* row, std::size_t index, float* out) {
        T numbers[kGroup];
        std::memcpy(numbers, row + index * sizeof numbers, sizeof numbers);
        for (std::size_t i = 0; i < kGroup; ++i) {
            out[i] = float_of(numbers[i]);
        }
    }
};

// Panels. A row that is null is one of zeros.

using PackPanel = void (*)(const std::uint8_t* const* rows, std::size_t cols, std::uint8_t* panel);

template <typename Block>
void pack_blocks(const std::uint8_t* const* rows, std::size_t cols, std::uint8_t* panel) {
    for (std::size_t lane = 0; lane < kPanelRows; ++lane) {
        for (std::size_t g = 0; g < cols / kGroup; ++g) {
            const WeightGroup group = rows[lane] != nullptr ? BlockReader<Block>::group(rows[lane], g) : WeightGroup();
            put_group<Block::kFormat>(group, lane, panel, g);
        }
    }
}

template <typename Reader, WeightFormat F>
void quantize_groups(const std::uint8_t* const* rows, std::size_t cols, std::uint8_t* panel) {
    for (std::size_t lane = 0; lane < kPanelRows; ++lane) {
        for (std::size_t g = 0; g < cols / kGroup; ++g) {
            WeightGroup group;
            if (rows[lane] != nullptr) {
                float x[kGroup];
                Reader::floats(rows[lane], g, x);
                group = quantize<F>(x);
            }
            put_group<F>(group, lane, panel, g);
        }
    }
}

/// As T, or widened to float.
template <typename T, typename Packed>
void copy_floats(const std::uint8_t* const* rows, std::size_t cols, std::uint8_t* panel) {
    // By tiles of 16 columns, which are consecutive in the panel as well as in each row.
    for (std::size_t first = 0; first < cols; first += 16) {
        const std::size_t end = std::min(first + 16, cols);
        for (std::size_t lane = 0; lane < kPanelRows; ++lane) {
            for (std::size_t k = first; k < end; ++k) {
                Packed value{};
                if (rows[lane] != nullptr) {
                    const T number = read<T>(rows[lane] + k * sizeof(T));
                    if constexpr (std::is_same_v<T, Packed>) {
                        value = number;
                    } else {
                        value = float_of(number);
                    }
                }
                std::memcpy(panel + (k * kPanelRows + lane) * sizeof value, &value, sizeof value);
            }
        }
    }
}

// The types.

template <typename Block>
void dequantize_blocks(const std::uint8_t* row, std::size_t cols, float* out) {
    for (std::size_t g = 0; g < cols / kGroup; ++g) {
        BlockReader<Block>::floats(row, g, out + g * kGroup);
    }
}

template <typename T>
void widen_floats(const std::uint8_t* row, std::size_t cols, float* out) {
    for (std::size_t k = 0; k < cols; ++k) {
        out[k] = float_of(read<T>(row + k * sizeof(T)));
    }
}

/// A type of source.
struct SourceTraits {
    SourceType type;
    const char* name;
    std::size_t block_cols;
    std::size_t block_bytes;
    WeightFormat format;                        // that holds it
    PackPanel (*packing)(WeightFormat format);  // null: it would lose something that `check_packable` does not list
    void (*dequantize)(const std::uint8_t* row, std::size_t cols, float* out);
};

template <typename Block>
constexpr SourceTraits blocks(SourceType type, const char* name) {
    const auto packing = [](WeightFormat format) -> PackPanel {
        return format == Block::kFormat ? pack_blocks<Block> : nullptr;
    };
    return {type, name, Block::kCols, Block::kBytes, Block::kFormat, packing, dequantize_blocks<Block>};
}

template <typename T, WeightFormat Own>
constexpr SourceTraits floats(SourceType type, const char* name) {
    const auto packing = [](WeightFormat format) -> PackPanel {
        return format == Own                  ? copy_floats<T, T>
               : format == WeightFormat::kF32 ? copy_floats<T, float>
               : format == WeightFormat::kQ4  ? quantize_groups<FloatReader<T>, WeightFormat::kQ4>
               : format == WeightFormat::kQ8  ? quantize_groups<FloatReader<T>, WeightFormat::kQ8>
                                              : nullptr;
    };
    return {type, name, 1, sizeof(T), Own, packing, widen_floats<T>};
}

constexpr SourceTraits kSourceTypes[] = {
    floats<float, WeightFormat::kF32>(SourceType::kF32, "F32"),
    floats<Half, WeightFormat::kF16>(SourceType::kF16, "F16"),
    floats<BFloat, WeightFormat::kBF16>(SourceType::kBF16, "BF16"),
    blocks<BlockQ1_0>(SourceType::kQ1_0, "Q1_0"),
    blocks<BlockQ2_0>(SourceType::kQ2_0, "Q2_0"),
    blocks<BlockTQ1_0>(SourceType::kTQ1_0, "TQ1_0"),
    blocks<BlockTQ2_0>(SourceType::kTQ2_0, "TQ2_0"),
    blocks<BlockQ4_0>(SourceType::kQ4_0, "Q4_0"),
    blocks<BlockQ4_1>(SourceType::kQ4_1, "Q4_1"),
    blocks<BlockQ5_0>(SourceType::kQ5_0, "Q5_0"),
    blocks<BlockQ5_1>(SourceType::kQ5_1, "Q5_1"),
    blocks<BlockQ8_0>(SourceType::kQ8_0, "Q8_0"),
    blocks<BlockQ2_K>(SourceType::kQ2_K, "Q2_K"),
    blocks<BlockQ3_K>(SourceType::kQ3_K, "Q3_K"),
    blocks<BlockQ4_K>(SourceType::kQ4_K, "Q4_K"),
    blocks<BlockQ5_K>(SourceType::kQ5_K, "Q5_K"),
    blocks<BlockQ6_K>(SourceType::kQ6_K, "Q6_K"),
    blocks<BlockIQ1_S>(SourceType::kIQ1_S, "IQ1_S"),
    blocks<BlockIQ1_M>(SourceType::kIQ1_M, "IQ1_M"),
    blocks<BlockIQ2_XXS>(SourceType::kIQ2_XXS, "IQ2_XXS"),
    blocks<BlockIQ2_XS>(SourceType::kIQ2_XS, "IQ2_XS"),
    blocks<BlockIQ2_S>(SourceType::kIQ2_S, "IQ2_S"),
    blocks<BlockIQ3_XXS>(SourceType::kIQ3_XXS, "IQ3_XXS"),
    blocks<BlockIQ3_S>(SourceType::kIQ3_S, "IQ3_S"),
    blocks<BlockIQ4_NL>(SourceType::kIQ4_NL, "IQ4_NL"),
    blocks<BlockIQ4_XS>(SourceType::kIQ4_XS, "IQ4_XS"),
    blocks<BlockMXFP4>(SourceType::kMXFP4, "MXFP4"),
    blocks<BlockNVFP4>(SourceType::kNVFP4, "NVFP4"),
};

const SourceTraits& traits(SourceType type) {
    for (const SourceTraits& known : kSourceTypes) {
        if (known.type == type) {
            return known;
        }
    }
    std::string names;
    for (const SourceTraits& known : kSourceTypes) {
        names += (names.empty() ? "" : ", ") + std::string(known.name);
    }
    refuse("ggml type " + text(static_cast<std::size_t>(type)) + " cannot be read; these can: " + names + ".");
}

std::size_t row_bytes(const SourceTraits& type, std::size_t cols) { return cols / type.block_cols * type.block_bytes; }

const std::uint8_t* stored_row(const SourceMatrix& source, std::size_t row) {
    const std::size_t index = source.row_order != nullptr ? source.row_order[row] : row;
    return source.data + index * row_bytes(traits(source.type), source.cols);
}

void check_sides(std::size_t rows, std::size_t cols) {
    if (rows > kMostRowsOrCols || cols > kMostRowsOrCols) {
        refuse("A matrix of " + text(rows) + " x " + text(cols) + " is too large; it can have " +
               text(kMostRowsOrCols) + " rows and columns.");
    }
}

/// Refuses bytes and a row_order that do not fit the sides; `check_sides` has accepted these.
void check_size(const SourceMatrix& source) {
    const SourceTraits& from = traits(source.type);
    const std::string name = from.name;
    if (source.cols % from.block_cols != 0) {
        refuse("Rows of " + name + " are blocks of " + text(from.block_cols) + " columns, which " + text(source.cols) +
               " columns are not.");
    }
    const std::size_t bytes = source.rows * row_bytes(from, source.cols);
    if (source.bytes != bytes) {
        refuse(text(source.rows) + " x " + text(source.cols) + " weights as " + name + " have " + text(bytes) +
               " bytes, not " + text(source.bytes) + ".");
    }
    for (std::size_t row = 0; source.row_order != nullptr && row < source.rows; ++row) {
        if (source.row_order[row] >= source.rows) {
            refuse("row_order names row " + text(source.row_order[row]) + " of " + text(source.rows) + ".");
        }
    }
}

template <WeightFormat F>
void unpack_row(const std::uint8_t* panel, std::size_t lane, std::size_t cols, float* out) {
    if constexpr (is_quantized(F)) {
        for (std::size_t g = 0; g < cols / kGroup; ++g) {
            get_floats<F>(get_group<F>(panel, g, lane), out + g * kGroup);
        }
    } else {
        using T = std::conditional_t<F == WeightFormat::kF32, float,
                                     std::conditional_t<F == WeightFormat::kF16, Half, BFloat>>;
        for (std::size_t k = 0; k < cols; ++k) {
            out[k] = float_of(read<T>(panel + (k * kPanelRows + lane) * sizeof(T)));
        }
    }
}

const char* name_of(WeightFormat format) {
    if (static_cast<std::uint32_t>(format) >= kNumWeightFormats) {
        refuse("There is no weight format " + text(static_cast<std::size_t>(format)) + ".");
    }
    return layout_of(format).name;
}

}  // namespace

std::vector<const char*> source_types() {
    std::vector<const char*> names;
    for (const SourceTraits& type : kSourceTypes) {
        names.push_back(type.name);
    }
    return names;
}

WeightFormat held_by(SourceType type) { return traits(type).format; }

std::size_t packed_bytes(WeightFormat format, std::size_t rows, std::size_t cols) {
    const char* const name = name_of(format);
    check_sides(rows, cols);
    if (cols % block_cols(format) != 0) {
        refuse(std::string(name) + " has blocks of " + text(block_cols(format)) + " columns, which " + text(cols) +
               " columns are not; leave them floats.");
    }
    return Matrix{format, rows, cols, nullptr}.bytes();
}

Matrix packed_matrix(WeightFormat format, std::size_t rows, std::size_t cols, const std::uint8_t* packed,
                     std::size_t bytes) {
    const std::size_t needed = packed_bytes(format, rows, cols);
    if (bytes != needed) {
        refuse(text(rows) + " x " + text(cols) + " weights packed as " + name_of(format) + " have " + text(needed) +
               " bytes, not " + text(bytes) + ".");
    }
    return {format, rows, cols, packed};
}

void check_packable(const SourceMatrix& source, WeightFormat format) {
    (void)packed_bytes(format, source.rows, source.cols);
    const SourceTraits& from = traits(source.type);
    if (from.packing(format) == nullptr) {
        refuse(std::string(from.name) + " would lose something as " + name_of(format) + "; " + name_of(from.format) +
               " holds it.");
    }
    check_size(source);
}

void pack_panels(const SourceMatrix& source, WeightFormat format, std::size_t first_row, std::size_t end_row,
                 std::uint8_t* to, std::size_t stride) {
    const PackPanel pack_panel = traits(source.type).packing(format);
    for (std::size_t panel = first_row; panel < end_row; panel += kPanelRows, to += stride) {
        const std::uint8_t* rows[kPanelRows] = {};
        for (std::size_t row = panel; row < std::min(panel + kPanelRows, end_row); ++row) {
            rows[row - panel] = stored_row(source, row);
        }
        pack_panel(rows, source.cols, to);
    }
}

void pack(const SourceMatrix& source, WeightFormat format, std::size_t first, std::size_t end, std::uint8_t* packed,
          std::size_t bytes) {
    (void)packed_matrix(format, source.rows, source.cols, packed, bytes);
    check_packable(source, format);
    if (first > end || end > source.rows || first % kPanelRows != 0 || (end % kPanelRows != 0 && end != source.rows)) {
        refuse("Rows " + text(first) + " to " + text(end) + " of " + text(source.rows) +
               " are not panels of 16, of which only the last can be smaller.");
    }
    const std::size_t stride = panel_bytes(format, source.cols);
    pack_panels(source, format, first, end, packed + first / kPanelRows * stride, stride);
}

void check_rows(const SourceMatrix& source, std::size_t first, std::size_t end) {
    check_sides(source.rows, source.cols);
    check_size(source);
    if (first > end || end > source.rows) {
        refuse("A matrix of " + text(source.rows) + " rows has no rows " + text(first) + " to " + text(end) + ".");
    }
}

void dequantize(const SourceMatrix& source, std::size_t first, std::size_t end, float* out) {
    for (std::size_t row = first; row < end; ++row, out += source.cols) {
        traits(source.type).dequantize(stored_row(source, row), source.cols, out);
    }
}

void unpack(const Matrix& matrix, float* out) {
    with_format(matrix.format, [&](auto format) {
        for (std::size_t row = 0; row < matrix.rows; ++row) {
            unpack_row<decltype(format)::value>(matrix.panel(row / kPanelRows), row % kPanelRows, matrix.cols,
                                                out + row * matrix.cols);
        }
    });
}

}  // namespace rbee::kernels
