// Packing: conversions of halves one by one, where every weight of a matrix ends up, whatever bits a file has, and
// nothing outside of the arrays is touched (they end where AddressSanitizer would see it). What whole matrices are is
// tested from Python, beside gguf and numpy.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "check.h"
#include "rbee_kernels/half.h"
#include "rbee_kernels/pack.h"

namespace {

using namespace rbee::kernels;

struct Type {
    SourceType type;
    std::size_t block_cols;
    std::size_t block_bytes;
    std::vector<WeightFormat> formats;
};

const Type kTypes[] = {
    {SourceType::kF32, 1, 4, {WeightFormat::kF32, WeightFormat::kQ4, WeightFormat::kQ8}},
    {SourceType::kF16, 1, 2, {WeightFormat::kF16, WeightFormat::kF32, WeightFormat::kQ4, WeightFormat::kQ8}},
    {SourceType::kBF16, 1, 2, {WeightFormat::kBF16, WeightFormat::kF32, WeightFormat::kQ4, WeightFormat::kQ8}},
    {SourceType::kQ1_0, 128, 18, {WeightFormat::kQ4_0}},
    {SourceType::kQ2_0, 64, 18, {WeightFormat::kQ4_0}},
    {SourceType::kTQ1_0, 256, 54, {WeightFormat::kQ4_0}},
    {SourceType::kTQ2_0, 256, 66, {WeightFormat::kQ4_0}},
    {SourceType::kQ4_0, 32, 18, {WeightFormat::kQ4_0}},
    {SourceType::kQ4_1, 32, 20, {WeightFormat::kQ4}},
    {SourceType::kQ5_0, 32, 22, {WeightFormat::kQ5_0}},
    {SourceType::kQ5_1, 32, 24, {WeightFormat::kQ5_1}},
    {SourceType::kQ8_0, 32, 34, {WeightFormat::kQ8}},
    {SourceType::kQ2_K, 256, 84, {WeightFormat::kQ2K}},
    {SourceType::kQ3_K, 256, 110, {WeightFormat::kQ3K}},
    {SourceType::kQ4_K, 256, 144, {WeightFormat::kQ4K}},
    {SourceType::kQ5_K, 256, 176, {WeightFormat::kQ5K}},
    {SourceType::kQ6_K, 256, 210, {WeightFormat::kQ6K}},
    {SourceType::kIQ1_S, 256, 50, {WeightFormat::kQ8Float}},
    {SourceType::kIQ1_M, 256, 56, {WeightFormat::kQ8Fine}},
    {SourceType::kIQ2_XXS, 256, 66, {WeightFormat::kQ8Float}},
    {SourceType::kIQ2_XS, 256, 74, {WeightFormat::kQ8Fine}},
    {SourceType::kIQ2_S, 256, 82, {WeightFormat::kQ8Fine}},
    {SourceType::kIQ3_XXS, 256, 98, {WeightFormat::kQ8Float}},
    {SourceType::kIQ3_S, 256, 110, {WeightFormat::kQ8Float}},
    {SourceType::kIQ4_NL, 32, 18, {WeightFormat::kIQ4NL}},
    {SourceType::kIQ4_XS, 256, 136, {WeightFormat::kIQ4XS}},
    {SourceType::kMXFP4, 32, 17, {WeightFormat::kMXFP4}},
    {SourceType::kNVFP4, 64, 36, {WeightFormat::kQ8Fine}},
};

/// Memory of exactly this size.
template <typename T>
struct Memory {
    explicit Memory(std::size_t count) : values(new T[count]), size(count) {}
    T* data() const { return values.get(); }
    std::unique_ptr<T[]> values;
    std::size_t size;
};

Memory<std::uint8_t> random_bytes(Random& random, std::size_t size) {
    Memory<std::uint8_t> bytes(size);
    for (std::size_t i = 0; i < size; ++i) {
        bytes.values[i] = static_cast<std::uint8_t>(random());
    }
    return bytes;
}

Memory<float> packed_and_unpacked(const SourceMatrix& source, WeightFormat format) {
    const Memory<std::uint8_t> packed(packed_bytes(format, source.rows, source.cols));
    pack(source, format, 0, source.rows, packed.data(), packed.size);
    Memory<float> weights(source.rows * source.cols);
    unpack(packed_matrix(format, source.rows, source.cols, packed.data(), packed.size), weights.data());
    return weights;
}

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void halves_are_what_they_mean() {
    for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
        const float value = float_of(Half{static_cast<std::uint16_t>(bits)});
        const int exponent = static_cast<int>(bits >> 10U & 31U);
        const int mantissa = static_cast<int>(bits & 1023U);
        float wanted = exponent == 31  ? (mantissa == 0 ? std::numeric_limits<float>::infinity() : std::nanf(""))
                       : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                       : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
        wanted = (bits & 0x8000U) != 0 ? -wanted : wanted;
        CHECK(same(value, wanted) && std::signbit(value) == ((bits & 0x8000U) != 0));
        const std::uint32_t back = half_of(value).bits;
        CHECK(back == bits || (std::isnan(value) && back == (bits | 0x200U)));  // NaN is quiet then
    }
}

