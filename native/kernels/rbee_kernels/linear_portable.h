// Integer dot products for any machine.

#pragma once

namespace rbee::kernels {
namespace {

constexpr std::size_t kFloatTileRows = 4;
constexpr std::size_t kQuantTileRows = 4;

/// Lane r: the four bits from `shift` on of the r-th 32-bit lane.
inline Vec four_bits(const std::uint8_t* lanes, std::size_t shift) {
    return lanewise([=](std::size_t r) { return static_cast<float>((lanes[4 * r + shift / 8] >> (shift % 8)) & 15); });
}
/// Lane r: byte i of the r-th 32-bit lane, signed.
inline Vec signed_byte(const std::uint8_t* lanes, std::size_t i) {
    return lanewise([=](std::size_t r) { return static_cast<float>(static_cast<std::int8_t>(lanes[4 * r + i])); });
}

/// dots[r] += columns 4 j to 4 j + 3 of row r, times four activations.
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
    Vec sums[M];
    for (std::size_t m = 0; m < M; ++m) {
        sums[m] = broadcast(0.0F);
    }
    for (std::size_t g = 0; g < in.groups; ++g) {
        const std::uint8_t* group = Group<F>::quants(panel, g);
        std::int8_t bytes[512];
        for (std::size_t i = 0; i < GroupPlace<F>::kQuantBytes; ++i) {
            if constexpr (Group<F>::kFourBits) {
                bytes[i] = static_cast<std::int8_t>(group[i] & 15);
                bytes[256 + i] = static_cast<std::int8_t>(group[i] >> 4);
            } else {
                bytes[i] = static_cast<std::int8_t>(group[i]);
            }
        }
        const Vec scale = Group<F>::factors(panel, g, 0);
        for (std::size_t m = 0; m < M; ++m) {
            const std::int8_t* quants = in.quants + m * in.cols + g * kGroup;
            const Vec x = broadcast(in.scales[m * in.groups + g]);
            std::int32_t dots[kPanelRows] = {};
            for (std::size_t j = 0; j < (Group<F>::kFine ? 4 : 8); ++j) {
                dot4(bytes + 64 * j, quants + 4 * j, dots);
            }
            sums[m] = fma(as_floats(dots) * x, scale, sums[m]);
            if constexpr (Group<F>::kFine) {
                std::int32_t others[kPanelRows] = {};
                for (std::size_t j = 4; j < 8; ++j) {
                    dot4(bytes + 64 * j, quants + 4 * j, others);
                }
                sums[m] = fma(as_floats(others) * x, Group<F>::factors(panel, g, 1), sums[m]);
            }
            if constexpr (Group<F>::kMinimum) {
                sums[m] = fma(broadcast(in.sums[m * in.groups + g]), Group<F>::factors(panel, g, 1), sums[m]);
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
