// Floats to quants, in groups of 32.
//
// Owns the arithmetic; `check_packable` of pack.h documents what it loses. Does not know where quants go.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "rbee_kernels/half.h"
#include "rbee_kernels/packed_group.h"

namespace rbee::kernels {

struct Extremes {
    float least;
    float greatest;
};

/// Of finite numbers; in lanes, so that a compiler makes vector instructions of it.
inline Extremes extremes(const float* x) {
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

/// Infinity or NaN if there is any, whose bits are greater than those of any finite number.
inline float greatest_magnitude(const float* x) {
    std::int32_t greatest = 0;
    for (std::size_t i = 0; i < kGroup; ++i) {
        greatest = std::max(greatest, static_cast<std::int32_t>(bits_of(x[i]) & 0x7FFFFFFFU));
    }
    return from_bits(static_cast<std::uint32_t>(greatest));
}

inline WeightGroup not_a_number() {
    WeightGroup group;
    group.set_scale(half_of(std::numeric_limits<float>::quiet_NaN()));
    return group;
}

/// quant = (x - minimum) / scale, rounded to nearest (of two the even one) and within limits.
inline WeightGroup quantize(const float* x, Half half_scale, Half half_minimum, float lowest, float highest) {
    // Sums with this have no bits behind the point; they were rounded off.
    constexpr float kRound = 0x1.8p23F;
    if (!is_finite(half_scale) || !is_finite(half_minimum)) {
        return not_a_number();
    }
    WeightGroup group;
    const float scale = float_of(half_scale), minimum = float_of(half_minimum);
    group.set_scale(half_scale);
    group.set_minimum(half_minimum);
    if (scale == 0) {
        return group;
    }
    for (std::size_t i = 0; i < kGroup; ++i) {
        float quant = (x[i] - minimum) / scale;
        quant = quant > lowest ? quant : lowest;
        quant = quant < highest ? quant : highest;
        group.quants[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>((quant + kRound) - kRound));
    }
    return group;
}

template <WeightFormat F>
WeightGroup quantize(const float* x) {
    static_assert(F == WeightFormat::kQ4 || F == WeightFormat::kQ8);
    const float magnitude = greatest_magnitude(x);
    if (!(magnitude <= std::numeric_limits<float>::max())) {
        return not_a_number();
    }
    if constexpr (F == WeightFormat::kQ4) {
        const auto [least, greatest] = extremes(x);
        return quantize(x, half_of((greatest - least) / 15), half_of(least), 0, 15);
    } else {
        return quantize(x, half_of(magnitude / 127), Half{0}, -127, 127);
    }
}

}  // namespace rbee::kernels