void floats_become_the_nearest_half() {
    // Between two neighbours: just below the middle, in it (where the even one is nearest), and just above.
    for (std::uint32_t bits = 0; bits < 0x7C00U; ++bits) {
        const float low = float_of(Half{static_cast<std::uint16_t>(bits)});
        const float high = bits == 0x7BFFU ? 65536 : float_of(Half{static_cast<std::uint16_t>(bits + 1)});
        const float middle = low + (high - low) / 2;
        const std::uint32_t even = bits + (bits & 1U);
        for (const float sign : {1.0F, -1.0F}) {
            const std::uint32_t sign_bit = sign < 0 ? 0x8000U : 0;
            CHECK(half_of(sign * std::nextafter(middle, 0.0F)).bits == (bits | sign_bit));
            CHECK(half_of(sign * middle).bits == (even | sign_bit));
            CHECK(half_of(sign * std::nextafter(middle, high)).bits == ((bits + 1) | sign_bit));
        }
    }
    CHECK(half_of(std::numeric_limits<float>::denorm_min()).bits == 0);
    CHECK(half_of(std::numeric_limits<float>::max()).bits == 0x7C00U);
    CHECK(half_of(-std::numeric_limits<float>::infinity()).bits == 0xFC00U);
    // No NaN becomes an infinity, whichever of its bits are lost.
    for (std::uint32_t bit = 0; bit < 23; ++bit) {
        CHECK(std::isnan(float_of(half_of(from_bits(0x7F800000U | 1U << bit)))));
    }
}

/// A matrix of Q4_1 or Q8_0, byte for byte in the layout of weights.h. (The other formats: tests in Python.)
void quants_are_where_the_layout_says() {
    constexpr std::size_t rows = 33, cols = 96, groups = cols / kGroup;
    Random random{3};
    for (const bool four : {true, false}) {
        const std::size_t block = four ? 20 : 34, header = four ? 4 : 2;
        const Memory<std::uint8_t> source = random_bytes(random, rows * groups * block);
        const WeightFormat format = four ? WeightFormat::kQ4 : WeightFormat::kQ8;
        const Memory<std::uint8_t> packed(packed_bytes(format, rows, cols));
        const std::size_t factors_size = four ? 64 : 32, group_size = factors_size + (four ? 256 : 512);
        const std::size_t panel = groups * group_size;
        CHECK(packed.size == 3 * panel);
        pack({four ? SourceType::kQ4_1 : SourceType::kQ8_0, source.data(), source.size, rows, cols}, format, 0, rows,
             packed.data(), packed.size);
        for (std::size_t row = 0; row < rows; ++row) {
            for (std::size_t g = 0; g < groups; ++g) {
                const std::uint8_t* from = source.data() + (row * groups + g) * block;
                const std::uint8_t* factors = packed.data() + row / 16 * panel + g * group_size;
                const std::uint8_t* quants = factors + factors_size;
                const std::size_t r = row % 16;
                for (std::size_t k = 0; k < kGroup; ++k) {
                    const std::size_t quad = k / 4;
                    if (four) {
                        const unsigned wanted = k < 16 ? from[header + k] & 15U : from[header + k - 16] >> 4U;
                        CHECK((quants[64 * (quad / 2) + 4 * r + k % 4] >> (quad % 2 * 4) & 15U) == wanted);
                    } else {
                        CHECK(quants[64 * quad + 4 * r + k % 4] == from[header + k]);
                    }
                }
                CHECK(std::memcmp(factors + 2 * r, from, 2) == 0);
                CHECK(!four || std::memcmp(factors + 32 + 2 * r, from + 2, 2) == 0);
            }
        }
    }
}

