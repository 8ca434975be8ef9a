// Integer dot products with AVX-512 VNNI: vpdpbusd takes four unsigned by four signed bytes in each of 16 lanes, adding
// without saturation, with the activations broadcast from memory.

#pragma once

namespace rbee::kernels {
namespace {

constexpr std::size_t kFloatTileRows = 8;
constexpr std::size_t kQuantTileRows = 12;  // 12 sums and 12 dot products of 32 registers

inline Vec four_bits(const std::uint8_t* lanes, std::size_t shift) {
    const __m512i shifted =
        _mm512_srl_epi32(_mm512_loadu_si512(lanes), _mm_cvtsi64_si128(static_cast<long long>(shift)));
    return {_mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(15)))};
}
inline Vec signed_byte(const std::uint8_t* lanes, std::size_t i) {
    const __m128i up = _mm_cvtsi64_si128(static_cast<long long>(24 - 8 * i));
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_sll_epi32(_mm512_loadu_si512(lanes), up), 24))};
}

inline __m512i four(const std::int8_t* quants) {
    std::int32_t bits;
    std::memcpy(&bits, quants, sizeof bits);
    return _mm512_set1_epi32(bits);
}

template <WeightFormat F, std::size_t M>
[[gnu::noinline]] void quantized_tile(const std::uint8_t* panel, const TileInput& in, float* out, std::size_t stride) {
    const __m512i low = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);
    __m512 sums[M];
#pragma GCC unroll 16
    for (std::size_t m = 0; m < M; ++m) {
        sums[m] = _mm512_setzero_ps();
    }
    const std::int8_t* quants = in.quants;
    const std::uint8_t* ahead = in.ahead;
    for (std::size_t g = 0; g < in.groups; ++g, quants += kGroup) {
        const std::uint8_t* group = Group<F>::quants(panel, g);
        for (std::size_t i = 0; i < in.ahead_step; i += kLineBytes) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + i), _MM_HINT_T0);
        }
        ahead += in.ahead_step;
        __m512i dots[M];
        [[maybe_unused]] __m512i others[Group<F>::kFine ? M : 1];
#pragma GCC unroll 16
        for (std::size_t m = 0; m < M; ++m) {
            // Signed weights become unsigned ones by adding 128; the bias takes that away again.
            dots[m] = Group<F>::kFourBits || Group<F>::kFine ? _mm512_setzero_si512()
                                                             : _mm512_set1_epi32(in.biases[m * in.groups + g]);
            if constexpr (Group<F>::kFine) {
                others[m] = _mm512_setzero_si512();
            }
        }
        if constexpr (Group<F>::kFourBits) {
#pragma GCC unroll 4
            for (std::size_t j = 0; j < 4; ++j) {
                const __m512i both = _mm512_loadu_si512(group + 64 * j);
                const __m512i first = _mm512_and_si512(both, low);
                const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
#pragma GCC unroll 16
                for (std::size_t m = 0; m < M; ++m) {
                    dots[m] = _mm512_dpbusd_epi32(dots[m], first, four(quants + m * in.cols + 4 * j));
                    dots[m] = _mm512_dpbusd_epi32(dots[m], second, four(quants + m * in.cols + 16 + 4 * j));
                }
            }
        } else if constexpr (Group<F>::kFine) {
            // There is no bias for 16 columns: the product with 128 takes its place.
#pragma GCC unroll 4
            for (std::size_t j = 0; j < 4; ++j) {
                const __m512i first = _mm512_xor_si512(_mm512_loadu_si512(group + 64 * j), sign);
                const __m512i second = _mm512_xor_si512(_mm512_loadu_si512(group + 64 * (j + 4)), sign);
#pragma GCC unroll 16
                for (std::size_t m = 0; m < M; ++m) {
                    const __m512i x = four(quants + m * in.cols + 4 * j), y = four(quants + m * in.cols + 16 + 4 * j);
                    const __m512i none = _mm512_setzero_si512();
                    dots[m] =
                        _mm512_sub_epi32(_mm512_dpbusd_epi32(dots[m], first, x), _mm512_dpbusd_epi32(none, sign, x));
                    others[m] =
                        _mm512_sub_epi32(_mm512_dpbusd_epi32(others[m], second, y), _mm512_dpbusd_epi32(none, sign, y));
                }
            }
        } else {
#pragma GCC unroll 8
            for (std::size_t j = 0; j < 8; ++j) {
                const __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(group + 64 * j), sign);
#pragma GCC unroll 16
                for (std::size_t m = 0; m < M; ++m) {
                    dots[m] = _mm512_dpbusd_epi32(dots[m], weights, four(quants + m * in.cols + 4 * j));
                }
            }
        }
        const __m512 scale = Group<F>::factors(panel, g, 0).v;
        [[maybe_unused]] __m512 other;
        if constexpr (Group<F>::kMinimum || Group<F>::kFine) {
            other = Group<F>::factors(panel, g, 1).v;
        }
#pragma GCC unroll 16
        for (std::size_t m = 0; m < M; ++m) {
            const __m512 x = _mm512_set1_ps(in.scales[m * in.groups + g]);
            sums[m] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots[m]), x), scale, sums[m]);
            if constexpr (Group<F>::kFine) {
                sums[m] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(others[m]), x), other, sums[m]);
            }
            if constexpr (Group<F>::kMinimum) {
                sums[m] = _mm512_fmadd_ps(_mm512_set1_ps(in.sums[m * in.groups + g]), other, sums[m]);
            }
        }
    }
#pragma GCC unroll 16
    for (std::size_t m = 0; m < M; ++m) {
        _mm512_storeu_ps(out + m * stride, sums[m]);
    }
}

template <WeightFormat F>
void multiply_quantized(const std::uint8_t* panel, std::size_t cols, const Activations& activations,
                        const std::uint8_t* next, void* /*scratch*/, float* out, std::size_t stride) {
    // Fine groups have two dot products each.
    constexpr std::size_t most = Group<F>::kFine ? kQuantTileRows / 2 : kQuantTileRows;
    for_each_tile<most>(panel, panel_bytes(F, cols), cols, activations, next,
                        [&](auto rows, const TileInput& input, std::size_t row) {
                            quantized_tile<F, decltype(rows)::value>(panel, input, out + row * stride, stride);
                        });
}

std::size_t peak(std::size_t rounds) {
    constexpr std::size_t kSums = 16;  // more than the latency of an instruction times how many begin at once
    __m512i sums[kSums];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kSums; ++i) {
        sums[i] = _mm512_setzero_si512();
    }
    __m512i weights = _mm512_set1_epi8(7), x = _mm512_set1_epi8(-3);
    for (std::size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (std::size_t i = 0; i < kSums; ++i) {
            sums[i] = _mm512_dpbusd_epi32(sums[i], weights, x);
            asm volatile("" : "+v"(sums[i]));  // or the compiler leaves out what is not read
        }
    }
    return rounds * kSums * 64;
}

}  // namespace
}  // namespace rbee::kernels
