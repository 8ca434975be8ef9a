// Attention of consecutive tokens of one sequence over the paged cache.
//
// Owns the computation. Does not know models or threads: attention_task.h has what is computed and where keys and
// values lie, attention_tiles.h reads them. Only files that are compiled for one instruction set include it (vector16.h).
//
// A row is one query head of one token. Rows are taken in bands of up to kRows, so that a key or value that is in a
// register serves all of them; positions in chunks, so that the scratch memory does not grow with the context. Of each
// chunk a band computes the scores, their weights e^(score - greatest so far), and the sum of the weighted values,
// which is scaled down whenever a greater score turns up (Milakov and Gimelshein, 2018; FlashAttention: Dao et al.,
// 2022). Several bands go through the chunks together, so that each chunk is read from memory once for all of them.
//
// What a row must not see gets a score of -infinity and with it a weight of exactly 0. NaN never is the greatest score,
// but its weight is NaN, and then so are the sums. A value that is not finite may spread to rows of the same sequence
// that are before it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "rbee_kernels/attention_tiles.h"

namespace rbee::kernels {
namespace {

/// Rows that are computed together, and what is kept of them from chunk to chunk. Row i of a task is head
/// i % heads_per_kv of query i / heads_per_kv.
struct Band {
    std::size_t first;
    std::size_t size;
    float* queries;  // [head_dim][size], scaled
    float* sums;     // [head_dim / 16][size][16], of weighted values, of the current part of the context
    float* folded;   // the same, of all parts before it
    Range seen[kRows];
    float greatest[kLanes16];
    float totals[kLanes16];
    float folded_greatest[kLanes16];
    float folded_totals[kLanes16];

