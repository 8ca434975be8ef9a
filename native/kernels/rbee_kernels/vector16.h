// Sixteen floats at a time: as one AVX-512 register, as two of AVX2, or as an array, after what the including file is
// compiled for (native/kernels/isa_*.cpp, and nothing else, include this).
//
// Owns the difference between instruction sets for everything but integer dot products (`linear_*.h`). All of it is in
// an anonymous namespace: the linker merges inline functions of the same name, and would hand the AVX-512 version of
// one to code that was compiled for any machine.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rbee_kernels/weights.h"

#if defined(__AVX512VNNI__) || defined(__AVX2__)
#if defined(__clang__)
#include <immintrin.h>
#else  // GCC 12 warns of the undefined vectors that its own header makes (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
#endif

namespace rbee::kernels {
namespace {

constexpr std::size_t kLanes16 = 16;
constexpr float kShift = 0x1.8p23F;  // adding it to a small number leaves that, rounded, in the lowest bits

#if defined(__AVX512VNNI__)  // AVX-512 without it is served as AVX2

struct Vec {
    __m512 v;
};

inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline Vec load(const std::uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline Vec load(const std::int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
/// 2^(byte - 128); of bytes below 2 a subnormal number.
inline Vec load_powers(const std::uint8_t* p) {
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __mmask16 small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    return {_mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, small, _mm512_set1_epi32(0x00200000), e))};
}
inline Vec load(const BFloat* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store(Half* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/// Rounded to the nearest integer, of two the even one; each must fit.
inline void store(std::int8_t* p, Vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
/// a * b + c
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
/// The second one where either is NaN.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float max(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/// 2 to the power of an integer n between -126 and 127, given n + kShift; of NaN, anything.
inline Vec power_of_two(Vec shifted) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)))};
}
/// Lanes below n (0 to 16) from a, the others from b.
inline Vec first(std::size_t n, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(static_cast<__mmask16>((1U << n) - 1U), b.v, a.v)};
}

#elif defined(__AVX2__)

struct Vec {
    __m256 lo, hi;
};

inline Vec broadcast(float x) {
    const __m256 v = _mm256_set1_ps(x);
    return {v, v};
}
inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Vec load(const Half* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline Vec load(const std::uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
}
inline Vec load(const std::int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
}
inline __m256 eight_powers(const std::uint8_t* p) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}
inline Vec load_powers(const std::uint8_t* p) { return {eight_powers(p), eight_powers(p + 8)}; }
inline __m256 widen(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
inline Vec load(const BFloat* p) {
    return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void store(float* p, Vec a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline void store(Half* p, Vec a) {
    constexpr int rounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, rounding));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, rounding));
}
inline void store(std::int8_t* p, Vec a) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Vec abs(Vec a) {
    const __m256 sign = _mm256_set1_ps(-0.0F);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline float sum(Vec a) {
    const __m256 eight = _mm256_add_ps(a.lo, a.hi);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
inline float max(Vec a) {
    const __m256 eight = _mm256_max_ps(a.lo, a.hi);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
inline Vec round(Vec a) {
    constexpr int rounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, rounding), _mm256_round_ps(a.hi, rounding)};
}
inline __m256 power_of_two(__m256 shifted) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)));
}
inline Vec power_of_two(Vec shifted) { return {power_of_two(shifted.lo), power_of_two(shifted.hi)}; }
inline Vec first(std::size_t n, Vec a, Vec b) {
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i limit = _mm256_set1_epi32(static_cast<int>(n));
    const __m256i keep_lo = _mm256_cmpgt_epi32(limit, low);
    const __m256i keep_hi = _mm256_cmpgt_epi32(limit, _mm256_add_epi32(low, _mm256_set1_epi32(8)));
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(keep_lo)),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(keep_hi))};
}

#else

struct Vec {
    float v[kLanes16];
};

template <typename Function>
inline Vec lanewise(Function function) {
    Vec result;
    for (std::size_t i = 0; i < kLanes16; ++i) {
        result.v[i] = function(i);
    }
    return result;
}

/// Exact: every binary16 is a float.
inline float to_float(Half half) {
    const std::uint32_t magnitude = half.bits & 0x7FFFU;
    const std::uint32_t sign = static_cast<std::uint32_t>(half.bits & 0x8000U) << 16U;
    if (magnitude >= 0x0400U) {  // normal, infinite or NaN
        const std::uint32_t exponent = magnitude >= 0x7C00U ? 0x70000000U : 0x38000000U;
        const std::uint32_t bits = sign | ((magnitude << 13U) + exponent);
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    const float value = static_cast<float>(magnitude) * 0x1p-24F;
    return sign != 0 ? -value : value;
}

/// To the nearest, of two the even one, as the hardware does.
inline Half to_half(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t sign = (bits >> 16U) & 0x8000U;
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) {  // NaN stays quiet
        return {static_cast<std::uint16_t>(sign | 0x7E00U | ((magnitude >> 13U) & 0x3FFU))};
    }
    if (magnitude >= 0x477FF000U) {  // 65520 and more round to infinity
        return {static_cast<std::uint16_t>(sign | 0x7C00U)};
    }
    if (magnitude < 0x38800000U) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the lowest bits, rounded
        float small;
        std::memcpy(&small, &magnitude, sizeof small);
        small += 0.5F;
        std::memcpy(&bits, &small, sizeof bits);
        return {static_cast<std::uint16_t>(sign | (bits - 0x3F000000U))};
    }
    const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13U) & 1U);
    return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13U))};
}

