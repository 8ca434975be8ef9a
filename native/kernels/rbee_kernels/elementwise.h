// Norms, quantization, rotary embedding and gates, a row at a time.
//
// Owns what elementwise_functions.h lists. Does not know models. Only files that are compiled for one instruction set
// include it (vector16.h).

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "rbee_kernels/elementwise_functions.h"
#include "rbee_kernels/vector16.h"

namespace rbee::kernels {
namespace {

/// The first n (below 16) of p; the other lanes are 0.
inline Vec load_first(const float* p, std::size_t n) {
    float lanes[kLanes16] = {};
    std::memcpy(lanes, p, n * sizeof(float));
    return load(lanes);
}

inline void store_first(float* p, Vec a, std::size_t n) {
    float lanes[kLanes16];
    store(lanes, a);
    std::memcpy(p, lanes, n * sizeof(float));
}

/// out[i] = function(inputs[i]...) for i < n. `out` may be one of the inputs.
template <typename Function, typename... Inputs>
inline void map(Function function, std::size_t n, float* out, const Inputs*... inputs) {
    std::size_t i = 0;
    for (; i + kLanes16 <= n; i += kLanes16) {
        store(out + i, function(load(inputs + i)...));
    }
    if (i < n) {
        store_first(out + i, function(load_first(inputs + i, n - i)...), n - i);
    }
}

inline float sum_of_squares(const float* x, std::size_t n) {
    constexpr std::size_t kSums = 4;
    Vec sums[kSums];
    for (Vec& each : sums) {
        each = broadcast(0);
    }
    std::size_t i = 0;
    for (; i + kSums * kLanes16 <= n; i += kSums * kLanes16) {
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kSums; ++j) {
            const Vec value = load(x + i + j * kLanes16);
            sums[j] = fma(value, value, sums[j]);
        }
    }
    for (; i < n; i += kLanes16) {
        const Vec value = i + kLanes16 <= n ? load(x + i) : load_first(x + i, n - i);
        sums[0] = fma(value, value, sums[0]);
    }
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

inline void rms_norm(const float* x, const float* weight, float epsilon, std::size_t n, float* out) {
    const double mean = double{sum_of_squares(x, n)} / static_cast<double>(n);
    const Vec factor = broadcast(static_cast<float>(1 / std::sqrt(mean + double{epsilon})));
    map([factor](Vec value, Vec w) { return value * factor * w; }, n, out, x, weight);
}

/// A group of 32 that is all below this has no quants: their inverse would overflow.
constexpr float kLeastQuantized = 0x1p-100F;

inline void quantize_group(Vec low, Vec high, std::size_t group, const QuantizedRow& row) {
    const float greatest = max(max(abs(low), abs(high)));
    const Vec inverse = broadcast(greatest >= kLeastQuantized ? 127.0F / greatest : 0.0F);
    low = round(low * inverse);
    high = round(high * inverse);
    const float low_sum = sum(low), high_sum = sum(high);  // exact; NaN * 0 and infinity * 0 are NaN
    const float total = low_sum + high_sum;
    if (total != total) {
        constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
        std::memset(row.quants + group * kGroup, 0, kGroup);
        row.scales[group] = kNaN;
        row.sums[group] = kNaN;
        row.biases[group] = 0;
        row.half_sums[group] = {};
        return;
    }
    const float scale = greatest >= kLeastQuantized ? greatest / 127.0F : 0.0F;
    store(row.quants + group * kGroup, low);
    store(row.quants + group * kGroup + kLanes16, high);
    row.scales[group] = scale;
    row.sums[group] = scale * total;
    row.biases[group] = -128 * static_cast<std::int32_t>(total);
    row.half_sums[group] = {{static_cast<std::int16_t>(low_sum), static_cast<std::int16_t>(high_sum)}};
}

inline void quantize(const float* x, std::size_t n, QuantizedRow row) {
    const std::size_t whole = n / kGroup;
    for (std::size_t group = 0; group < whole; ++group) {
        const float* values = x + group * kGroup;
        quantize_group(load(values), load(values + kLanes16), group, row);
    }
    if (whole * kGroup < n) {
        float values[kGroup] = {};
        std::memcpy(values, x + whole * kGroup, (n - whole * kGroup) * sizeof(float));
        quantize_group(load(values), load(values + kLanes16), whole, row);
    }
}

inline void rotate(float* head, const float* cosines, const float* sines, std::size_t n) {
    const std::size_t half = n / 2;
    float* low = head;
    float* high = head + half;
    std::size_t i = 0;
    for (; i + kLanes16 <= half; i += kLanes16) {
        const Vec a = load(low + i), b = load(high + i), c = load(cosines + i), s = load(sines + i);
        store(low + i, a * c - b * s);
        store(high + i, b * c + a * s);
    }
    for (; i < half; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a * cosines[i] - b * sines[i];
        high[i] = b * cosines[i] + a * sines[i];
    }
}

/// x / (1 + e^-y), where y has the sign of x and any magnitude.
inline Vec times_sigmoid(Vec x, Vec y) {
    const Vec zero = broadcast(0), one = broadcast(1);
    const Vec e = exp_or_zero(zero - abs(y));
    return (max(zero, x) + min(zero, x) * e) / (one + e);
}

inline Vec silu(Vec x) { return times_sigmoid(x, x); }

/// x (1 + tanh(u)) / 2 is x / (1 + e^-2u).
inline Vec gelu_tanh(Vec x) {
    constexpr float kTwice = 1.59576912F;  // 2 sqrt(2 / pi)
    return times_sigmoid(x, broadcast(kTwice) * x * fma(broadcast(0.044715F), x * x, broadcast(1)));
}

inline Vec relu2(Vec x) {
    const Vec positive = max(broadcast(0), x);
    return positive * positive;
}

inline void gate(Activation activation, const float* gates, const float* up, std::size_t n, float* out) {
    switch (activation) {
        case Activation::kSilu: map([](Vec g, Vec u) { return silu(g) * u; }, n, out, gates, up); break;
        case Activation::kGeluTanh: map([](Vec g, Vec u) { return gelu_tanh(g) * u; }, n, out, gates, up); break;
        case Activation::kRelu2: map([](Vec g, Vec u) { return relu2(g) * u; }, n, out, gates, up); break;
    }
}

inline void activate(Activation activation, const float* x, std::size_t n, float* out) {
    switch (activation) {
        case Activation::kSilu: map(silu, n, out, x); break;
        case Activation::kGeluTanh: map(gelu_tanh, n, out, x); break;
        case Activation::kRelu2: map(relu2, n, out, x); break;
    }
}

inline void add(float* x, const float* y, std::size_t n) {
    map([](Vec a, Vec b) { return a + b; }, n, x, x, y);
}

inline void scale(const float* x, float factor, std::size_t n, float* out) {
    const Vec by = broadcast(factor);
    map([by](Vec a) { return a * by; }, n, out, x);
}

constexpr ElementwiseFunctions kElementwiseFunctions{rms_norm, quantize, rotate, gate, activate, add, scale};

}  // namespace
}  // namespace rbee::kernels
