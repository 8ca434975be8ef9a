// Integer dot products with AVX-512 VNNI: vpdpbusd takes four unsigned by four signed bytes in each of 16 lanes, adding
// without saturation, with the activations broadcast from memory.
//
// Quants are the unsigned factor, and still have the format's offset; signed bytes and numbers of tables are made
// unsigned, which is an offset of 128. Before the products a dot product is set to what the offset makes too much. With
// one scale for a group quants are moved up so far that every offset is 128, times which the activations' sum is there
// (`biases`). A power of two is exact, and the scale takes it back. With two scales vpdpwssd multiplies the two sums of
// the activations.

#pragma once

namespace rbee::kernels {
namespace {

constexpr std::size_t kFloatTileRows = 8;
// Of 32 registers a row has a sum and a dot product for each scale of a group.
constexpr std::size_t kQuantTileRows = 12;
constexpr std::size_t kFineTileRows = 8;

inline __m512i bytes(const void* at) { return _mm512_loadu_si512(at); }

/// A plane's bytes; what several quads share is read once.
template <int Bits>
struct Plane {
    /// Has the bits of quad j at bit `to` of each byte, and other bits beside them. Quads are taken in order.
    __m512i take(const std::uint8_t* plane, std::size_t j, int to) {
        constexpr std::size_t shared = 8 / Bits;
        if (j % shared == 0) {
            held = bytes(plane + kQuadBytes * (j / shared));
        }
        const int down = static_cast<int>(j % shared) * Bits - to;
        const __m128i by = _mm_cvtsi32_si128(down >= 0 ? down : -down);
        return down == 0 ? held : down > 0 ? _mm512_srl_epi16(held, by) : _mm512_sll_epi16(held, by);
    }
    __m512i held;
};

/// The quads of sixteen rows as unsigned bytes, in order: quants from bit `Up` on, or numbers with 128 added.
template <WeightFormat F, int Up = 0>
struct Quads {
    static constexpr int kLow = layout_of(F).low_bits, kHigh = layout_of(F).high_bits;

    explicit Quads(const std::uint8_t* from) : quants(from) {}
    __m512i take(std::size_t j) {
        if constexpr (kLow == 8) {
            return _mm512_xor_si512(bytes(quants + kQuadBytes * j), _mm512_set1_epi8(-128));
        } else {
            constexpr int bits = (1 << kLow) - 1, high_bits = (1 << kHigh) - 1, a_and_b_or_c = 0xEA;
            const __m512i lowest = _mm512_and_si512(low.take(quants + kQuadBytes * kHigh, j, Up),
                                                    _mm512_set1_epi8(static_cast<char>(bits << Up)));
            if constexpr (layout_of(F).table != nullptr) {
                return _mm512_shuffle_epi8(numbers(), lowest);
            } else if constexpr (kHigh == 0) {
                return lowest;
            } else {
                const __m512i mask = _mm512_set1_epi8(static_cast<char>(high_bits << (kLow + Up)));
                return _mm512_ternarylogic_epi32(high.take(quants, j, kLow + Up), mask, lowest, a_and_b_or_c);
            }
        }
    }
    static __m512i numbers() {
        const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(layout_of(F).table));
        return _mm512_broadcast_i32x4(_mm_xor_si128(table, _mm_set1_epi8(-128)));
    }

    const std::uint8_t* const quants;
    Plane<kLow> low;
    Plane<kHigh == 0 ? 1 : kHigh> high;
};

inline Vec signed_bytes(const std::int8_t* fours, std::size_t i) {
    const __m128i up = _mm_cvtsi64_si128(static_cast<long long>(24 - 8 * i));
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_sll_epi32(bytes(fours), up), 24))};
}

template <WeightFormat F>
inline void unpack_numbers(const std::uint8_t* quants, std::int8_t* numbers) {
    constexpr bool has_table = layout_of(F).table != nullptr;
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(has_table ? 128 : layout_of(F).offset));
    Quads<F> quads(quants);
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kQuads; ++j) {
        _mm512_storeu_si512(numbers + kQuadBytes * j, _mm512_sub_epi8(quads.take(j), offset));
    }
}

inline __m512i four(const void* at) {
    std::int32_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return _mm512_set1_epi32(bits);
}

/// Two minimums of each row, as 16 bits each.
template <Factor K>
inline __m512i two_integers(const std::uint8_t* first, const std::uint8_t* second) {
    static_assert(K == Factor::kHighHalf);
    const auto wide = [](const std::uint8_t* entries) {
        return _mm512_srli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries))), 4);
    };
    return _mm512_or_si512(wide(first), _mm512_slli_epi32(wide(second), 16));
}

