// Keys and values of the paged cache as attention reads and writes them.
//
// Owns going through a sequence's tiles, the two loops over their elements, and writing a token. Does not know rows'
// sums and weights (`attention.h`). How the cache lies in memory: `attention_task.h`.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "rbee_kernels/attention_task.h"
#include "rbee_kernels/vector16.h"

namespace rbee::kernels {
namespace {

// Rows of a band, the vectors that fit into the registers besides a broadcast, and the tiles of a chunk, whose keys or
// values should fit into the first-level cache.
#if defined(__AVX512VNNI__)
constexpr std::size_t kRows = 12;
constexpr std::size_t kVectors = 30;
constexpr std::size_t kChunkTiles = 16;
#elif defined(__AVX2__)
constexpr std::size_t kRows = 6;
constexpr std::size_t kVectors = 7;
constexpr std::size_t kChunkTiles = 8;
#else
constexpr std::size_t kRows = 4;
constexpr std::size_t kVectors = 5;
constexpr std::size_t kChunkTiles = 8;
#endif
constexpr std::size_t kChunk = kChunkTiles * kLanes16;
constexpr std::size_t kBands = 8;
constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

static_assert(kRows <= kLanes16, "the state of the rows is a vector");

inline std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }
inline std::size_t larger(std::size_t a, std::size_t b) { return a > b ? a : b; }

/// How many vectors of keys or values are held at once, so that with an accumulator for each and every row they fit. A
/// power of two, of which most head sizes and chunks are multiples.
constexpr std::size_t vectors_for(std::size_t rows) {
    const std::size_t fit = kVectors / (rows + 1);
    return fit >= 4 || rows == 1 ? 4 : fit >= 2 ? 2 : 1;
}

/// Positions [from, to); none if to <= from.
struct Range {
    std::size_t from;
    std::size_t to;
};

inline Range seen_by(const AttentionTask& task, std::size_t query) {
    const std::size_t to = task.first_position + query + 1;
    const std::size_t from = task.window != 0 && task.window < to ? to - task.window : 0;
    if (task.partial == nullptr) {
        return {from, to};
    }
    return {larger(from, task.begin), smaller(to, task.end)};
}

/// Whether elements are to be multiplied with scales.
template <typename Element>
constexpr bool kHasScales = std::is_same_v<Element, std::int8_t>;

/// Calls `function` with an element of this format.
template <typename Function>
inline void with_element(CacheFormat format, Function&& function) {
    switch (format) {
        case CacheFormat::kF32: return function(float());
        case CacheFormat::kF16: return function(Half());
        case CacheFormat::kQ8: return function(std::int8_t());
    }
}

/// A tile of keys and the values that belong to it.
template <typename Element>
struct Tile {
    const Element* keys;       // [head_dim][16], and their scales
    const Element* values;     // [16][head_dim], of which there are those from lanes.from to lanes.to
    const Half* value_scales;  // [16]; only with kHasScales
    std::size_t position;      // of lane 0
    Range lanes;               // that are positions which some row sees
};

/// Those of the values of a place, [tile][16]; not to be read without kHasScales.
template <typename Element>
inline auto* value_scales(const CacheLayout& layout, Element* values) {
    using Scale = std::conditional_t<std::is_const_v<Element>, const Half, Half>;
    return reinterpret_cast<Scale*>(values + layout.block_size * layout.head_dim);
}

/// Those of the keys of `At` tiles from dimension d on. Behind a tile's keys: [head_dim / kScaleDims, rounded up][16].
template <std::size_t At>
inline void load_scales(const std::int8_t* const* keys, std::size_t head_dim, std::size_t d, Vec* scales) {
#pragma GCC unroll 4
    for (std::size_t t = 0; t < At; ++t) {
        const Half* all = reinterpret_cast<const Half*>(keys[t] + head_dim * kLanes16);
        scales[t] = load(all + d / kScaleDims * kLanes16);
    }
}

/// Goes through the tiles of a sequence's positions.
template <typename Element>
class Walk {
public:
    Walk(const AttentionTask& task, Range positions)
        : layout_(task.cache->layout),
          keys_(static_cast<const Element*>(task.cache->keys) + task.kv_head * layout_.key_place()),
          values_(static_cast<const Element*>(task.cache->values) + task.kv_head * layout_.value_place()),
          block_table_(task.block_table),
          next_(positions.from),
          end_(positions.to) {}

