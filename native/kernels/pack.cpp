// Every pair of a source's type and a format that it can be packed into is one instance of pack_blocks, copy_floats or
// quantize_floats, all of which fill one panel.

#include "rbee_kernels/pack.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "rbee_kernels/ggml_blocks.h"

namespace rbee::kernels {
namespace {

// Keeps all sizes in bytes far from overflow.
constexpr std::size_t kMostRowsOrCols = std::size_t{1} << 28U;

template <WeightFormat F>
constexpr bool kFourBits = F == WeightFormat::kQ4 || F == WeightFormat::kQ4Wide;
template <WeightFormat F>
constexpr bool kHalfFactors = F == WeightFormat::kQ4 || F == WeightFormat::kQ8;

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

std::string text(std::size_t number) { return std::to_string(number); }

// Groups of 32 weights in a packed block.

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
        put_factor<F>(group.minimum, 1, lane, block + kFactors<F>);
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
    group.scales[0] = group.scales[1] = get_factor<F>(block + kFactors<F>, 0, lane);
    if constexpr (F == WeightFormat::kQ8Fine) {
        group.scales[1] = get_factor<F>(block + kFactors<F>, 1, lane);
    } else if constexpr (F != WeightFormat::kQ8) {
        group.minimum = get_factor<F>(block + kFactors<F>, 1, lane);
    }
    return group;
}

// Quantization of 32 floats.

struct Extremes {
    float least;
    float greatest;
};

/// Of finite numbers; in lanes, so that a compiler makes vector instructions of it.
Extremes extremes(const float* x) {
    constexpr std::size_t lanes = 8;
    float least[lanes], greatest[lanes];
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        least[lane] = greatest[lane] = x[lane];
    }
    for (std::size_t i = lanes; i < kGroup; i += lanes) {
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            least[lane] = x[i + lane] < least[lane] ? x[i + lane] : least[lane];
            greatest[lane] = x[i + lane] > greatest[lane] ? x[i + lane] : greatest[lane];
        }
    }
    return {*std::min_element(least, least + lanes), *std::max_element(greatest, greatest + lanes)};
}

/// NaN and infinity have greater bits than any finite number.
bool all_finite(const float* x) {
    std::uint32_t special = 0;
    for (std::size_t i = 0; i < kGroup; ++i) {
        special |= (bits_of(x[i]) & 0x7F800000U) == 0x7F800000U ? 1U : 0U;
    }
    return special == 0;
}

WeightGroup not_a_number() {
    WeightGroup group;
    group.scales[0] = group.scales[1] = std::numeric_limits<float>::quiet_NaN();
    return group;
}

/// quant = (x - minimum) / scale, rounded to nearest (of two the even one) and within limits.
WeightGroup quantize(const float* x, Half half_scale, Half half_minimum, float lowest, float highest) {
    // Sums with this have no bits behind the point; they were rounded off.
    constexpr float kRound = 0x1.8p23F;
    if (!is_finite(half_scale) || !is_finite(half_minimum)) {
        return not_a_number();
    }
    WeightGroup group;
    const float scale = float_of(half_scale);
    group.scales[0] = group.scales[1] = scale;
    group.minimum = float_of(half_minimum);
    if (scale == 0) {
        return group;
    }
    for (std::size_t i = 0; i < kGroup; ++i) {
        float quant = (x[i] - group.minimum) / scale;
        quant = quant > lowest ? quant : lowest;
        quant = quant < highest ? quant : highest;
        group.quants[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>((quant + kRound) - kRound));
    }
    return group;
}

template <WeightFormat F>
WeightGroup quantize(const float* x) {
    static_assert(F == WeightFormat::kQ4 || F == WeightFormat::kQ8);
    if (!all_finite(x)) {
        return not_a_number();
    }
    const auto [least, greatest] = extremes(x);
    if constexpr (F == WeightFormat::kQ4) {
        return quantize(x, half_of((greatest - least) / 15), half_of(least), 0, 15);
    } else {
        return quantize(x, half_of(std::max(greatest, -least) / 127), Half{0}, -127, 127);
    }
}

// Panels. A row that is null is one of zeros.

using PackPanel = void (*)(const std::uint8_t* const* rows, std::size_t cols, std::uint8_t* panel);

template <typename Block, WeightFormat F>
void pack_blocks(const std::uint8_t* const* rows, std::size_t cols, std::uint8_t* panel) {
    constexpr std::size_t per_block = Block::kCols / kGroup;
    for (std::size_t lane = 0; lane < kPanelRows; ++lane) {
        const std::uint8_t* const row = rows[lane];
        for (std::size_t g = 0; g < cols / kGroup; ++g) {
            const WeightGroup group =
                row != nullptr ? Block::group(row + g / per_block * Block::kBytes, g % per_block) : WeightGroup();
            put_group<F>(group, lane, panel + g * group_bytes(F));
        }
    }
}

