// Integer dot products for any machine.

#pragma once

namespace rbee::kernels {
namespace {

constexpr std::size_t kFloatTileRows = 4;
constexpr std::size_t kQuantTileRows = 4;
constexpr std::size_t kUnpackedGroupBytes = 0;  // no panel is unpacked

/// Lane r: byte i of the r-th four.
inline Vec signed_bytes(const std::int8_t* fours, std::size_t i) {
    return lanewise([=](std::size_t r) { return static_cast<float>(fours[4 * r + i]); });
}

/// The eight quads of a group as signed numbers.
template <WeightFormat F>
inline void unpack_numbers(const std::uint8_t* quants, std::int8_t* numbers) {
    constexpr FormatLayout layout = layout_of(F);
    const auto plane = [](const std::uint8_t* from, std::size_t bits, std::size_t quad, std::size_t i) {
        const std::size_t shared = 8 / bits;
        return (static_cast<unsigned>(from[quad / shared * kQuadBytes + i]) >> (quad % shared * bits)) &
               ((1U << bits) - 1);
    };
    for (std::size_t quad = 0; quad < kQuads; ++quad) {
        for (std::size_t i = 0; i < kQuadBytes; ++i) {
            unsigned quant = plane(quants + kQuadBytes * layout.high_bits, layout.low_bits, quad, i);
            if constexpr (layout.high_bits != 0) {
                quant |= plane(quants, layout.high_bits, quad, i) << layout.low_bits;
            }
            const unsigned offset = layout.is_signed() ? 0 : layout.offset;
            numbers[quad * kQuadBytes + i] =
                layout.table != nullptr ? layout.table[quant] : static_cast<std::int8_t>(quant - offset);
        }
    }
}

/// dots[r] += four columns of row r, times four activations.
inline void dot4(const std::int8_t* weights, const std::int8_t* quants, std::int32_t* dots) {
    for (std::size_t r = 0; r < kPanelRows; ++r) {
        for (std::size_t i = 0; i < 4; ++i) {
            dots[r] += weights[4 * r + i] * quants[i];
        }
    }
}

inline Vec as_floats(const std::int32_t* dots) {
    return lanewise([=](std::size_t r) { return static_cast<float>(dots[r]); });
}

template <WeightFormat F, std::size_t M>
inline void quantized_tile(const std::uint8_t* panel, const TileInput& in, float* out, std::size_t stride) {
    constexpr std::size_t halves = Group<F>::kHalves, half_quads = kQuads / halves;
    Vec sums[M];
    for (std::size_t m = 0; m < M; ++m) {
        sums[m] = broadcast(0.0F);
    }
    for (std::size_t g = 0; g < in.groups; ++g) {
        std::int8_t numbers[kGroup * kPanelRows];
        unpack_numbers<F>(Group<F>::quants(panel, g), numbers);
        for (std::size_t half = 0; half < halves; ++half) {
            const Vec scale = Group<F>::scales(panel, g, half);
            for (std::size_t m = 0; m < M; ++m) {
                const std::size_t at = m * in.groups + g;
                std::int32_t dots[kPanelRows] = {};
                for (std::size_t j = half * half_quads; j < (half + 1) * half_quads; ++j) {
                    dot4(numbers + kQuadBytes * j, in.quants + at * kGroup + 4 * j, dots);
                }
                sums[m] = fma(as_floats(dots) * broadcast(in.scales[at]), scale, sums[m]);
                if constexpr (Group<F>::kMinimum) {
                    const float x = halves == 1 ? in.sums[at] : in.scales[at] * in.half_sums[at].of[half];
                    sums[m] = fma(broadcast(x), Group<F>::minimums(panel, g, half), sums[m]);
                }
            }
        }
    }
    for (std::size_t m = 0; m < M; ++m) {
        store(out + m * stride, sums[m]);
    }
}

template <WeightFormat F>
void multiply_quantized(const std::uint8_t* panel, std::size_t cols, const Activations& activations,
                        const std::uint8_t* next, void* /*scratch*/, float* out, std::size_t stride) {
    for_each_tile<kQuantTileRows>(
        panel, panel_bytes(F, cols), cols, activations, next, [&](auto rows, const TileInput& input, std::size_t row) {
            quantized_tile<F, decltype(rows)::value>(panel, input, out + row * stride, stride);
        });
}

std::size_t peak(std::size_t rounds) {
    std::int8_t weights[64], quants[4] = {-3, 5, 7, 11};
    std::memset(weights, 7, sizeof weights);
    std::int32_t dots[kPanelRows] = {};
    for (std::size_t round = 0; round < rounds; ++round) {
        dot4(weights, quants, dots);
        quants[0] = static_cast<std::int8_t>(dots[round % kPanelRows]);  // each round depends on the one before it
    }
    volatile std::int32_t kept = dots[0];  // or the compiler leaves out what is not read
    (void)kept;
    return rounds * sizeof weights;
}

}  // namespace
}  // namespace rbee::kernels
