// Which rows attend to what in a step: pieces of attention in chunks of about the same cost.
//
// Owns the division, which is the same for all layers but for those with a window. Does not know weights, memory or
// threads.

#pragma once

#include <cstddef>
#include <vector>

#include "rbee_kernels/attention_task.h"
#include "rbee_kernels/decoder.h"

namespace rbee::kernels {

/// Some of a sequence's rows in a step, with the heads of one kv head.
struct AttentionPiece {
    static constexpr std::size_t kWhole = ~std::size_t{0};

    std::size_t sequence;
    std::size_t kv_head;
    std::size_t first_row;
    std::size_t num_rows;
    std::size_t begin;  // of the positions, and their end
    std::size_t end;
    std::size_t place;  // of its first row in its part, among all rows that are put together, or kWhole
};

/// Rows whose parts are put together: row first_row + i has the place first_place + part * num_rows + i in each.
struct AttentionMerge {
    std::size_t first_row;
    std::size_t num_rows;
    std::size_t first_place;
    std::size_t parts;
};

class AttentionPlan {
public:
    AttentionPlan(const CacheLayout& layout, std::size_t heads_per_kv, std::size_t threads)
        : layout_(layout), heads_per_kv_(heads_per_kv), threads_(threads) {}

    /// Makes the plan of a step, in place of the one before.
    void make(const Step& step);

    /// Threads share the parts of a context that would keep one of them busy while others have nothing left to do; in
    /// layers that see all of it.
    bool splits(const Layer& layer) const { return !merges_.empty() && layer.window == 0; }
    std::size_t num_chunks(const Layer& layer) const { return chunks(layer).starts.size() - 1; }
    const std::vector<AttentionMerge>& merges() const { return merges_; }
    /// How many places there are.
    std::size_t num_places() const { return num_places_; }

    template <typename Function>
    void for_each_piece(const Layer& layer, std::size_t chunk, Function&& function) const {
        const Chunks& all = chunks(layer);
        for (std::size_t i = all.starts[chunk]; i < all.starts[chunk + 1]; ++i) {
            function(all.pieces[i]);
        }
    }

private:
    /// Chunk i is the pieces [starts[i], starts[i + 1]).
    struct Chunks {
        std::vector<AttentionPiece> pieces;
        std::vector<std::size_t> starts;
    };

    const Chunks& chunks(const Layer& layer) const { return splits(layer) ? split_ : whole_; }
    std::size_t parts_of(const AttentionPiece& piece, double total_ns) const;
    void add(const AttentionPiece& piece, std::size_t parts);
    void divide(Chunks& chunks) const;
    double cost_ns(const AttentionPiece& piece) const;

    CacheLayout layout_;
    std::size_t heads_per_kv_;
    std::size_t threads_;
    Chunks whole_, split_;
    std::vector<AttentionMerge> merges_;
    std::size_t num_places_ = 0;
};

}  // namespace rbee::kernels
