// A panel's groups in registers of AVX2, eight rows at a time, as they are stored or from an unpacked panel.
//
// Owns in which way a format's products are made, its quants as bytes, and what its sums are multiplied by. Does not
// know activations (`linear_avx2.h`, which has the reasons, includes this).

#pragma once

namespace rbee::kernels {
namespace {

inline __m256i bytes(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

/// Quads whose products are added up in 16 bits: all, two, or none.
enum class Way { kWhole, kTwos, kSigned };

/// The greatest quant, or number of the table with the offset.
template <WeightFormat F>
constexpr int greatest() {
    constexpr FormatLayout layout = layout_of(F);
    int greatest = layout.table != nullptr ? 0 : (1 << layout.bits()) - 1;
    for (std::size_t i = 0; layout.table != nullptr && i < 16; ++i) {
        greatest = layout.table[i] + layout.offset > greatest ? layout.table[i] + layout.offset : greatest;
    }
    return greatest;
}
template <WeightFormat F>
constexpr Way way() {
    constexpr int most = 32767 / (2 * 127 * greatest<F>());  // quads in 16 bits
    return most < 2 ? Way::kSigned : most < 8 || layout_of(F).fine ? Way::kTwos : Way::kWhole;
}
/// A group's sum is an integer, of which the scales are a part.
template <WeightFormat F>
constexpr bool kIntegers = is_product(layout_of(F).scale);

/// A plane's bytes of eight rows; what several quads share is read once.
template <int Bits>
struct Plane {
    /// The bits of quad j, moved to bit `to` of each byte. Quads are taken in order.
    __m256i take(const std::uint8_t* plane, std::size_t j, int to) {
        constexpr std::size_t shared = 8 / Bits;
        if (j % shared == 0) {
            held = bytes(plane + kQuadBytes * (j / shared));
        }
        const int down = static_cast<int>(j % shared) * Bits - to;
        const __m256i moved = down >= 0 ? _mm256_srli_epi16(held, down) : _mm256_slli_epi16(held, -down);
        return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(((1 << Bits) - 1) << to)));
    }
    __m256i held;
};

/// The quads of eight rows, in order.
template <WeightFormat F>
struct Quads {
    static constexpr int kLow = layout_of(F).low_bits, kHigh = layout_of(F).high_bits;

    explicit Quads(const std::uint8_t* from) : quants(from) {}
    __m256i take(std::size_t j) {
        if constexpr (kLow == 8) {
            return bytes(quants + kQuadBytes * j);
        } else if constexpr (layout_of(F).table != nullptr) {
            return _mm256_shuffle_epi8(numbers(), low.take(quants, j, 0));
        } else if constexpr (kHigh == 0) {
            return low.take(quants, j, 0);
        } else {
            return _mm256_or_si256(low.take(quants + kQuadBytes * kHigh, j, 0), high.take(quants, j, kLow));
        }
    }
    /// With the offset, or signed.
    static __m256i numbers() {
        const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(layout_of(F).table));
        const __m128i offset = _mm_set1_epi8(static_cast<char>(way<F>() == Way::kSigned ? 0 : layout_of(F).offset));
        return _mm256_broadcastsi128_si256(_mm_add_epi8(table, offset));
    }

    const std::uint8_t* const quants;
    Plane<kLow> low;
    Plane<kHigh == 0 ? 1 : kHigh> high;
};

inline Vec signed_bytes(const std::int8_t* fours, std::size_t i) {
    const __m128i up = _mm_cvtsi64_si128(static_cast<long long>(24 - 8 * i));
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(bytes(fours), up), 24)),
            _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(bytes(fours + 32), up), 24))};
}

template <WeightFormat F>
inline void unpack_numbers(const std::uint8_t* quants, std::int8_t* numbers) {
    const __m256i offset = _mm256_set1_epi8(way<F>() == Way::kSigned ? 0 : static_cast<char>(layout_of(F).offset));
    for (std::size_t at = 0; at < kQuadBytes; at += 32) {
        Quads<F> quads(quants + at);
#pragma GCC unroll 8
        for (std::size_t j = 0; j < kQuads; ++j) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + kQuadBytes * j + at),
                                _mm256_sub_epi8(quads.take(j), offset));
        }
    }
}

// What a group's dot products with eight rows are multiplied by. A format has one kind of scales and one of minimums.

struct FloatScale {
    __m256 scale[1];
};
struct FloatScales {
    __m256 scale[2];
};
struct IntegerScale {
    __m256i times[1];  // 16 bits, twice in each lane
    __m256 scale[1];
};
struct IntegerScales {
    __m256i times[2];
    __m256 scale[1];
    __m256i offset;  // both of `times` in each lane, times the format's offset
};
struct NoMinimum {};
struct FloatMinimum {
    __m256 minimum;
};
struct IntegerMinimums {
    __m256i minimums;  // 16 bits, two in each lane
    __m256 minimum;
};

template <WeightFormat F>
using ScalesOf = std::conditional_t<kIntegers<F>, std::conditional_t<layout_of(F).fine, IntegerScales, IntegerScale>,
                                    std::conditional_t<layout_of(F).fine, FloatScales, FloatScale>>;
template <WeightFormat F>
using MinimumsOf = std::conditional_t<!Group<F>::kMinimum, NoMinimum,
                                      std::conditional_t<layout_of(F).fine, IntegerMinimums, FloatMinimum>>;
