// The task of attention, and how keys and values lie in memory.
//
// Owns the layout of the paged cache and the task's description. Does not know models; `attention.h` computes.
//
// The cache of a layer has a place per block and kv head. Keys lie there in tiles of 16 positions,
// [tile][head_dim][16], so that a query's products with 16 keys are 16 lanes; values lie as they come,
// [position][head_dim]. The last tile of a block whose size is no multiple of 16 has lanes that belong to no key.
// (Paged: Kwon et al., SOSP 2023.)
//
// In 8 bits, keys and values are signed bytes times binary16 scales: of a key one per 32 dimensions, of a value one.
// Keys differ much more between dimensions than values do (KIVI: Liu et al., 2024). Behind the keys of a tile are its
// scales, [head_dim / 32, rounded up][16]; behind the values of a place are theirs, [tile][16].
//
// Nothing is read as a number that the sequence has not written itself: what is left in a freed block may be NaN, and
// NaN times a weight of zero is NaN. Lanes of masked keys are computed with, each by itself, and their scores are then
// replaced; values of such positions are not touched.

#pragma once

#include <cstddef>
#include <cstdint>

#include "rbee_kernels/weights.h"

namespace rbee::kernels {

/// A context is attended to in parts of so many tiles, each by itself, and then they are put together, always in the
/// same way: so that it makes no difference, not in a single bit, whether threads share the parts.
constexpr std::size_t kPartTiles = 32;

/// What keys and values are held in.
enum class CacheFormat : std::uint32_t { kF32, kF16, kQ8 };

/// Dimensions of a key that have a scale in kQ8.
constexpr std::size_t kScaleDims = 32;

/// Sizes in elements, which are floats, binary16 numbers or bytes. head_dim is a multiple of 16.
struct CacheLayout {
    std::size_t block_size;
    std::size_t num_kv_heads;
    std::size_t head_dim;
    CacheFormat format = CacheFormat::kF16;
    std::size_t block_stride = 0;  // from a block of this layer to the next, of keys as of values; 0: without gaps

    std::size_t element_bytes() const { return format == CacheFormat::kF32 ? 4 : format == CacheFormat::kF16 ? 2 : 1; }
    std::size_t tiles() const { return (block_size + 15) / 16; }
    /// Tiles of a sequence are counted through its blocks.
    std::size_t tile_of(std::size_t position) const {
        return position / block_size * tiles() + position % block_size / 16;
    }
    std::size_t first_position_of(std::size_t tile) const { return tile / tiles() * block_size + tile % tiles() * 16; }
    std::size_t key_tile() const {
        const std::size_t scales = format == CacheFormat::kQ8 ? (head_dim + kScaleDims - 1) / kScaleDims : 0;
        return 16 * (head_dim + scales * sizeof(Half));
    }
    std::size_t key_place() const { return tiles() * key_tile(); }
    std::size_t value_place() const {
        return block_size * head_dim + (format == CacheFormat::kQ8 ? tiles() * 16 * sizeof(Half) : 0);
    }
    std::size_t key_block() const { return block_stride != 0 ? block_stride : num_kv_heads * key_place(); }
    std::size_t value_block() const { return block_stride != 0 ? block_stride : num_kv_heads * value_place(); }
};

/// Keys [num_blocks][num_kv_heads][key_place], values likewise.
struct LayerCache {
    CacheLayout layout;
    void* keys;
    void* values;
};

/// Consecutive tokens of one sequence attend with the query heads that share one kv head. Query r is at position
/// first_position + r and sees the positions up to its own, at most `window` of them if that is not 0.
struct AttentionTask {
    const LayerCache* cache;
    const std::int64_t* block_table;  // of the sequence
    std::size_t kv_head;
    std::size_t heads_per_kv;
    std::size_t num_queries;
    std::size_t first_position;
    std::size_t window;
    float scale;
    const float* queries;      // of the first token's first head here: [num_queries] rows query_stride apart, each
    std::size_t query_stride;  // [heads_per_kv][head_dim]
    float* out;                // as the queries
    std::size_t out_stride;
    // For one part of a long context: only the positions [begin, end) count, out gets sums that are not divided yet,
    // and `partial` [num_queries][heads_per_kv] what it takes to put the parts together. Null: everything, divided.
    struct Partial* partial;
    std::size_t begin;
    std::size_t end;
};

/// The greatest score of a row (times log2 e, or not: it is only compared with those of the same row) and the sum of
/// the weights relative to it. A part without any visible position has greatest = -infinity and sum = 0, and zeros in
/// out.
struct Partial {
    float greatest;
    float sum;
};

struct AttentionFunctions {
    /// Bytes of scratch memory that `attend` needs for any task with so many heads.
    std::size_t (*scratch_bytes)(const CacheLayout& layout, std::size_t heads_per_kv);
    /// Writes a token's key and value ([num_kv_heads][head_dim] each) into slot block * block_size + offset.
    void (*store)(const LayerCache& cache, std::int64_t slot, const float* key, const float* value);
    void (*attend)(const AttentionTask& task, void* scratch);
    /// Puts all parts of one row together, the first one first: out[head_dim], partial_outs[part] and partials[part].
    void (*merge)(const float* const* partial_outs, const Partial* const* partials, std::size_t parts,
                  std::size_t head_dim, float* out);
};

}  // namespace rbee::kernels