void any_bits_are_packed() {
    Random random{7};
    for (const Type& type : kTypes) {
        for (const WeightFormat format : type.formats) {
            for (const std::size_t rows : {1U, 15U, 16U, 33U}) {
                for (const std::size_t blocks : {1U, 3U}) {
                    const std::size_t cols = blocks * (is_quantized(format) ? std::max(type.block_cols, kGroup) : 5);
                    const Memory<std::uint8_t> source =
                        random_bytes(random, rows * cols / type.block_cols * type.block_bytes);
                    std::vector<std::uint32_t> order(rows);
                    for (std::uint32_t& row : order) {
                        row = random.below(static_cast<std::uint32_t>(rows));
                    }
                    SourceMatrix matrix{type.type, source.data(), source.size, rows, cols};
                    const Memory<float> weights = packed_and_unpacked(matrix, format);
                    matrix.row_order = order.data();
                    const Memory<float> ordered = packed_and_unpacked(matrix, format);
                    for (std::size_t i = 0; i < ordered.size; ++i) {
                        CHECK(same(ordered.values[i], weights.values[order[i / cols] * cols + i % cols]));
                    }
                    // Reading blocks directly or out of a panel is the same, unless floats were made quants.
                    const bool requantized = type.block_cols == 1 && is_quantized(format);
                    check_rows(matrix, 0, rows);
                    Memory<float> floats(rows * cols);
                    dequantize(matrix, 0, rows, floats.data());
                    for (std::size_t i = 0; i < floats.size && !requantized; ++i) {
                        CHECK(same(floats.values[i], ordered.values[i]));
                    }
                    CHECK(held_by(type.type) == type.formats[0]);
                }
            }
        }
    }
}

/// Panels of 33 rows a stride apart, into memory that has its own bytes between them.
void panels_lie_apart() {
    constexpr std::size_t rows = 33, cols = 64, gap = 24;
    constexpr WeightFormat format = WeightFormat::kQ8;
    Random random{5};
    const Memory<std::uint8_t> source = random_bytes(random, rows * 2 * 34);
    const SourceMatrix matrix{SourceType::kQ8_0, source.data(), source.size, rows, cols};
    const std::size_t panel = panel_bytes(format, cols), stride = panel + gap;
    const Memory<std::uint8_t> whole(packed_bytes(format, rows, cols));
    pack(matrix, format, 0, rows, whole.data(), whole.size);
    const Memory<std::uint8_t> apart(2 * stride + panel);
    std::memset(apart.data(), 0xA5, apart.size);
    check_packable(matrix, format);
    pack_panels(matrix, format, 16, rows, apart.data() + stride, stride);
    CHECK(apart.values[0] == 0xA5 && apart.values[stride - 1] == 0xA5);
    pack_panels(matrix, format, 0, 16, apart.data(), stride);
    for (std::size_t i = 0; i < apart.size; ++i) {
        const std::size_t at = i % stride;
        CHECK(apart.values[i] == (at < panel ? whole.values[i / stride * panel + at] : 0xA5));
    }
}

void one_bad_float_spoils_its_group() {
    for (const WeightFormat format : {WeightFormat::kQ4, WeightFormat::kQ8}) {
        for (const float bad : {std::nanf(""), -std::numeric_limits<float>::infinity(), 3e38F}) {
            for (std::size_t at = 0; at < 2 * kGroup; ++at) {
                Memory<float> source(2 * kGroup);
                for (std::size_t i = 0; i < source.size; ++i) {
                    source.values[i] = i == at ? bad : static_cast<float>(i % 7) - 3;
                }
                const auto* bytes = reinterpret_cast<const std::uint8_t*>(source.data());
                const Memory<float> weights =
                    packed_and_unpacked({SourceType::kF32, bytes, 4 * source.size, 1, source.size}, format);
                for (std::size_t i = 0; i < weights.size; ++i) {
                    const float weight = weights.values[i];
                    CHECK(i / kGroup == at / kGroup ? std::isnan(weight)
                                                    : std::fabs(weight - source.values[i]) <= 0.21F);
                }
            }
        }
    }
}