inline float to_float(BFloat value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16U;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline Vec broadcast(float x) {
    return lanewise([=](std::size_t) { return x; });
}
inline Vec load(const float* p) {
    return lanewise([=](std::size_t i) { return p[i]; });
}
inline Vec load(const Half* p) {
    return lanewise([=](std::size_t i) { return to_float(p[i]); });
}
inline Vec load(const std::uint8_t* p) {
    return lanewise([=](std::size_t i) { return static_cast<float>(p[i]); });
}
inline Vec load(const std::int8_t* p) {
    return lanewise([=](std::size_t i) { return static_cast<float>(p[i]); });
}
inline Vec load_powers(const std::uint8_t* p) {
    return lanewise([=](std::size_t i) {
        const std::uint32_t bits = p[i] < 2 ? 0x00200000U << p[i] : static_cast<std::uint32_t>(p[i] - 1) << 23U;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    });
}
inline Vec load(const BFloat* p) {
    return lanewise([=](std::size_t i) { return to_float(p[i]); });
}
inline void store(float* p, Vec a) { std::memcpy(p, a.v, sizeof a.v); }
inline void store(Half* p, Vec a) {
    for (std::size_t i = 0; i < kLanes16; ++i) {
        p[i] = to_half(a.v[i]);
    }
}
inline void store(std::int8_t* p, Vec a) {
    for (std::size_t i = 0; i < kLanes16; ++i) {
        const float rounded = std::nearbyint(a.v[i]);
        p[i] = static_cast<std::int8_t>(rounded >= 127.0F ? 127 : rounded > -128.0F ? static_cast<int>(rounded) : -128);
    }
}
inline Vec operator+(const Vec& a, const Vec& b) {
    return lanewise([&](std::size_t i) { return a.v[i] + b.v[i]; });
}
inline Vec operator-(const Vec& a, const Vec& b) {
    return lanewise([&](std::size_t i) { return a.v[i] - b.v[i]; });
}
inline Vec operator*(const Vec& a, const Vec& b) {
    return lanewise([&](std::size_t i) { return a.v[i] * b.v[i]; });
}
inline Vec operator/(const Vec& a, const Vec& b) {
    return lanewise([&](std::size_t i) { return a.v[i] / b.v[i]; });
}
/// Rounded once where the machine does that in one instruction, twice elsewhere.
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
#if defined(FP_FAST_FMAF)
    return lanewise([&](std::size_t i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
#else
    return lanewise([&](std::size_t i) { return a.v[i] * b.v[i] + c.v[i]; });
#endif
}
inline Vec max(const Vec& a, const Vec& b) {
    return lanewise([&](std::size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec min(const Vec& a, const Vec& b) {
    return lanewise([&](std::size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec abs(const Vec& a) {
    return lanewise([&](std::size_t i) { return std::fabs(a.v[i]); });
}
inline float sum(Vec a) {
    for (std::size_t half = kLanes16 / 2; half > 0; half /= 2) {
        for (std::size_t i = 0; i < half; ++i) {
            a.v[i] += a.v[i + half];
        }
    }
    return a.v[0];
}
inline float max(Vec a) {
    for (std::size_t half = kLanes16 / 2; half > 0; half /= 2) {
        for (std::size_t i = 0; i < half; ++i) {
            a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
        }
    }
    return a.v[0];
}
inline Vec round(const Vec& a) {
    return lanewise([&](std::size_t i) { return std::nearbyint(a.v[i]); });
}
inline Vec power_of_two(const Vec& shifted) {
    return lanewise([&](std::size_t i) {
        std::uint32_t bits;
        std::memcpy(&bits, &shifted.v[i], sizeof bits);
        bits = (bits << 23U) + (127U << 23U);
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    });
}
inline Vec first(std::size_t n, const Vec& a, const Vec& b) {
    return lanewise([&](std::size_t i) { return i < n ? a.v[i] : b.v[i]; });
}

#endif

// e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln 2 / 2. Subtracting n ln 2 in two parts (the first has few enough
// bits that n times it is exact) and the polynomial are Cody and Waite's way (Software Manual for the Elementary
// Functions, 1980) with the coefficients of the Cephes library's expf; the error is below 2 units in the last place.
inline Vec exp_between(Vec x) {
    const Vec shifted = fma(x, broadcast(1.44269504F), broadcast(kShift));
    const Vec n = shifted - broadcast(kShift);
    const Vec r = fma(n, broadcast(2.12194440e-4F), fma(n, broadcast(-0.693359375F), x));
    Vec p = broadcast(1.9875691500e-4F);
    p = fma(p, r, broadcast(1.3981999507e-3F));
    p = fma(p, r, broadcast(8.3334519073e-3F));
    p = fma(p, r, broadcast(4.1665795894e-2F));
    p = fma(p, r, broadcast(1.6666665459e-1F));
    p = fma(p, r, broadcast(5.0000001201e-1F));
    p = fma(p, r * r, r + broadcast(1.0F));
    return p * power_of_two(shifted);
}

/// e^x for x <= 0, but exactly 0 from -87 down. NaN stays NaN.
inline Vec exp_or_zero(Vec x) {
    const Vec least = broadcast(-87.0F);
    return exp_between(max(least, x)) - exp_between(least);
}

}  // namespace
}  // namespace rbee::kernels
