// Blocks of floats: the loops that a sampled row spends its time in, portable and for AVX2.
//
// Owns the arithmetic of 512 numbers at a time, as 64 vectors of 8 lanes. Does not know tokens' parameters.
//
// Both versions give the same results bit for bit: they do the same IEEE operations in the same order (each lane by
// itself, then the lanes in a fixed tree), with the same polynomial, and are compiled with -ffp-contract=off.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#define RBEE_KERNELS_AVX2 1
#include <immintrin.h>
#endif

namespace rbee::kernels {

constexpr std::size_t kLanes = 8;
constexpr std::size_t kBlock = 512;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// 2 to the power of this or less counts as 0; to a greater power it is a normal float.
constexpr float kLowestExponent = -126.0F;
/// The next float: with a bound of this, every token that is collected has a weight.
constexpr float kLeastWeighed = -125.99999F;

/// Values become exponents of 2 before anything else looks at them: (value - offset) * scale. None is positive where it
/// is raised to a power.
struct Scaling {
    float offset;
    float scale;
    float operator()(float value) const { return (value - offset) * scale; }
};

struct BlockKernels {
    /// Copies a block; where the bit of a value is clear (lowest bit first; null: all are set) it becomes -inf.
    /// True if any of the originals is NaN or +inf.
    bool (*copy)(const float* values, const std::uint8_t* allowed, float* copied);
    /// For each of `blocks` blocks in a row the greatest value of each lane, NaN not counted; and the greatest of each
    /// lane of all of them and of what `greatest` held before. True if there is a NaN. In one call, without a
    /// horizontal operation per block: a row comes from memory, and whatever else there is to do shortens how far ahead
    /// it is read.
    bool (*lane_maxima)(const float* values, std::size_t blocks, float* maxima, float* greatest);
    /// The weights 2^exponent of a block, and their sum.
    double (*weigh)(const float* values, Scaling scaling, float* weights);
    /// The exponents that are at least so great, in order, and their ids, which count from first_id; how many they are.
    /// Up to 8 entries behind them are overwritten.
    std::size_t (*collect)(const float* values, Scaling scaling, float at_least, std::uint32_t first_id,
                           float* exponents, std::uint32_t* ids);
};

// 2^x = 2^n * 2^f with n = round(x) and |f| <= 1/2. Adding kRounder rounds to an integer, which is then in its lowest
// bits. The polynomial 1 + f (c0 + f (c1 + ...)) is the one of its degree with the least relative error, 9.2e-8; with
// rounding it is 1.9e-7. 2^0 is exactly 1.
constexpr float kRounder = 12582912.0F;
constexpr std::uint32_t kRounderBits = 0x4B400000;
constexpr std::uint32_t kExponentBias = 127;
constexpr float kPolynomial[] = {0.693147F, 0.24022242F, 0.05550734F, 0.009671511F, 0.0013264709F};

inline double sum_of_lanes(const double* lanes) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

namespace portable {

inline float power_of_two(float exponent) {
    const float rounded = exponent + kRounder;
    const float f = exponent - (rounded - kRounder);
    float mantissa = kPolynomial[4];
    for (std::size_t i = 4; i-- > 0;) {
        mantissa = mantissa * f + kPolynomial[i];
    }
    mantissa = mantissa * f + 1.0F;
    std::uint32_t bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    bits = (bits - kRounderBits + kExponentBias) << 23U;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return exponent > kLowestExponent ? mantissa * power : 0.0F;
}

inline bool copy(const float* values, const std::uint8_t* allowed, float* copied) {
    bool bad = false;
    for (std::size_t i = 0; i < kBlock; ++i) {
        bad |= !(values[i] < kInfinity);
        const bool keep = allowed == nullptr || ((allowed[i / 8] >> (i % 8)) & 1) != 0;
        copied[i] = keep ? values[i] : -kInfinity;
    }
    return bad;
}

inline bool lane_maxima(const float* values, std::size_t blocks, float* maxima, float* greatest) {
    bool nan = false;
    for (; blocks > 0; --blocks, values += kBlock, maxima += kLanes) {
        for (std::size_t lane = 0; lane < kLanes; ++lane) {
            float best = -kInfinity;
            for (std::size_t i = lane; i < kBlock; i += kLanes) {
                nan |= values[i] != values[i];
                best = values[i] > best ? values[i] : best;
            }
            maxima[lane] = best;
            greatest[lane] = best > greatest[lane] ? best : greatest[lane];
        }
    }
    return nan;
}

inline double weigh(const float* values, Scaling scaling, float* weights) {
    double sums[kLanes] = {};
    for (std::size_t i = 0; i < kBlock; i += kLanes) {
        for (std::size_t lane = 0; lane < kLanes; ++lane) {
            weights[i + lane] = power_of_two(scaling(values[i + lane]));
            sums[lane] += double{weights[i + lane]};
        }
    }
    return sum_of_lanes(sums);
}

inline std::size_t collect(const float* values, Scaling scaling, float at_least, std::uint32_t first_id,
                           float* exponents, std::uint32_t* ids) {
    std::size_t size = 0;
    for (std::size_t i = 0; i < kBlock; ++i) {
        const float exponent = scaling(values[i]);
        exponents[size] = exponent;
        ids[size] = first_id + static_cast<std::uint32_t>(i);
        size += exponent >= at_least ? 1 : 0;
    }
    return size;
}

}  // namespace portable

constexpr BlockKernels kPortable = {portable::copy, portable::lane_maxima, portable::weigh, portable::collect};

#ifdef RBEE_KERNELS_AVX2

namespace avx2 {

#define RBEE_AVX2 __attribute__((target("avx2")))

/// For each set of lanes, those lanes in order: what moves them to the front.
struct FrontTable {
    std::uint8_t lanes[256][kLanes];
    constexpr FrontTable() : lanes() {
        for (unsigned set = 0; set < 256; ++set) {
            unsigned size = 0;
            for (unsigned lane = 0; lane < kLanes; ++lane) {
                if ((set >> lane & 1U) != 0) {
                    lanes[set][size++] = static_cast<std::uint8_t>(lane);
                }
            }
        }
    }
};
inline constexpr FrontTable kFront;

RBEE_AVX2 inline __m256 power_of_two(__m256 exponent) {
    const __m256 rounder = _mm256_set1_ps(kRounder);
    const __m256 rounded = _mm256_add_ps(exponent, rounder);
    const __m256 f = _mm256_sub_ps(exponent, _mm256_sub_ps(rounded, rounder));
    __m256 mantissa = _mm256_set1_ps(kPolynomial[4]);
    for (std::size_t i = 4; i-- > 0;) {
        mantissa = _mm256_add_ps(_mm256_mul_ps(mantissa, f), _mm256_set1_ps(kPolynomial[i]));
    }
    mantissa = _mm256_add_ps(_mm256_mul_ps(mantissa, f), _mm256_set1_ps(1.0F));
    const __m256i bits = _mm256_sub_epi32(_mm256_castps_si256(rounded),
                                          _mm256_set1_epi32(static_cast<int>(kRounderBits - kExponentBias)));
    const __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
    const __m256 counts = _mm256_cmp_ps(exponent, _mm256_set1_ps(kLowestExponent), _CMP_GT_OQ);
    return _mm256_and_ps(_mm256_mul_ps(mantissa, power), counts);
}

RBEE_AVX2 inline __m256 scaled(const float* values, Scaling scaling) {
    return _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(values), _mm256_set1_ps(scaling.offset)),
                         _mm256_set1_ps(scaling.scale));
}

