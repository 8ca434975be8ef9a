// Integer dot products with AVX2: vpmaddubsw multiplies unsigned by signed bytes and adds pairs to 16 bits, saturating.
//
// Quants are the unsigned factor, and activations the signed one (-127 to 127). A pair of quants up to q makes 254 q at
// most, and 16 bits hold 32,767. So no sum saturates:
//
//   up to 4 bits  8 quads: 8 * 254 * 15 = 30,480. A group is added up in 16 bits and widened once.
//   up to 6 bits  2 quads: 2 * 254 * 63 = 32,004. Two quads are, and so are all quants with two scales for a group.
//   8 bits        signed, and taken without their sign, which the activations get instead. Two products of 128 * 127
//                 make 32,512, and each quad is widened.
//
// Numbers of a table take the place of quants: those of FP4, plus 12, are up to 24; those of IQ4 have 8 bits.
//
// What an offset makes too much is taken off afterwards: it is the offset times the sum of the activations.
//
// Widening is vpmaddwd, a multiplication by ones. Scales that are a byte times a number of the whole block take the
// place of the ones, so that a group's sum remains an integer: at most 32 * 127 * 127 * 128 = 66,064,384 with IQ4, and
// less with the others. What files have stays below 2^24, where it is exact as a float too.
//
// Some instructions are inline assembly. g++ would compute all products of a tile before it adds the first one up, and
// spill most of them (53 stores to the stack in a group of four rows, counted in its assembly).

#pragma once

#include "rbee_kernels/groups_avx2.h"

namespace rbee::kernels {
namespace {

constexpr std::size_t kFloatTileRows = 6;
constexpr std::size_t kQuantTileRows = 4;
// From so many rows on a panel of less than eight bits is first made one of bytes.
constexpr std::size_t kUnpackRows = 9;

inline __m256i four(const void* at) {
    std::int32_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return _mm256_set1_epi32(bits);
}

/// Dot products of M rows of activations with a group's quads from `begin` to `end`: of the first eight rows of the
/// panel, and of the others. `times(vector, quad)` takes the place of ones.
template <WeightFormat F, std::size_t M, typename Quads, typename Times>
[[gnu::always_inline]] inline void multiply_quads(Quads (&quads)[2], const std::int8_t* x, std::size_t x_stride,
                                                  std::size_t begin, std::size_t end, Times&& times,
                                                  __m256i (&dots)[M][2]) {
    if constexpr (way<F>() == Way::kWhole) {
#pragma GCC unroll 8
        for (std::size_t j = begin; j < end; ++j) {
            const __m256i weights[2] = {quads[0].take(j), quads[1].take(j)};
#pragma GCC unroll 4
            for (std::size_t m = 0; m < M; ++m) {
                const __m256i four_x = four(x + m * x_stride + 4 * j);
                for (std::size_t v = 0; v < 2; ++v) {
                    if (j == begin) {
                        asm("vpmaddubsw %2, %1, %0" : "=x"(dots[m][v]) : "x"(weights[v]), "x"(four_x));
                    } else {
                        __m256i pairs;
                        asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                            : "+x"(dots[m][v]), "=&x"(pairs)
                            : "x"(weights[v]), "x"(four_x));
                    }
                }
            }
        }
#pragma GCC unroll 4
        for (std::size_t m = 0; m < M; ++m) {
            for (std::size_t v = 0; v < 2; ++v) {
                dots[m][v] = _mm256_madd_epi16(dots[m][v], times(v, begin));
            }
        }
    } else if constexpr (way<F>() == Way::kTwos) {
#pragma GCC unroll 4
        for (std::size_t j = begin; j < end; j += 2) {
            __m256i first[2], second[2];
            for (std::size_t v = 0; v < 2; ++v) {
                first[v] = quads[v].take(j);
                second[v] = quads[v].take(j + 1);
            }
#pragma GCC unroll 4
            for (std::size_t m = 0; m < M; ++m) {
                const std::int8_t* at = x + m * x_stride + 4 * j;
                const __m256i first_x = four(at), second_x = four(at + 4);
                for (std::size_t v = 0; v < 2; ++v) {
                    __m256i pairs, more;
                    asm("vpmaddubsw %4, %2, %0\n\tvpmaddubsw %5, %3, %1\n\tvpaddw %1, %0, %0"
                        : "=&x"(pairs), "=&x"(more)
                        : "x"(first[v]), "x"(second[v]), "x"(first_x), "x"(second_x));
                    if (j == begin) {
                        asm("vpmaddwd %1, %2, %0" : "=x"(dots[m][v]) : "xm"(times(v, j)), "x"(pairs));
                    } else {
                        asm("vpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0"
                            : "+x"(dots[m][v]), "+x"(pairs)
                            : "xm"(times(v, j)));
                    }
                }
            }
        }
    } else {
#pragma GCC unroll 4
        for (std::size_t m = 0; m < M; ++m) {
            dots[m][0] = dots[m][1] = _mm256_setzero_si256();
        }
#pragma GCC unroll 8
        for (std::size_t j = begin; j < end; ++j) {
            const __m256i weights[2] = {quads[0].take(j), quads[1].take(j)};
            const __m256i sizes[2] = {_mm256_abs_epi8(weights[0]), _mm256_abs_epi8(weights[1])};
#pragma GCC unroll 4
            for (std::size_t m = 0; m < M; ++m) {
                const __m256i four_x = four(x + m * x_stride + 4 * j);
                for (std::size_t v = 0; v < 2; ++v) {
                    __m256i products;
                    asm("vpsignb %2, %4, %1\n\tvpmaddubsw %1, %3, %1\n\tvpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
                        : "+x"(dots[m][v]), "=&x"(products)
                        : "x"(weights[v]), "x"(sizes[v]), "x"(four_x), "xm"(times(v, j)));
                }
            }
        }
    }
}

/// `sums` [M][16] are in memory: there are not enough registers for them beside the dot products. It is the stack's,
/// because rows of the result may lie a multiple of 4 KiB apart, where a load looks as if it depended on the store
/// before it.
template <WeightFormat F, Source S, std::size_t M>
[[gnu::noinline]] void quantized_tile(const void* panel, const TileInput& in, float* out, std::size_t stride) {
    constexpr FormatLayout layout = layout_of(F);
    // Parts of the columns whose sums are multiplied by floats of their own.
    constexpr std::size_t parts = layout.fine && !kIntegers<F> ? 2 : 1, part_quads = kQuads / parts;
    const __m256i ones = _mm256_set1_epi16(1);
    alignas(32) float sums[M * kPanelRows] = {};
    const std::int8_t* quants = in.quants;
    const std::uint8_t* ahead = in.ahead;
    for (std::size_t g = 0; g < in.groups; ++g, quants += kGroup) {
        for (std::size_t i = 0; i < in.ahead_step; i += kLineBytes) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + i), _MM_HINT_T0);
        }
        ahead += in.ahead_step;
        const GroupSource<F, S> group(panel, g);
        Multipliers<F> made[2];
        const Multipliers<F>* const by = group.by(made);
        auto quads = group.quads();
        const auto times = [&](std::size_t v, std::size_t j) {
            if constexpr (kIntegers<F>) {
                return by[v].times[layout.fine ? j / 4 : 0];
            } else {
                return static_cast<void>(v), static_cast<void>(j), ones;
            }
        };
