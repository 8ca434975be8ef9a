// Integer dot products with AVX2: vpmaddubsw multiplies unsigned by signed bytes and adds pairs to 16 bits, saturating.
//
// Four-bit weights cannot saturate it: even the sum over a whole group, eight pairs in a 16-bit lane, is at most 8 * 2
// * 15 * 127 = 30,480. So they are added up in 16 bits and widened once. Eight-bit weights are taken without their
// sign, which the activations get instead; two products of 128 * 127 fit, and every pair is widened.

#pragma once

namespace rbee::kernels {
namespace {

constexpr std::size_t kFloatTileRows = 6;
constexpr std::size_t kQuantTileRows = 4;
// From so many rows on a panel of four bits is first made one of bytes, in the first-level cache.
constexpr std::size_t kUnpackRows = 9;

inline Vec four_bits(const std::uint8_t* lanes, std::size_t shift) {
    const __m128i down = _mm_cvtsi64_si128(static_cast<long long>(shift));
    const __m256i low = _mm256_set1_epi32(15);
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes + 32));
    return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(a, down), low)),
            _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(b, down), low))};
}
inline Vec signed_byte(const std::uint8_t* lanes, std::size_t i) {
    const __m128i up = _mm_cvtsi64_si128(static_cast<long long>(24 - 8 * i));
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes + 32));
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(a, up), 24)),
            _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(b, up), 24))};
}

inline __m256i four(const std::int8_t* quants) {
    std::int32_t bits;
    std::memcpy(&bits, quants, sizeof bits);
    return _mm256_set1_epi32(bits);
}
// One after the other, and in assembly because g++ would compute all products of a tile before it adds the first one
// up, and spill most of them (53 stores to the stack in a group of four rows, counted in its assembly).

/// sum += pairs of weights (unsigned) times x, in 16 bits.
inline void add_pairs(__m256i& sum, __m256i weights, __m256i x) {
    __m256i pairs;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(pairs) : "x"(weights), "x"(x));
}
/// sum += fours of weights (signed, and their sizes) times x, in 32 bits.
inline void add_fours(__m256i& sum, __m256i weights, __m256i sizes, __m256i x, __m256i ones) {
    __m256i products;
    asm("vpsignb %2, %4, %1\n\tvpmaddubsw %1, %3, %1\n\tvpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
        : "+x"(sum), "=&x"(products)
        : "x"(weights), "x"(sizes), "x"(x), "x"(ones));
}

inline __m256i bytes(const std::uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

/// A panel's groups as `quantized_tile` reads them: as they are stored, or four-bit ones unpacked to bytes with their
/// scales and minimums as floats behind them.
enum class Source { kStored, kUnpacked };
constexpr std::size_t kUnpackedGroupBytes = 512 + 2 * 64;

template <WeightFormat F>
void unpack_panel(const std::uint8_t* panel, std::size_t groups, std::uint8_t* out) {
    const __m256i low = _mm256_set1_epi8(15);
    for (std::size_t g = 0; g < groups; ++g, out += kUnpackedGroupBytes) {
        const std::uint8_t* group = Group<F>::quants(panel, g);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < 256; i += 32) {
            const __m256i both = bytes(group + i);
            _mm256_store_si256(reinterpret_cast<__m256i*>(out + i), _mm256_and_si256(both, low));
            _mm256_store_si256(reinterpret_cast<__m256i*>(out + 256 + i),
                               _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
        }
        store(reinterpret_cast<float*>(out + 512), Group<F>::factors(panel, g, 0));
        store(reinterpret_cast<float*>(out + 576), Group<F>::factors(panel, g, 1));
    }
}

template <WeightFormat F, Source S>
inline const std::uint8_t* quants_of(const std::uint8_t* panel, std::size_t group) {
    return S == Source::kUnpacked ? panel + group * kUnpackedGroupBytes : Group<F>::quants(panel, group);
}

template <WeightFormat F, Source S>
inline Vec factors(const std::uint8_t* panel, std::size_t group, std::size_t which) {
    if constexpr (S == Source::kUnpacked) {
        return load(reinterpret_cast<const float*>(panel + group * kUnpackedGroupBytes + 512 + 64 * which));
    } else {
        return Group<F>::factors(panel, group, which);
    }
}

/// `sums` [M][16] are in memory: there are not enough registers for them beside the dot products. It is the stack's,
/// because rows of the result may lie a multiple of 4 KiB apart, where a load looks as if it depended on the store
/// before it.
template <std::size_t M>
inline void add_products(const __m256i (&dots)[M][2], Vec scale, const float* x, std::size_t x_stride, float* sums) {
#pragma GCC unroll 4
    for (std::size_t m = 0; m < M; ++m) {
        const Vec product = {_mm256_cvtepi32_ps(dots[m][0]), _mm256_cvtepi32_ps(dots[m][1])};
        float* sum = sums + m * kPanelRows;
        store(sum, fma(product * broadcast(x[m * x_stride]), scale, load(sum)));
    }
}

template <WeightFormat F, Source S, std::size_t M>
[[gnu::noinline]] void quantized_tile(const std::uint8_t* panel, const TileInput& in, float* out, std::size_t stride) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    alignas(32) float sums[M * kPanelRows];
#pragma GCC unroll 4
    for (std::size_t m = 0; m < M; ++m) {
        store(sums + m * kPanelRows, broadcast(0.0F));
    }
    const std::int8_t* quants = in.quants;
    const std::uint8_t* ahead = in.ahead;
    for (std::size_t g = 0; g < in.groups; ++g, quants += kGroup) {
        const std::uint8_t* group = quants_of<F, S>(panel, g);
        for (std::size_t i = 0; i < in.ahead_step; i += kLineBytes) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + i), _MM_HINT_T0);
        }
        ahead += in.ahead_step;
        __m256i dots[M][2];