template <WeightFormat F, std::size_t M>
[[gnu::noinline]] void quantized_tile(const std::uint8_t* panel, const TileInput& in, float* out, std::size_t stride) {
    using Place = GroupPlace<F>;
    constexpr FormatLayout layout = layout_of(F);
    constexpr std::size_t halves = Group<F>::kHalves, half_quads = kQuads / halves;
    constexpr bool biased = layout.offset != 0 && !layout.fine;
    constexpr int up = biased && layout.table == nullptr ? __builtin_ctz(128U / layout.offset) : 0;
    __m512 sums[M];
#pragma GCC unroll 16
    for (std::size_t m = 0; m < M; ++m) {
        sums[m] = _mm512_setzero_ps();
    }
    const __m512i first_offset = _mm512_set1_epi32(static_cast<std::uint16_t>(-layout.offset));
    const __m512i offsets[2] = {first_offset, _mm512_slli_epi32(first_offset, 16)};
    const std::int8_t* quants = in.quants;
    const std::uint8_t* ahead = in.ahead;
    for (std::size_t g = 0; g < in.groups; ++g, quants += kGroup) {
        for (std::size_t i = 0; i < in.ahead_step; i += kLineBytes) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + i), _MM_HINT_T0);
        }
        ahead += in.ahead_step;
        __m512i dots[M][halves];
#pragma GCC unroll 16
        for (std::size_t m = 0; m < M; ++m) {
            const std::size_t at = m * in.groups + g;
#pragma GCC unroll 2
            for (std::size_t half = 0; half < halves; ++half) {
                dots[m][half] = biased ? _mm512_set1_epi32(in.biases[at]) : _mm512_setzero_si512();
                if constexpr (layout.offset != 0 && layout.fine) {
                    dots[m][half] = _mm512_dpwssd_epi32(dots[m][half], offsets[half], four(in.half_sums + at));
                }
            }
        }
        Quads<F, up> quads(Group<F>::quants(panel, g));
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kQuads; j += 2) {  // by two: there are not enough registers for addresses of rows
            const __m512i weights[2] = {quads.take(j), quads.take(j + 1)};
#pragma GCC unroll 16
            for (std::size_t m = 0; m < M; ++m) {
                __m512i& dot = dots[m][j / half_quads];
                const std::int8_t* x = quants + m * in.cols + 4 * j;
                dot = _mm512_dpbusd_epi32(dot, weights[0], four(x));
                dot = _mm512_dpbusd_epi32(dot, weights[1], four(x + 4));
            }
        }
        __m512 scale = Group<F>::scales(panel, g, 0).v;
        if constexpr (up != 0) {
            scale = _mm512_mul_ps(scale, _mm512_set1_ps(1.0F / (1 << up)));
        }
        [[maybe_unused]] __m512 second_scale, minimum;
        [[maybe_unused]] __m512i minimums;
        if constexpr (layout.fine) {
            second_scale = Group<F>::scales(panel, g, 1).v;
        }
        if constexpr (Group<F>::kMinimum && layout.fine) {
            minimums = two_integers<layout.minimum>(panel + Place::minimums(g, 0), panel + Place::minimums(g, 1));
            minimum = load(reinterpret_cast<const Half*>(panel + Place::shared_minimums(g))).v;
        } else if constexpr (Group<F>::kMinimum) {
            minimum = Group<F>::minimums(panel, g, 0).v;
        }
#pragma GCC unroll 16
        for (std::size_t m = 0; m < M; ++m) {
            const std::size_t at = m * in.groups + g;
            const __m512 x = _mm512_set1_ps(in.scales[at]);
            if constexpr (layout.fine) {
                const __m512 first = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[m][0]), scale);
                const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[m][1]), second_scale, first);
                sums[m] = _mm512_fmadd_ps(both, x, sums[m]);
            } else {
                sums[m] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots[m][0]), x), scale, sums[m]);
            }
            if constexpr (Group<F>::kMinimum && layout.fine) {
                const __m512i dot = _mm512_dpwssd_epi32(_mm512_setzero_si512(), minimums, four(in.half_sums + at));
                sums[m] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot), x), minimum, sums[m]);
            } else if constexpr (Group<F>::kMinimum) {
                sums[m] = _mm512_fmadd_ps(_mm512_set1_ps(in.sums[at]), minimum, sums[m]);
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
    for_each_tile<layout_of(F).fine ? kFineTileRows : kQuantTileRows>(
        panel, panel_bytes(F, cols), cols, activations, next, [&](auto rows, const TileInput& input, std::size_t row) {
            quantized_tile<F, decltype(rows)::value>(panel, input, out + row * stride, stride);
        });
}

constexpr std::size_t kUnpackedGroupBytes = 0;  // no panel is unpacked

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