#pragma GCC unroll 2
        for (std::size_t part = 0; part < parts; ++part) {
            __m256i dots[M][2];
            multiply_quads<F, M>(quads.of, quants, in.cols, part * part_quads, (part + 1) * part_quads, times, dots);
#pragma GCC unroll 4
            for (std::size_t m = 0; m < M; ++m) {
                const std::size_t at = m * in.groups + g;
                const __m256 x = _mm256_set1_ps(in.scales[at]);
                for (std::size_t v = 0; v < 2; ++v) {
                    __m256i dot = dots[m][v];
                    if constexpr (way<F>() != Way::kSigned && layout.offset != 0 && kIntegers<F>) {
                        dot = _mm256_sub_epi32(dot, _mm256_madd_epi16(by[v].offset, four(in.half_sums + at)));
                    } else if constexpr (way<F>() != Way::kSigned && layout.offset != 0) {
                        const __m256i offset = _mm256_set1_epi16(layout.offset);
                        dot = _mm256_sub_epi32(dot, _mm256_madd_epi16(offset, four(in.half_sums + at)));
                    }
                    float* sum = sums + m * kPanelRows + 8 * v;
                    __m256 result = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dot), x), by[v].scale[part],
                                                    _mm256_load_ps(sum));
                    if constexpr (Group<F>::kMinimum && layout.fine) {
                        const __m256i minimum = _mm256_madd_epi16(by[v].minimums, four(in.half_sums + at));
                        result = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(minimum), x), by[v].minimum, result);
                    } else if constexpr (Group<F>::kMinimum) {
                        result = _mm256_fmadd_ps(_mm256_set1_ps(in.sums[at]), by[v].minimum, result);
                    }
                    _mm256_store_ps(sum, result);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (std::size_t m = 0; m < M; ++m) {
        store(out + m * stride, load(sums + m * kPanelRows));
    }
}

template <WeightFormat F, Source S>
void multiply_rows(const void* panel, std::size_t cols, const Activations& activations, const std::uint8_t* stored,
                   const std::uint8_t* next, float* out, std::size_t stride) {
    for_each_tile<kQuantTileRows>(
        stored, panel_bytes(F, cols), cols, activations, next, [&](auto rows, const TileInput& input, std::size_t row) {
            quantized_tile<F, S, decltype(rows)::value>(panel, input, out + row * stride, stride);
        });
}

template <WeightFormat F>
void multiply_quantized(const std::uint8_t* panel, std::size_t cols, const Activations& activations,
                        const std::uint8_t* next, void* scratch, float* out, std::size_t stride) {
    if constexpr (layout_of(F).low_bits != 8) {
        if (activations.rows >= kUnpackRows) {
            unpack_panel<F>(panel, cols / kGroup, static_cast<UnpackedGroup<F>*>(scratch));
            multiply_rows<F, Source::kUnpacked>(scratch, cols, activations, panel, next, out, stride);
            return;
        }
    }
    multiply_rows<F, Source::kStored>(panel, cols, activations, panel, next, out, stride);
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