template <WeightFormat F>
struct Multipliers : ScalesOf<F>, MinimumsOf<F> {};

/// Eight bytes as integers of 32 bits.
template <Factor K>
inline __m256i integers(const std::uint8_t* entries) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(entries));
    const __m256i wide = K == Factor::kSignedByte ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight);
    return K == Factor::kLowHalf    ? _mm256_and_si256(wide, _mm256_set1_epi32(15))
           : K == Factor::kHighHalf ? _mm256_srli_epi32(wide, 4)
                                    : wide;
}
/// The lowest 16 bits of a lane in both of its halves.
inline __m256i twice(__m256i lanes) { return _mm256_blend_epi16(lanes, _mm256_slli_epi32(lanes, 16), 0xAA); }
inline __m256i beside(__m256i low, __m256i high) { return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xAA); }
inline __m256 eight_halves(const std::uint8_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
inline __m256 part(Vec both, std::size_t vector) { return vector == 0 ? both.lo : both.hi; }

template <WeightFormat F>
inline Multipliers<F> multipliers(const std::uint8_t* panel, std::size_t g, std::size_t vector) {
    using Place = GroupPlace<F>;
    constexpr FormatLayout layout = layout_of(F);
    const std::size_t row = 8 * vector;
    Multipliers<F> by;
    if constexpr (kIntegers<F>) {
        const __m256i first = integers<layout.scale>(panel + Place::scales(g, 0) + row);
        by.times[0] = twice(first);
        if constexpr (layout.fine) {
            const __m256i second = integers<layout.scale>(panel + Place::scales(g, 1) + row);
            by.times[1] = twice(second);
            by.offset = _mm256_mullo_epi16(beside(first, second), _mm256_set1_epi16(layout.offset));
        }
        by.scale[0] = eight_halves(panel + Place::shared_scales(g) + 2 * row);
    } else {
        for (std::size_t half = 0; half < Group<F>::kHalves; ++half) {
            by.scale[half] = part(Group<F>::scales(panel, g, half), vector);
        }
    }
    if constexpr (Group<F>::kMinimum && layout.fine) {
        by.minimums = beside(integers<layout.minimum>(panel + Place::minimums(g, 0) + row),
                             integers<layout.minimum>(panel + Place::minimums(g, 1) + row));
        by.minimum = eight_halves(panel + Place::shared_minimums(g) + 2 * row);
    } else if constexpr (Group<F>::kMinimum) {
        by.minimum = part(Group<F>::minimums(panel, g, 0), vector);
    }
    return by;
}

/// A panel's groups as `quantized_tile` reads them: as they are stored, or unpacked to bytes with their multipliers
/// behind them.
enum class Source { kStored, kUnpacked };

template <WeightFormat F>
struct UnpackedGroup {
    std::uint8_t quads[kQuads][kQuadBytes];
    Multipliers<F> by[2];
};

constexpr std::size_t kUnpackedGroupBytes =
    kQuads * kQuadBytes + 2 * (sizeof(IntegerScales) + sizeof(IntegerMinimums));  // of any format, at most

template <WeightFormat F>
void unpack_panel(const std::uint8_t* panel, std::size_t groups, UnpackedGroup<F>* out) {
    static_assert(sizeof(UnpackedGroup<F>) <= kUnpackedGroupBytes);
    for (std::size_t g = 0; g < groups; ++g, ++out) {
        const std::uint8_t* quants = Group<F>::quants(panel, g);
        for (std::size_t at = 0; at < kQuadBytes; at += 32) {
            Quads<F> quads(quants + at);
#pragma GCC unroll 8
            for (std::size_t j = 0; j < kQuads; ++j) {
                _mm256_store_si256(reinterpret_cast<__m256i*>(out->quads[j] + at), quads.take(j));
            }
        }
        out->by[0] = multipliers<F>(panel, g, 0);
        out->by[1] = multipliers<F>(panel, g, 1);
    }
}

template <WeightFormat F, Source S>
struct GroupSource;

template <WeightFormat F>
struct GroupSource<F, Source::kStored> {
    struct BothQuads {
        Quads<F> of[2];
    };
    GroupSource(const void* from, std::size_t group) : panel(static_cast<const std::uint8_t*>(from)), g(group) {}
    BothQuads quads() const {
        const std::uint8_t* const first = Group<F>::quants(panel, g);
        return {{Quads<F>(first), Quads<F>(first + 32)}};
    }
    const Multipliers<F>* by(Multipliers<F>* made) const {
        made[0] = multipliers<F>(panel, g, 0);
        made[1] = multipliers<F>(panel, g, 1);
        return made;
    }
    const std::uint8_t* const panel;
    const std::size_t g;
};

template <WeightFormat F>
struct GroupSource<F, Source::kUnpacked> {
    struct UnpackedQuads {
        __m256i take(std::size_t j) const { return bytes(first + kQuadBytes * j); }
        const std::uint8_t* const first;
    };
    struct BothQuads {
        UnpackedQuads of[2];
    };
    GroupSource(const void* from, std::size_t group) : unpacked(static_cast<const UnpackedGroup<F>*>(from)[group]) {}
    BothQuads quads() const { return {{{unpacked.quads[0]}, {unpacked.quads[0] + 32}}}; }
    const Multipliers<F>* by(Multipliers<F>* /*made*/) const { return unpacked.by; }

    const UnpackedGroup<F>& unpacked;
};

}  // namespace
}  // namespace rbee::kernels
