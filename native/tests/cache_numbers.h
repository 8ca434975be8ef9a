// Numbers as a KV cache holds them, worked out one by one.
//
// Owns the rounding. Does not know where the cache has them (`attention_task.h`).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "rbee_kernels/attention_task.h"

namespace rbee::kernels::test {

/// The nearest binary16, of two the even one, if that is finite.
inline float rounded_to_half(float value) {
    int exponent = 0;
    std::frexp(value, &exponent);
    const float unit = std::ldexp(1.0F, std::max(exponent, -13) - 11);
    return std::nearbyint(value / unit) * unit;
}

/// Numbers as the cache holds them, each group in 8 bits by itself.
inline std::vector<double> held(const std::vector<float>& numbers, CacheFormat format, std::size_t head_dim,
                                std::size_t group) {
    std::vector<double> all;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        const float number = numbers[i];
        if (format != CacheFormat::kQ8) {
            all.push_back(double{format == CacheFormat::kF32 ? number : rounded_to_half(number)});
            continue;
        }
        const std::size_t head = i - i % head_dim, first = head + i % head_dim / group * group;
        float greatest = 0;
        for (std::size_t k = first; k < std::min(first + group, head + head_dim); ++k) {
            greatest = std::max(greatest, std::fabs(numbers[k]));
        }
        const float scale = rounded_to_half(greatest / 127);
        const float quant = scale == 0 ? 0 : std::min(std::max(std::nearbyint(number / scale), -127.0F), 127.0F);
        all.push_back(double{quant} * double{scale});
    }
    return all;
}

}  // namespace rbee::kernels::test