template <typename T, WeightFormat F>
void quantize_floats(const std::uint8_t* const* rows, std::size_t cols, std::uint8_t* panel) {
    for (std::size_t lane = 0; lane < kPanelRows; ++lane) {
        for (std::size_t g = 0; g < cols / kGroup; ++g) {
            float x[kGroup] = {};
            for (std::size_t i = 0; rows[lane] != nullptr && i < kGroup; ++i) {
                x[i] = float_of(read<T>(rows[lane] + (g * kGroup + i) * sizeof(T)));
            }
            put_group<F>(quantize<F>(x), lane, panel + g * group_bytes(F));
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

/// Null if floats of this type would lose something in this format that `pack` does not report.
template <typename T, WeightFormat Own>
PackPanel pack_floats(WeightFormat format) {
    return format == Own                  ? copy_floats<T, T>
           : format == WeightFormat::kF32 ? copy_floats<T, float>
           : format == WeightFormat::kQ4  ? quantize_floats<T, WeightFormat::kQ4>
           : format == WeightFormat::kQ8  ? quantize_floats<T, WeightFormat::kQ8>
                                          : nullptr;
}

/// A type of source: its blocks, the format that usually holds it, and how it gets into a format (null: not at all).
struct SourceTraits {
    const char* name;
    std::size_t block_cols;
    std::size_t block_bytes;
    WeightFormat format;
    PackPanel pack;
};

template <typename Block, WeightFormat Own>
SourceTraits blocks(const char* name, WeightFormat format) {
    PackPanel pack = format == Own ? pack_blocks<Block, Own> : nullptr;
    if constexpr (Own == WeightFormat::kQ4) {
        pack = format == WeightFormat::kQ4Wide ? pack_blocks<Block, WeightFormat::kQ4Wide> : pack;
    }
    return {name, Block::kCols, Block::kBytes, Own, pack};
}

template <typename T, WeightFormat Own>
SourceTraits floats(const char* name, WeightFormat format) {
    return {name, 1, sizeof(T), Own, pack_floats<T, Own>(format)};
}

SourceTraits traits(SourceType type, WeightFormat format) {
    switch (type) {
        case SourceType::kF32: return floats<float, WeightFormat::kF32>("F32", format);
        case SourceType::kF16: return floats<Half, WeightFormat::kF16>("F16", format);
        case SourceType::kBF16: return floats<BFloat, WeightFormat::kBF16>("BF16", format);
        case SourceType::kQ4_0: return blocks<BlockQ4_0, WeightFormat::kQ4>("Q4_0", format);
        case SourceType::kQ4_1: return blocks<BlockQ4_1, WeightFormat::kQ4>("Q4_1", format);
        case SourceType::kQ8_0: return blocks<BlockQ8_0, WeightFormat::kQ8>("Q8_0", format);
        case SourceType::kQ4_K: return blocks<BlockQ4_K, WeightFormat::kQ4Wide>("Q4_K", format);
        case SourceType::kQ5_K: return blocks<BlockQ5_K, WeightFormat::kQ8Min>("Q5_K", format);
        case SourceType::kQ6_K: return blocks<BlockQ6_K, WeightFormat::kQ8Fine>("Q6_K", format);
    }
    refuse("ggml type " + text(static_cast<std::size_t>(type)) +
           " cannot be packed; F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K and Q6_K can.");
}

std::size_t row_bytes(const SourceTraits& type, std::size_t cols) {
    return cols / type.block_cols * type.block_bytes;
}

/// True if 8 times each scale is within binary16.
bool fits_binary16(const std::uint8_t* blocks, std::size_t bytes) {
    bool fits = true;
    for (std::size_t at = 0; at < bytes; at += BlockQ4_0::kBytes) {
        fits &= (read<Half>(blocks + at).bits & 0x7FFFU) < BlockQ4_0::kTooLarge;
    }
    return fits;
}

template <WeightFormat F>
void unpack_row(const std::uint8_t* panel, std::size_t lane, std::size_t cols, float* out) {
    for (std::size_t g = 0; g < cols / kGroup; ++g) {
        const WeightGroup group = get_group<F>(panel + g * group_bytes(F), lane);
        for (std::size_t i = 0; i < kGroup; ++i) {
            const auto quant = static_cast<float>(static_cast<std::int8_t>(group.quants[i]));
            out[g * kGroup + i] = group.scales[i / 16] * quant + group.minimum;
        }
    }
}

template <typename T>
void unpack_row_of_floats(const std::uint8_t* panel, std::size_t lane, std::size_t cols, float* out) {
    for (std::size_t k = 0; k < cols; ++k) {
        out[k] = float_of(read<T>(panel + (k * kPanelRows + lane) * sizeof(T)));
    }
}

struct FormatTraits {
    const char* name;
    void (*unpack_row)(const std::uint8_t* panel, std::size_t lane, std::size_t cols, float* out);
};

FormatTraits traits(WeightFormat format) {
    switch (format) {
        case WeightFormat::kF32: return {"F32", unpack_row_of_floats<float>};
        case WeightFormat::kF16: return {"F16", unpack_row_of_floats<Half>};
        case WeightFormat::kBF16: return {"BF16", unpack_row_of_floats<BFloat>};
        case WeightFormat::kQ4: return {"Q4", unpack_row<WeightFormat::kQ4>};
        case WeightFormat::kQ4Wide: return {"Q4Wide", unpack_row<WeightFormat::kQ4Wide>};
        case WeightFormat::kQ8: return {"Q8", unpack_row<WeightFormat::kQ8>};
        case WeightFormat::kQ8Min: return {"Q8Min", unpack_row<WeightFormat::kQ8Min>};
        case WeightFormat::kQ8Fine: return {"Q8Fine", unpack_row<WeightFormat::kQ8Fine>};
    }
    refuse("There is no weight format " + text(static_cast<std::size_t>(format)) + ".");
}

}  // namespace

WeightFormat held_by(SourceType type, const std::uint8_t* source, std::size_t bytes) {
    const SourceTraits from = traits(type, WeightFormat::kF32);
    if (bytes % from.block_bytes != 0) {
        refuse(text(bytes) + " bytes are not whole blocks of " + from.name + ", which have " + text(from.block_bytes) +
               " each.");
    }
    return type == SourceType::kQ4_0 && !fits_binary16(source, bytes) ? WeightFormat::kQ4Wide : from.format;
}

std::size_t packed_bytes(WeightFormat format, std::size_t rows, std::size_t cols) {
    const char* const name = traits(format).name;
    if (rows > kMostRowsOrCols || cols > kMostRowsOrCols) {
        refuse("A matrix of " + text(rows) + " x " + text(cols) + " is too large; it can have " +
               text(kMostRowsOrCols) + " rows and columns.");
    }
    if (is_quantized(format) && cols % kGroup != 0) {
        refuse(std::string(name) + " has groups of 32 columns, which " + text(cols) +
               " columns are not; leave them floats.");
    }
    return Matrix{format, rows, cols, nullptr}.bytes();
}

Matrix packed_matrix(WeightFormat format, std::size_t rows, std::size_t cols, const std::uint8_t* packed,
                     std::size_t bytes) {
    const std::size_t needed = packed_bytes(format, rows, cols);
    if (bytes != needed) {
        refuse(text(rows) + " x " + text(cols) + " weights packed as " + traits(format).name + " have " + text(needed) +
               " bytes, not " + text(bytes) + ".");
    }
    return {format, rows, cols, packed};
}

void check_packable(const SourceMatrix& source, WeightFormat format) {
    (void)packed_bytes(format, source.rows, source.cols);
    const SourceTraits from = traits(source.type, format);
    const std::string name = from.name;
    if (from.pack == nullptr) {
        refuse(name + " would lose something as " + traits(format).name + "; " + traits(from.format).name +
               " holds it.");
    }
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

void pack_panels(const SourceMatrix& source, WeightFormat format, std::size_t first_row, std::size_t end_row,
                 std::uint8_t* to, std::size_t stride) {
    const SourceTraits from = traits(source.type, format);
    for (std::size_t panel = first_row; panel < end_row; panel += kPanelRows, to += stride) {
        const std::uint8_t* rows[kPanelRows] = {};
        for (std::size_t row = panel; row < std::min(panel + kPanelRows, end_row); ++row) {
            const std::size_t index = source.row_order != nullptr ? source.row_order[row] : row;
            rows[row - panel] = source.data + index * row_bytes(from, source.cols);
        }
        from.pack(rows, source.cols, to);
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
    const std::size_t from_row = source.cols / 32 * BlockQ4_0::kBytes;
    for (std::size_t row = first; source.type == SourceType::kQ4_0 && format == WeightFormat::kQ4 && row < end; ++row) {
        const std::size_t index = source.row_order != nullptr ? source.row_order[row] : row;
        if (!fits_binary16(source.data + index * from_row, from_row)) {
            refuse("A scale of these blocks of Q4_0 is too large for Q4; Q4Wide holds them.");
        }
    }
    const std::size_t stride = panel_bytes(format, source.cols);
    pack_panels(source, format, first, end, packed + first / kPanelRows * stride, stride);
}

void unpack(const Matrix& matrix, float* out) {
    const auto unpack_row = traits(matrix.format).unpack_row;
    for (std::size_t row = 0; row < matrix.rows; ++row) {
        unpack_row(matrix.panel(row / kPanelRows), row % kPanelRows, matrix.cols, out + row * matrix.cols);
    }
}

}  // namespace rbee::kernels