#pragma GCC unroll 4
        for (std::size_t m = 0; m < M; ++m) {
            dots[m][0] = dots[m][1] = _mm256_setzero_si256();
        }
        if constexpr (Group<F>::kFourBits) {
            const auto add = [&](std::size_t m, __m256i first, __m256i second, std::size_t k) {
                const __m256i x = four(quants + m * in.cols + k);
                add_pairs(dots[m][0], first, x);
                add_pairs(dots[m][1], second, x);
            };
#pragma GCC unroll 8
            for (std::size_t j = 0; j < (S == Source::kUnpacked ? 8 : 4); ++j) {
                const __m256i first = bytes(group + 64 * j), second = bytes(group + 64 * j + 32);
                if constexpr (S == Source::kUnpacked) {
#pragma GCC unroll 4
                    for (std::size_t m = 0; m < M; ++m) {
                        add(m, first, second, 4 * j);
                    }
                } else {
                    const __m256i first_low = _mm256_and_si256(first, low), second_low = _mm256_and_si256(second, low);
#pragma GCC unroll 4
                    for (std::size_t m = 0; m < M; ++m) {
                        add(m, first_low, second_low, 4 * j);
                    }
                    const __m256i first_high = _mm256_and_si256(_mm256_srli_epi16(first, 4), low);
                    const __m256i second_high = _mm256_and_si256(_mm256_srli_epi16(second, 4), low);
#pragma GCC unroll 4
                    for (std::size_t m = 0; m < M; ++m) {
                        add(m, first_high, second_high, 16 + 4 * j);
                    }
                }
            }
#pragma GCC unroll 4
            for (std::size_t m = 0; m < M; ++m) {
                dots[m][0] = _mm256_madd_epi16(dots[m][0], ones);
                dots[m][1] = _mm256_madd_epi16(dots[m][1], ones);
            }
        } else {
#pragma GCC unroll 8
            for (std::size_t j = 0; j < 8; ++j) {
                if constexpr (Group<F>::kFine) {
                    if (j == 4) {
                        add_products<M>(dots, factors<F, S>(panel, g, 0), in.scales + g, in.groups, sums);
#pragma GCC unroll 4
                        for (std::size_t m = 0; m < M; ++m) {
                            dots[m][0] = dots[m][1] = _mm256_setzero_si256();
                        }
                    }
                }
                const __m256i first = bytes(group + 64 * j), second = bytes(group + 64 * j + 32);
                const __m256i first_size = _mm256_abs_epi8(first), second_size = _mm256_abs_epi8(second);
#pragma GCC unroll 4
                for (std::size_t m = 0; m < M; ++m) {
                    const __m256i x = four(quants + m * in.cols + 4 * j);
                    add_fours(dots[m][0], first, first_size, x, ones);
                    add_fours(dots[m][1], second, second_size, x, ones);
                }
            }
        }
        add_products<M>(dots, factors<F, S>(panel, g, Group<F>::kFine ? 1 : 0), in.scales + g, in.groups, sums);
        if constexpr (Group<F>::kMinimum) {
            const Vec minimum = factors<F, S>(panel, g, 1);
#pragma GCC unroll 4
            for (std::size_t m = 0; m < M; ++m) {
                float* sum = sums + m * kPanelRows;
                store(sum, fma(broadcast(in.sums[m * in.groups + g]), minimum, load(sum)));
            }
        }
    }
#pragma GCC unroll 4
    for (std::size_t m = 0; m < M; ++m) {
        store(out + m * stride, load(sums + m * kPanelRows));
    }
}

template <WeightFormat F, Source S>
void multiply_rows(const std::uint8_t* panel, std::size_t cols, const Activations& activations,
                   const std::uint8_t* next, float* out, std::size_t stride) {
    for_each_tile<kQuantTileRows>(
        panel, panel_bytes(F, cols), cols, activations, next, [&](auto rows, const TileInput& input, std::size_t row) {
            quantized_tile<F, S, decltype(rows)::value>(panel, input, out + row * stride, stride);
        });
}

template <WeightFormat F>
void multiply_quantized(const std::uint8_t* panel, std::size_t cols, const Activations& activations,
                        const std::uint8_t* next, void* scratch, float* out, std::size_t stride) {
    if constexpr (Group<F>::kFourBits) {
        if (activations.rows >= kUnpackRows) {
            auto* unpacked = static_cast<std::uint8_t*>(scratch);
            unpack_panel<F>(panel, cols / kGroup, unpacked);
            multiply_rows<F, Source::kUnpacked>(unpacked, cols, activations, next, out, stride);
            return;
        }
    }
    multiply_rows<F, Source::kStored>(panel, cols, activations, next, out, stride);
}

std::size_t peak(std::size_t rounds) {
    constexpr std::size_t kSums = 8;
    __m256i sums[kSums];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kSums; ++i) {
        sums[i] = _mm256_setzero_si256();
    }
    const __m256i weights = _mm256_set1_epi8(7), x = _mm256_set1_epi8(-3);
    for (std::size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
        for (std::size_t i = 0; i < kSums; ++i) {
            asm volatile("vpmaddubsw %2, %1, %%ymm15\n\tvpaddw %%ymm15, %0, %0"
                         : "+x"(sums[i])
                         : "x"(weights), "x"(x)
                         : "xmm15");
        }
    }
    return rounds * kSums * 32;
}

}  // namespace
}  // namespace rbee::kernels