RBEE_AVX2 inline bool copy(const float* values, const std::uint8_t* allowed, float* copied) {
    const __m256 infinity = _mm256_set1_ps(kInfinity);
    const __m256 never = _mm256_set1_ps(-kInfinity);
    const __m256i lane_bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256 bad = _mm256_setzero_ps();
    for (std::size_t i = 0; i < kBlock; i += kLanes) {
        __m256 value = _mm256_loadu_ps(values + i);
        bad = _mm256_or_ps(bad, _mm256_cmp_ps(value, infinity, _CMP_NLT_UQ));
        if (allowed != nullptr) {
            const __m256i set = _mm256_and_si256(_mm256_set1_epi32(allowed[i / kLanes]), lane_bits);
            value = _mm256_blendv_ps(never, value, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane_bits)));
        }
        _mm256_storeu_ps(copied + i, value);
    }
    return _mm256_movemask_ps(bad) != 0;
}

RBEE_AVX2 inline bool lane_maxima(const float* values, std::size_t blocks, float* maxima, float* greatest) {
    __m256 all = _mm256_loadu_ps(greatest);
    __m256 nan = _mm256_setzero_ps();
    for (; blocks > 0; --blocks, values += kBlock, maxima += kLanes) {
        __m256 best[4];
        for (__m256& some : best) {
            some = _mm256_set1_ps(-kInfinity);
        }
        for (std::size_t i = 0; i < kBlock; i += 4 * kLanes) {
            for (std::size_t j = 0; j < 4; ++j) {
                const __m256 value = _mm256_loadu_ps(values + i + j * kLanes);
                nan = _mm256_or_ps(nan, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
                best[j] = _mm256_max_ps(value, best[j]);  // of a NaN and a number, the second
            }
        }
        best[0] = _mm256_max_ps(_mm256_max_ps(best[0], best[1]), _mm256_max_ps(best[2], best[3]));
        all = _mm256_max_ps(all, best[0]);
        _mm256_storeu_ps(maxima, best[0]);
    }
    _mm256_storeu_ps(greatest, all);
    return _mm256_movemask_ps(nan) != 0;
}

RBEE_AVX2 inline double weigh(const float* values, Scaling scaling, float* weights) {
    __m256d low = _mm256_setzero_pd();
    __m256d high = _mm256_setzero_pd();
    for (std::size_t i = 0; i < kBlock; i += kLanes) {
        const __m256 weight = power_of_two(scaled(values + i, scaling));
        _mm256_storeu_ps(weights + i, weight);
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(weight)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(weight, 1)));
    }
    double sums[kLanes];
    _mm256_storeu_pd(sums, low);
    _mm256_storeu_pd(sums + 4, high);
    return sum_of_lanes(sums);
}

