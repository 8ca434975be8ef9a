// The quantized formats a second time, after the text of weights.h: where each quant and factor of a panel is.
//
// Owns the arithmetic of places, written for one row and column at a time. Shares nothing with the kernels' own.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "rbee_kernels/weights.h"

#include "check.h"

namespace rbee::kernels::test {

/// What factors are: 'h' binary16, 'f' float, 'p' a power of two, 'b' byte, 's' signed byte, 'l' and 'u' the lower and
/// upper half of one byte; bytes and halves times binary16. '-': there is none.
struct PackedFormat {
    WeightFormat format;
    unsigned low, high;  // bits in the two planes
    int offset;
    char scale, minimum;
    bool fine;
    std::vector<int> numbers = {};  // of quants, if they are not quant - offset
};

const std::vector<int> kIq4 = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const std::vector<int> kFp4 = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

const PackedFormat kPackedFormats[] = {
    {WeightFormat::kQ4, 4, 0, 0, 'h', 'h', false},          {WeightFormat::kQ8, 8, 0, 128, 'h', '-', false},
    {WeightFormat::kQ4_0, 4, 0, 8, 'h', '-', false},        {WeightFormat::kQ5_0, 4, 1, 16, 'h', '-', false},
    {WeightFormat::kQ5_1, 4, 1, 0, 'h', 'h', false},        {WeightFormat::kQ2K, 2, 0, 0, 'l', 'u', true},
    {WeightFormat::kQ3K, 2, 1, 4, 's', '-', true},          {WeightFormat::kQ4K, 4, 0, 0, 'b', 'b', false},
    {WeightFormat::kQ5K, 4, 1, 0, 'b', 'b', false},         {WeightFormat::kQ6K, 4, 2, 32, 's', '-', true},
    {WeightFormat::kIQ4NL, 4, 0, 0, 'h', '-', false, kIq4}, {WeightFormat::kIQ4XS, 4, 0, 0, 's', '-', false, kIq4},
    {WeightFormat::kMXFP4, 4, 0, 0, 'p', '-', false, kFp4}, {WeightFormat::kQ8Float, 8, 0, 128, 'f', '-', false},
    {WeightFormat::kQ8Fine, 8, 0, 128, 'f', '-', true},
};

inline const PackedFormat& packed_format(WeightFormat format) {
    for (const PackedFormat& packed : kPackedFormats) {
        if (packed.format == format) {
            return packed;
        }
    }
    fail(__FILE__, __LINE__, "no such format");
}

inline float half_to_float(std::uint16_t bits) {
    const int exponent = (bits >> 10) & 31;
    const double mantissa = (bits & 1023) / 1024.0;
    const double size = exponent == 0 ? std::ldexp(mantissa, -14) : std::ldexp(1 + mantissa, exponent - 15);
    return static_cast<float>((bits & 0x8000) != 0 ? -size : size);
}

/// One panel. Entry `row` of a factor's array is written and read with its own size.
class PackedPanel {
public:
    PackedPanel(WeightFormat format, std::uint8_t* panel) : f_(packed_format(format)), panel_(panel) {}

    const PackedFormat& format() const { return f_; }
    unsigned bits() const { return f_.low + f_.high; }
    std::size_t halves() const { return f_.fine ? 2 : 1; }

    void set_quant(std::size_t group, std::size_t row, std::size_t col, unsigned quant) {
        std::uint8_t* const planes = panel_ + run(group) + run_factors() + group % run_groups() * 64 * bits();
        set_bits(planes + 64 * f_.high, f_.low, row, col, quant & ((1U << f_.low) - 1));
        if (f_.high != 0) {
            set_bits(planes, f_.high, row, col, quant >> f_.low);
        }
    }
    /// What the weight's quant stands for, without its factors.
    int number(unsigned quant) const {
        if (!f_.numbers.empty()) {
            return f_.numbers[quant];
        }
        return f_.offset == 128 ? static_cast<std::int8_t>(quant) : static_cast<int>(quant) - f_.offset;
    }
    std::uint8_t* scale(std::size_t group, std::size_t half, std::size_t row) {
        return own(group) + (half * 16 + row) * size(f_.scale);
    }
    std::uint8_t* minimum(std::size_t group, std::size_t half, std::size_t row) {
        return f_.minimum == 'u' ? scale(group, half, row)
                                 : own(group) + halves() * 16 * size(f_.scale) + (half * 16 + row) * size(f_.minimum);
    }
    /// The binary16 number that goes with it.
    std::uint8_t* shared_scale(std::size_t group, std::size_t row) { return block(group) + 2 * row; }
    std::uint8_t* shared_minimum(std::size_t group, std::size_t row) {
        return block(group) + 2 * row + (is_shared(f_.scale) ? 32 : 0);
    }
    static bool is_shared(char factor) { return std::strchr("bslu", factor) != nullptr; }

private:
    static std::size_t size(char factor) {
        return factor == 'f' ? 4 : factor == 'h' ? 2 : factor == '-' || factor == 'u' ? 0 : 1;
    }
    static void set_bits(std::uint8_t* plane, unsigned bits, std::size_t row, std::size_t col, unsigned value) {
        const std::size_t quads = 8 / bits, quad = col / 4;
        std::uint8_t& byte = plane[quad / quads * 64 + 4 * row + col % 4];
        const unsigned shift = static_cast<unsigned>(quad % quads) * bits;
        byte = static_cast<std::uint8_t>((byte & ~(((1U << bits) - 1) << shift)) | (value << shift));
    }
    std::size_t block_groups() const { return is_shared(f_.scale) ? 8 : 1; }
    std::size_t own_bytes() const { return halves() * 16 * (size(f_.scale) + size(f_.minimum)); }
    std::size_t block_bytes() const {
        return (is_shared(f_.scale) ? 32U : 0U) + (is_shared(f_.minimum) ? 32U : 0U) + block_groups() * own_bytes();
    }
    std::size_t run_blocks() const {
        std::size_t blocks = 1;
        while (f_.low != 8 && blocks * block_bytes() % 64 != 0) {
            ++blocks;
        }
        return blocks;
    }
    std::size_t run_groups() const { return run_blocks() * block_groups(); }
    std::size_t run_factors() const { return run_blocks() * block_bytes(); }
    std::size_t run(std::size_t group) const {
        return group / run_groups() * (run_factors() + run_groups() * 64 * bits());
    }
    std::uint8_t* block(std::size_t group) {
        return panel_ + run(group) + group % run_groups() / block_groups() * block_bytes();
    }
    std::uint8_t* own(std::size_t group) {
        return block(group) + (is_shared(f_.scale) ? 32 : 0) + (is_shared(f_.minimum) ? 32 : 0) +
               group % block_groups() * own_bytes();
    }

    const PackedFormat& f_;
    std::uint8_t* panel_;
};

}  // namespace rbee::kernels::test