    /// The next tiles, at most kChunkTiles; 0 at the end. Where a chunk ends depends on positions alone, not on where
    /// the walk began: so the rows that are computed together with a row do not change its sums.
    std::size_t take(Tile<Element>* tiles) {
        const std::size_t tile_of_block = next_ % layout_.block_size / kLanes16;
        const std::size_t limit =
            kChunkTiles - (next_ / layout_.block_size * layout_.tiles() + tile_of_block) % kChunkTiles;
        std::size_t count = 0;
        for (; count < limit && next_ < end_; ++count) {
            const std::size_t offset = next_ % layout_.block_size;
            const auto block = static_cast<std::size_t>(block_table_[next_ / layout_.block_size]);
            const std::size_t lane = offset % kLanes16;
            const std::size_t first = offset - lane;
            const std::size_t left = smaller(layout_.block_size - offset, end_ - next_);
            const std::size_t to = smaller(kLanes16, lane + left);
            const Element* values = values_ + block * layout_.value_block();
            tiles[count] = {keys_ + block * layout_.key_block() + first / kLanes16 * layout_.key_tile(),
                            values + first * layout_.head_dim,
                            value_scales(layout_, values) + first,
                            next_ - lane,
                            {lane, to}};
            next_ += to - lane;
        }
        return count;
    }

private:
    CacheLayout layout_;
    const Element* keys_;
    const Element* values_;
    const std::int64_t* block_table_;
    std::size_t next_;
    std::size_t end_;
};

/// A cache line or two per 32 elements, from memory that is read soon.
template <typename Element>
inline void prefetch_32(const Element* p) {
    __builtin_prefetch(p);
    if constexpr (sizeof(Element) == 4) {
        __builtin_prefetch(p + kLanes16);
    }
}

// The two hot loops. Not inline: with what their callers keep, the sums would not fit into the registers.

/// The scores of `At` tiles, [Rows] kChunk apart; `next` are as many tiles of keys or values to come.
template <std::size_t Rows, std::size_t At, typename Element>
[[gnu::noinline]] void score(const Element* const* keys, const Element* const* next, const float* queries,
                             std::size_t head_dim, float* scores) {
    Vec sums[Rows][At];
#pragma GCC unroll 16
    for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (std::size_t t = 0; t < At; ++t) {
            sums[r][t] = broadcast(0);
        }
    }
    [[maybe_unused]] Vec scales[At];
    if constexpr (kHasScales<Element>) {
        load_scales<At>(keys, head_dim, 0, scales);
    }
    for (std::size_t d = 0; d < head_dim; d += 2) {
#pragma GCC unroll 4
        for (std::size_t t = 0; t < At; ++t) {
            prefetch_32(next[t] + d * kLanes16);
        }
        if constexpr (kHasScales<Element>) {
            if (d > 0 && d % kScaleDims == 0) {
                load_scales<At>(keys, head_dim, d, scales);
            }
        }
#pragma GCC unroll 2
        for (std::size_t i = 0; i < 2; ++i) {
            Vec key[At];
#pragma GCC unroll 4
            for (std::size_t t = 0; t < At; ++t) {
                key[t] = load(keys[t] + (d + i) * kLanes16);
                if constexpr (kHasScales<Element>) {
                    key[t] = key[t] * scales[t];
                }
            }
#pragma GCC unroll 16
            for (std::size_t r = 0; r < Rows; ++r) {
                const Vec query = broadcast(queries[(d + i) * Rows + r]);
#pragma GCC unroll 4
                for (std::size_t t = 0; t < At; ++t) {
                    sums[r][t] = fma(query, key[t], sums[r][t]);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (std::size_t t = 0; t < At; ++t) {
            store(scores + r * kChunk + t * kLanes16, sums[r][t]);
        }
    }
}

/// Adds weighted values to `At` vectors of the rows' sums, [At][Rows][16], having multiplied these with the factors.
template <std::size_t Rows, std::size_t At, typename Element>
[[gnu::noinline]] void add_values(const Tile<Element>* tiles, std::size_t count, const float* weights,
                                  const float* factors, std::size_t head_dim, std::size_t first_dim, float* out) {
    Vec sums[Rows][At];
#pragma GCC unroll 16
    for (std::size_t r = 0; r < Rows; ++r) {
        const Vec factor = broadcast(factors[r]);
#pragma GCC unroll 4
        for (std::size_t v = 0; v < At; ++v) {
            sums[r][v] = load(out + (v * Rows + r) * kLanes16) * factor;
        }
    }
    for (std::size_t i = 0; i < count; ++i) {
        const Range lanes = tiles[i].lanes;
        const std::size_t first = lanes.from * head_dim + first_dim;
        const Element* values = tiles[i].values + first;
        const Element* next = tiles[i + 1 < count ? i + 1 : i].values + first;
        const float* weight = weights + i * kLanes16 + lanes.from;
        for (std::size_t lane = lanes.from; lane < lanes.to; ++lane) {
            Vec value[At];
#pragma GCC unroll 4
            for (std::size_t v = 0; v < At; ++v) {
                value[v] = load(values + v * kLanes16);
            }
#pragma GCC unroll 4
            for (std::size_t v = 0; v < At; v += 2) {
                prefetch_32(next + v * kLanes16);
            }
#pragma GCC unroll 16
            for (std::size_t r = 0; r < Rows; ++r) {
                const Vec each = broadcast(weight[r * kChunk]);
#pragma GCC unroll 4
                for (std::size_t v = 0; v < At; ++v) {
                    sums[r][v] = fma(each, value[v], sums[r][v]);
                }
            }
            values += head_dim;
            next += head_dim;
            ++weight;
        }
    }
#pragma GCC unroll 16
    for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (std::size_t v = 0; v < At; ++v) {
            store(out + (v * Rows + r) * kLanes16, sums[r][v]);
        }
    }
}

/// Multiplies weights [Rows], kChunk apart, with the scales of the values that they are for.
template <std::size_t Rows>
inline void scale_weights(const Tile<std::int8_t>* tiles, std::size_t count, float* weights) {
    for (std::size_t i = 0; i < count; ++i) {
        const Vec scales = load(tiles[i].value_scales);
        for (std::size_t r = 0; r < Rows; ++r) {
            float* weight = weights + r * kChunk + i * kLanes16;
            store(weight, load(weight) * scales);
        }
    }
}

/// Writes `count` floats, a multiple of 16, as bytes that are `stride` apart; what each is to be multiplied with. That
/// is NaN if any of them is not finite.
inline Half quantize(const float* values, std::size_t count, std::int8_t* out, std::size_t stride) {
    Vec greatest = broadcast(0), not_finite = broadcast(0);
    for (std::size_t i = 0; i < count; i += kLanes16) {
        const Vec some = load(values + i);
        greatest = max(abs(some), greatest);
        not_finite = fma(some, broadcast(0), not_finite);
    }
    Half scales[kLanes16];
    store(scales, broadcast(max(greatest) / 127 + sum(not_finite)));
    const Vec scale = load(scales);
    const bool nothing = !(max(scale) > 0);  // 0, or NaN
    for (std::size_t i = 0; i < count; i += kLanes16) {
        std::int8_t bytes[kLanes16];
        store(bytes, nothing ? broadcast(0) : max(load(values + i) / scale, broadcast(-127)));
        for (std::size_t lane = 0; lane < kLanes16; ++lane) {
            out[(i + lane) * stride] = bytes[lane];
        }
    }
    return scales[0];
}

/// Keys go into a lane of a tile, values as they come.
template <typename Element>
inline void store_token(const LayerCache& cache, std::int64_t slot, const float* key, const float* value) {
    const CacheLayout& layout = cache.layout;
    const std::size_t block = static_cast<std::size_t>(slot) / layout.block_size;
    const std::size_t offset = static_cast<std::size_t>(slot) % layout.block_size;
    const std::size_t lane = offset % kLanes16, head_dim = layout.head_dim;
    Element* keys =
        static_cast<Element*>(cache.keys) + block * layout.key_block() + offset / kLanes16 * layout.key_tile();
    Element* values = static_cast<Element*>(cache.values) + block * layout.value_block();
    for (std::size_t head = 0; head < layout.num_kv_heads; ++head) {
        if constexpr (kHasScales<Element>) {
            Half* scales = reinterpret_cast<Half*>(keys + head_dim * kLanes16);
            for (std::size_t d = 0; d < head_dim; d += kScaleDims) {
                scales[d / kScaleDims * kLanes16 + lane] =
                    quantize(key + d, smaller(kScaleDims, head_dim - d), keys + d * kLanes16 + lane, kLanes16);
            }
            value_scales(layout, values)[offset] = quantize(value, head_dim, values + offset * head_dim, 1);
        } else {
            for (std::size_t d = 0; d < head_dim; d += kLanes16) {
                Element converted[kLanes16];
                store(converted, load(key + d));
                for (std::size_t i = 0; i < kLanes16; ++i) {
                    keys[(d + i) * kLanes16 + lane] = converted[i];
                }
                store(values + offset * head_dim + d, load(value + d));
            }
        }
        key += head_dim;
        value += head_dim;
        keys += layout.key_place();
        values += layout.value_place();
    }
}

inline void store_key_and_value(const LayerCache& cache, std::int64_t slot, const float* key, const float* value) {
    with_element(cache.layout.format, [&](auto element) { store_token<decltype(element)>(cache, slot, key, value); });
}

}  // namespace
}  // namespace rbee::kernels