RBEE_AVX2 inline std::size_t collect(const float* values, Scaling scaling, float at_least, std::uint32_t first_id,
                                     float* exponents, std::uint32_t* ids) {
    const __m256 bound = _mm256_set1_ps(at_least);
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    std::size_t size = 0;
    for (std::size_t i = 0; i < kBlock; i += kLanes) {
        const __m256 exponent = scaled(values + i, scaling);
        const auto set = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(exponent, bound, _CMP_GE_OQ)));
        if (set == 0) {
            continue;
        }
        const __m256i front = _mm256_cvtepu8_epi32(
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(static_cast<const void*>(kFront.lanes[set]))));
        const __m256i id =
            _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first_id + static_cast<std::uint32_t>(i))), lanes);
        _mm256_storeu_ps(exponents + size, _mm256_permutevar8x32_ps(exponent, front));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<void*>(ids + size)),
                            _mm256_permutevar8x32_epi32(id, front));
        size += static_cast<std::size_t>(__builtin_popcount(set));
    }
    return size;
}

#undef RBEE_AVX2

}  // namespace avx2

constexpr BlockKernels kAvx2 = {avx2::copy, avx2::lane_maxima, avx2::weigh, avx2::collect};

#endif

/// The fastest that this machine can run.
inline const BlockKernels& best_kernels() {
#ifdef RBEE_KERNELS_AVX2
    static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
    if (has_avx2) {
        return kAvx2;
    }
#endif
    return kPortable;
}

}  // namespace rbee::kernels