void what_does_not_fit_is_refused() {
    const Memory<std::uint8_t> source(20 * 34), packed(2 * 544);
    const SourceMatrix matrix{SourceType::kQ8_0, source.data(), source.size, 20, 32};
    const auto pack_with = [&](auto change, WeightFormat format, std::size_t first, std::size_t end,
                               std::size_t bytes) {
        SourceMatrix changed = matrix;
        change(changed);
        pack(changed, format, first, end, packed.data(), bytes);
    };
    const auto same_matrix = [](SourceMatrix&) {};
    constexpr WeightFormat q8 = WeightFormat::kQ8;
    std::memset(source.data(), 0, source.size);
    pack_with(same_matrix, q8, 0, 20, packed.size);
    pack_with(same_matrix, q8, 16, 20, packed.size);
    pack_with(same_matrix, q8, 16, 16, packed.size);
    CHECK_THROWS(std::invalid_argument, pack_with(same_matrix, q8, 0, 20, packed.size - 1));
    CHECK_THROWS(std::invalid_argument, pack_with(same_matrix, q8, 4, 20, packed.size));
    CHECK_THROWS(std::invalid_argument, pack_with(same_matrix, q8, 0, 19, packed.size));
    CHECK_THROWS(std::invalid_argument, pack_with(same_matrix, q8, 0, 32, packed.size));
    CHECK_THROWS(std::invalid_argument, pack_with(same_matrix, WeightFormat::kQ8Float, 0, 20, packed.size));
    CHECK_THROWS(std::invalid_argument, pack_with(same_matrix, static_cast<WeightFormat>(8), 0, 20, packed.size));
    CHECK_THROWS(std::invalid_argument, pack_with([](auto& m) { --m.bytes; }, q8, 0, 20, packed.size));
    CHECK_THROWS(std::invalid_argument, pack_with([](auto& m) { ++m.rows; }, q8, 0, 20, packed.size));
    CHECK_THROWS(std::invalid_argument, pack_with([](auto& m) { m.cols = 33; }, q8, 0, 20, packed.size));
    CHECK_THROWS(std::invalid_argument,
                 pack_with([](auto& m) { m.type = static_cast<SourceType>(9); }, q8, 0, 20, packed.size));
    std::vector<std::uint32_t> order(20);
    order[19] = 20;
    CHECK_THROWS(std::invalid_argument,
                 pack_with([&](auto& m) { m.row_order = order.data(); }, q8, 0, 20, packed.size));
    // Whose product of sides, or of sides and bytes, would overflow to what there is.
    for (const std::size_t side : {std::size_t{1} << 29U, std::size_t{1} << 59U, std::size_t{1} << 63U}) {
        CHECK_THROWS(std::invalid_argument, packed_bytes(WeightFormat::kF32, side, 32));
        CHECK_THROWS(std::invalid_argument, packed_bytes(WeightFormat::kF32, 16, side));
    }
    CHECK(packed_bytes(WeightFormat::kF32, std::size_t{1} << 28U, std::size_t{1} << 28U) == std::size_t{1} << 58U);
    CHECK_THROWS(std::invalid_argument, packed_matrix(q8, 20, 32, packed.data(), packed.size + 1));
    CHECK_THROWS(std::invalid_argument, held_by(static_cast<SourceType>(9)));
    check_rows(matrix, 3, 20);
    CHECK_THROWS(std::invalid_argument, check_rows(matrix, 3, 21));
    CHECK_THROWS(std::invalid_argument, check_rows(matrix, 4, 3));
    SourceMatrix huge = matrix;
    huge.rows = std::size_t{1} << 63U;
    CHECK_THROWS(std::invalid_argument, check_rows(huge, 0, 0));
}

}  // namespace

extern const Test kPackTests[];
const Test kPackTests[] = {
    {"halves are what they mean, and come back", halves_are_what_they_mean},
    {"floats become the nearest half", floats_become_the_nearest_half},
    {"quants and factors are where the layout says", quants_are_where_the_layout_says},
    {"any bits of a file are packed and read, in any order of rows", any_bits_are_packed},
    {"panels lie apart, with what is between them untouched", panels_lie_apart},
    {"a float that cannot be quantized makes its group NaN", one_bad_float_spoils_its_group},
    {"what does not fit is refused", what_does_not_fit_is_refused},
    {nullptr, nullptr},
};