    Range positions() const { return {seen[0].from, seen[size - 1].to}; }
};

/// What sums relative to two different scores are multiplied with, to be put together. From -infinity, which is that of
/// a part in which a row has seen nothing, nothing could be subtracted.
struct Fold {
    Vec greatest;
    Vec before;
    Vec after;
};

inline Fold fold_of(Vec before, Vec after) {
    const Vec greatest = max(max(before, after), broadcast(kLowest));
    return {max(before, after), exp_or_zero(before - greatest), exp_or_zero(after - greatest)};
}

inline Vec put_together(Vec before, Vec factor_before, Vec after, Vec factor_after) {
    return fma(after, factor_after, before * factor_before);
}

inline void begin_part(Band& band, std::size_t head_dim) {
    for (std::size_t i = 0; i < band.size * head_dim; i += kLanes16) {
        store(band.sums + i, broadcast(0));
    }
    store(band.greatest, broadcast(kNothing));
    store(band.totals, broadcast(0));
}

/// Ends a part of the context; the first one is taken as it is.
inline void fold_part(Band& band, std::size_t head_dim, bool is_first) {
    if (is_first) {
        for (std::size_t i = 0; i < band.size * head_dim; i += kLanes16) {
            store(band.folded + i, load(band.sums + i));
        }
        store(band.folded_greatest, load(band.greatest));
        store(band.folded_totals, load(band.totals));
        return;
    }
    const Fold fold = fold_of(load(band.folded_greatest), load(band.greatest));
    store(band.folded_greatest, fold.greatest);
    store(band.folded_totals, put_together(load(band.folded_totals), fold.before, load(band.totals), fold.after));
    float before[kLanes16], after[kLanes16];
    store(before, fold.before);
    store(after, fold.after);
    for (std::size_t d = 0; d < head_dim; d += kLanes16) {
        for (std::size_t r = 0; r < band.size; ++r) {
            float* folded = band.folded + d * band.size + r * kLanes16;
            store(folded, put_together(load(folded), broadcast(before[r]),
                                       load(band.sums + d * band.size + r * kLanes16), broadcast(after[r])));
        }
    }
}

/// Where a row is in the queries, or in the output.
inline std::size_t place_of(const AttentionTask& task, std::size_t row, std::size_t stride) {
    return row / task.heads_per_kv * stride + row % task.heads_per_kv * task.cache->layout.head_dim;
}

inline void prepare(const AttentionTask& task, Band& band) {
    const std::size_t head_dim = task.cache->layout.head_dim;
    for (std::size_t r = 0; r < band.size; ++r) {
        const float* query = task.queries + place_of(task, band.first + r, task.query_stride);
        for (std::size_t d = 0; d < head_dim; ++d) {
            band.queries[d * band.size + r] = query[d] * task.scale;
        }
        band.seen[r] = seen_by(task, (band.first + r) / task.heads_per_kv);
    }
    begin_part(band, head_dim);
}

inline void finish(const AttentionTask& task, const Band& band, bool folded) {
    const std::size_t head_dim = task.cache->layout.head_dim;
    const float* sums = folded ? band.folded : band.sums;
    const float* greatest = folded ? band.folded_greatest : band.greatest;
    const float* totals = folded ? band.folded_totals : band.totals;
    for (std::size_t r = 0; r < band.size; ++r) {
        float factor = 1;
        if (task.partial == nullptr) {
            factor /= totals[r];
        } else {
            task.partial[band.first + r] = {greatest[r], totals[r]};
        }
        float* out = task.out + place_of(task, band.first + r, task.out_stride);
        for (std::size_t d = 0; d < head_dim; d += kLanes16) {
            store(out + d, load(sums + d * band.size + r * kLanes16) * broadcast(factor));
        }
    }
}

template <std::size_t Rows, std::size_t At, typename Element>
inline void score_some(const Band& band, const Tile<Element>* tiles, std::size_t count, std::size_t index,
                       std::size_t head_dim, float* scores) {
    const Element* keys[At];
    const Element* next[At];
    for (std::size_t t = 0; t < At; ++t) {
        const std::size_t ahead = index + t + At;
        keys[t] = tiles[index + t].keys;
        next[t] = ahead < count ? tiles[ahead].keys : tiles[ahead % count].values;
    }
    score<Rows, At>(keys, next, band.queries, head_dim, scores + index * kLanes16);
}

/// Replaces the scores that rows must not see.
template <std::size_t Rows>
inline void hide(const Band& band, Range lanes, std::size_t position, float* scores) {
    const bool whole = lanes.from == 0 && lanes.to == kLanes16;
    if (whole && band.seen[Rows - 1].from <= position && position + kLanes16 <= band.seen[0].to) {
        return;
    }
    const Vec nothing = broadcast(kNothing);
    for (std::size_t r = 0; r < Rows; ++r) {
        const std::size_t from = larger(band.seen[r].from, position) - position;
        const std::size_t to = larger(band.seen[r].to, position) - position;
        const Vec below = first(smaller(to, lanes.to), load(scores + r * kChunk), nothing);
        store(scores + r * kChunk, first(smaller(from, kLanes16), nothing, below));
    }
}

/// Turns scores into weights, in place; `factors` [16] is by what the sums so far are to be multiplied.
template <std::size_t Rows>
inline void weigh(float* scores, std::size_t count, Band& band, float* factors) {
    const Vec before = load(band.greatest);
    for (std::size_t r = 0; r < Rows; ++r) {
        const float* row = scores + r * kChunk;
        Vec greatest = broadcast(band.greatest[r]);
        for (std::size_t i = 0; i < count; ++i) {
            greatest = max(load(row + i * kLanes16), greatest);  // the second one, if the score is NaN
        }
        band.greatest[r] = max(greatest);
    }
    // As long as a row has seen nothing, the greatest is -infinity, from which it could not be subtracted.
    float subtracted[kLanes16];
    const Vec greatest = max(load(band.greatest), broadcast(kLowest));
    store(subtracted, greatest);
    store(factors, exp_or_zero(before - greatest));
    for (std::size_t r = 0; r < Rows; ++r) {
        float* row = scores + r * kChunk;
        const Vec less = broadcast(subtracted[r]);
        Vec total = broadcast(0);
        for (std::size_t i = 0; i < count; ++i) {
            const Vec weight = exp_or_zero(load(row + i * kLanes16) - less);
            store(row + i * kLanes16, weight);
            total = total + weight;
        }
        band.totals[r] = band.totals[r] * factors[r] + sum(total);
    }
}

/// Takes a chunk into account; `scores` is scratch memory, [Rows][kChunk].
template <std::size_t Rows, typename Element>
void attend_chunk(Band& band, const Tile<Element>* tiles, std::size_t count, std::size_t head_dim, float* scores) {
    constexpr std::size_t kAt = vectors_for(Rows);
    const Range positions = band.positions();
    for (; count > 0 && tiles[0].position + kLanes16 <= positions.from; --count) {
        ++tiles;
    }
    while (count > 0 && tiles[count - 1].position >= positions.to) {
        --count;
    }
    if (count == 0) {
        return;
    }
    std::size_t i = 0;
    for (; i + kAt <= count; i += kAt) {
        score_some<Rows, kAt>(band, tiles, count, i, head_dim, scores);
    }
    for (; i < count; ++i) {
        score_some<Rows, 1>(band, tiles, count, i, head_dim, scores);
    }
    for (i = 0; i < count; ++i) {
        hide<Rows>(band, tiles[i].lanes, tiles[i].position, scores + i * kLanes16);
    }
    float factors[kLanes16];
    weigh<Rows>(scores, count, band, factors);
    if constexpr (kHasScales<Element>) {
        scale_weights<Rows>(tiles, count, scores);
    }
    std::size_t d = 0;
    for (; d + kAt * kLanes16 <= head_dim; d += kAt * kLanes16) {
        add_values<Rows, kAt>(tiles, count, scores, factors, head_dim, d, band.sums + d * Rows);
    }
    for (; d < head_dim; d += kLanes16) {
        add_values<Rows, 1>(tiles, count, scores, factors, head_dim, d, band.sums + d * Rows);
    }
}

template <typename Element>
using AttendChunk = void (*)(Band&, const Tile<Element>*, std::size_t, std::size_t, float*);

template <typename Element, std::size_t... Indices>
inline AttendChunk<Element> attend_chunk_of(std::size_t rows, std::index_sequence<Indices...>) {
    constexpr AttendChunk<Element> kByRows[] = {attend_chunk<Indices + 1, Element>...};
    return kByRows[rows - 1];
}

inline void end_part(Band* bands, std::size_t num_bands, std::size_t head_dim, bool is_first) {
    for (std::size_t i = 0; i < num_bands; ++i) {
        fold_part(bands[i], head_dim, is_first);
    }
}

template <typename Element>
inline void attend_bands(const AttentionTask& task, Band* bands, std::size_t num_bands, float* scores) {
    for (std::size_t i = 0; i < num_bands; ++i) {
        prepare(task, bands[i]);
    }
    Walk<Element> walk(task, {bands[0].positions().from, bands[num_bands - 1].positions().to});
    Tile<Element> tiles[kChunkTiles];
    const CacheLayout& layout = task.cache->layout;
    std::size_t parts = 0, part = 0;
    while (const std::size_t count = walk.take(tiles)) {
        const std::size_t its_part = layout.tile_of(tiles[0].position) / kPartTiles;
        if (parts > 0 && its_part != part) {
            end_part(bands, num_bands, layout.head_dim, parts == 1);
            for (std::size_t i = 0; i < num_bands; ++i) {
                begin_part(bands[i], layout.head_dim);
            }
        }
        parts += parts == 0 || its_part != part ? 1 : 0;
        part = its_part;
        for (std::size_t i = 0; i < num_bands; ++i) {
            attend_chunk_of<Element>(bands[i].size, std::make_index_sequence<kRows>())(bands[i], tiles, count,
                                                                                       layout.head_dim, scores);
        }
    }
    if (parts > 1) {
        end_part(bands, num_bands, layout.head_dim, false);
    }
    for (std::size_t i = 0; i < num_bands; ++i) {
        finish(task, bands[i], parts > 1);
    }
}

inline std::size_t attention_scratch_bytes(const CacheLayout& layout, std::size_t) {
    return kRows * (kChunk + kBands * 3 * layout.head_dim) * sizeof(float);  // scores, then queries and both sums
}

inline void attend(const AttentionTask& task, void* scratch) {
    const std::size_t head_dim = task.cache->layout.head_dim;
    auto* scores = static_cast<float*>(scratch);
    const std::size_t rows = task.num_queries * task.heads_per_kv;
    // Evenly: in a narrow band, loading takes longer than computing.
    std::size_t bands_left = (rows + kRows - 1) / kRows;
    for (std::size_t done = 0; done < rows;) {
        Band bands[kBands];
        std::size_t num_bands = 0;
        for (float* own = scores + kRows * kChunk; num_bands < kBands && bands_left > 0; ++num_bands, --bands_left) {
            Band& band = bands[num_bands];
            band.first = done;
            band.size = (rows - done + bands_left - 1) / bands_left;
            band.queries = own;
            band.sums = own + kRows * head_dim;
            band.folded = own + 2 * kRows * head_dim;
            own += 3 * kRows * head_dim;
            done += band.size;
        }
        with_element(task.cache->layout.format,
                     [&](auto element) { attend_bands<decltype(element)>(task, bands, num_bands, scores); });
    }
}

inline void merge(const float* const* partial_outs, const Partial* const* partials, std::size_t parts,
                  std::size_t head_dim, float* out) {
    Vec greatest = broadcast(partials[0]->greatest), total = broadcast(partials[0]->sum);
    for (std::size_t d = 0; d < head_dim; d += kLanes16) {
        store(out + d, load(partial_outs[0] + d));
    }
    for (std::size_t part = 1; part < parts; ++part) {
        const Fold fold = fold_of(greatest, broadcast(partials[part]->greatest));
        greatest = fold.greatest;
        total = put_together(total, fold.before, broadcast(partials[part]->sum), fold.after);
        for (std::size_t d = 0; d < head_dim; d += kLanes16) {
            store(out + d, put_together(load(out + d), fold.before, load(partial_outs[part] + d), fold.after));
        }
    }
    for (std::size_t d = 0; d < head_dim; d += kLanes16) {
        store(out + d, load(out + d) * (broadcast(1) / total));
    }
}

constexpr AttentionFunctions kAttentionFunctions{attention_scratch_bytes, store_key_and_value, attend, merge};

}  // namespace
}  // namespace rbee::kernels
