// Random sequences for attention: their shapes, their numbers, and a cache that holds them.
//
// Owns which shapes and values are tried, and what a place of the cache holds that was not written. Does not know what
// attention makes of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "rbee_kernels/instruction_sets.h"

#include "cache_numbers.h"
#include "check.h"

namespace rbee::kernels::test {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Both included.
inline std::size_t between(Random& random, std::size_t least, std::size_t greatest) {
    return least + random.below(static_cast<std::uint32_t>(greatest - least + 1));
}

inline float normal(Random& random) {
    float sum = 0;
    for (int i = 0; i < 12; ++i) {
        sum += static_cast<float>(random.below(1U << 20U)) * 0x1p-20F;
    }
    return sum - 6;
}

// All but kNormal have scores that are exact in every order of summation, so that only weights and sums have errors.
enum class Kind {
    kNormal,
    kEqual,     // all keys are the same
    kHuge,      // scores from -10,240 to 10,240, of which the greatest are close together
    kHopeless,  // scores down to -1e30
};

struct Shape {
    CacheLayout layout;
    std::size_t heads_per_kv;
    std::size_t num_queries;
    std::size_t first_position;
    std::size_t window;
    Kind kind;

    std::size_t context() const { return first_position + num_queries; }
    std::size_t token() const { return layout.num_kv_heads * layout.head_dim; }
    std::size_t query() const { return token() * heads_per_kv; }
    std::size_t first_seen(std::size_t query_index) const {
        const std::size_t end = first_position + query_index + 1;
        return window != 0 && window < end ? end - window : 0;
    }
};

inline Shape random_shape(Random& random) {
    Shape shape{};
    shape.layout.block_size = one_of<std::size_t>(random, {1, 7, 16, 16, 32, 48});
    shape.layout.num_kv_heads = between(random, 1, 3);
    shape.layout.head_dim = one_of<std::size_t>(random, {16, 32, 48, 64, 64, 80, 96, 112, 128, 256});
    shape.layout.format = one_of(random, {CacheFormat::kF32, CacheFormat::kF16, CacheFormat::kQ8});
    shape.heads_per_kv = between(random, 1, 8);
    shape.num_queries = random.below(3) == 0 ? 1 : between(random, 1, 70);
    const std::size_t cost = shape.num_queries * shape.query();  // the reference is slow
    const std::size_t longest = std::min<std::size_t>(1200, 2'000'000 / cost);
    shape.first_position = longest > shape.num_queries ? between(random, 0, longest - shape.num_queries) : 0;
    if (random.below(2) == 0) {
        shape.window = one_of<std::size_t>(random, {1, 2, 15, 16, 17, 33, 100, 300, 5000});
    }
    shape.kind = one_of(random, {Kind::kNormal, Kind::kNormal, Kind::kEqual, Kind::kHuge, Kind::kHopeless});
    if (shape.layout.format == CacheFormat::kQ8 && shape.kind != Kind::kEqual) {
        shape.kind = Kind::kNormal;  // in 8 bits the scores of the others are not exact
    }
    return shape;
}

/// Numbers of a sequence: of each position and kv head a key and a value, and the queries of the last positions.
struct Sequence {
    Shape shape;
    float scale;
    std::vector<float> keys, values;  // [context][num_kv_heads][head_dim]
    std::vector<float> queries;       // [num_queries][num_kv_heads][heads_per_kv][head_dim]

    Sequence(const Shape& of, Random& random) : shape(of) {
        const std::size_t head_dim = shape.layout.head_dim;
        scale = shape.kind == Kind::kNormal ? 1 / std::sqrt(static_cast<float>(head_dim)) : 0.25F;
        for (std::size_t i = 0; i < shape.context() * shape.token(); ++i) {
            keys.push_back(key(random, i / shape.token(), i % head_dim));
            values.push_back(normal(random) + 1);
        }
        for (std::size_t i = 0; i < shape.num_queries * shape.query(); ++i) {
            queries.push_back(query(random, i % head_dim));
        }
    }

    const float* key_at(std::size_t position, std::size_t kv_head) const {
        return keys.data() + position * shape.token() + kv_head * shape.layout.head_dim;
    }
    const float* value_at(std::size_t position, std::size_t kv_head) const {
        return values.data() + position * shape.token() + kv_head * shape.layout.head_dim;
    }
    /// As the cache has them.
    std::vector<double> held_keys() const { return held(keys, shape.layout.format, shape.layout.head_dim, kScaleDims); }
    std::vector<double> held_values() const {
        return held(values, shape.layout.format, shape.layout.head_dim, shape.layout.head_dim);
    }

private:
    float key(Random& random, std::size_t position, std::size_t d) const {
        switch (shape.kind) {
            case Kind::kNormal: return normal(random);
            case Kind::kEqual: return static_cast<float>(d % 5) - 2;
            case Kind::kHuge:
                return d == 0   ? static_cast<float>(position % 11) - 5
                       : d == 1 ? static_cast<float>(random.below(64))
                                : 0;
            case Kind::kHopeless:
                return d == 0 ? -static_cast<float>(position % 3) : d == 1 ? static_cast<float>(random.below(4)) : 0;
        }
        return 0;
    }
    float query(Random& random, std::size_t d) const {
        switch (shape.kind) {
            case Kind::kNormal: return 3 * normal(random);
            case Kind::kEqual: return static_cast<float>(random.below(17)) - 8;
            case Kind::kHuge: return d == 0 ? one_of(random, {8192.0F, -8192.0F, 4096.0F}) : d == 1 ? 0.25F : 0;
            case Kind::kHopeless: return d == 0 ? 0x1p100F : d == 1 ? 1.0F : 0;
        }
        return 0;
    }
};

/// A cache in memory of exactly its size with a sequence in scattered blocks. What was not written is NaN, and so is
/// what was written before the given position.
class Cache {
public:
    Cache(const InstructionSet& set, const Sequence& sequence, std::size_t first, Random random) {
        const Shape& shape = sequence.shape;
        const CacheLayout& layout = shape.layout;
        const std::size_t used = (shape.context() + layout.block_size - 1) / layout.block_size;
        const std::size_t blocks = used + 3;
        keys_ = all_nan(blocks * layout.key_block() * layout.element_bytes(), layout.format);
        values_ = all_nan(blocks * layout.value_block() * layout.element_bytes(), layout.format);
        layer = {layout, keys_.get(), values_.get()};
        table.resize(blocks);
        std::iota(table.begin(), table.end(), 0);
        for (std::size_t i = blocks; i > 1; --i) {
            std::swap(table[i - 1], table[random.below(static_cast<std::uint32_t>(i))]);
        }
        table.resize(used);
        table.shrink_to_fit();
        for (std::size_t position = first; position < shape.context(); ++position) {
            set.attention.store(layer, slot(position), sequence.key_at(position, 0), sequence.value_at(position, 0));
        }
        // Of blocks that are all before it not even the place is known.
        std::fill_n(table.begin(), first / layout.block_size, std::int64_t{1} << 40);
    }

    std::int64_t slot(std::size_t position) const {
        const std::size_t size = layer.layout.block_size;
        return table[position / size] * static_cast<std::int64_t>(size) + static_cast<std::int64_t>(position % size);
    }

    LayerCache layer{};
    std::vector<std::int64_t> table;

private:
    /// Of numbers in 8 bits all scales are.
    static std::unique_ptr<std::uint8_t[]> all_nan(std::size_t bytes, CacheFormat format) {
        std::unique_ptr<std::uint8_t[]> memory(new std::uint8_t[bytes]);
        const std::uint32_t nan = format == CacheFormat::kF32 ? 0x7FC00000U : 0x7E007E00U;
        for (std::size_t i = 0; i < bytes; i += sizeof nan) {  // every place has a multiple of 16 elements
            std::memcpy(memory.get() + i, &nan, sizeof nan);
        }
        return memory;
    }
    std::unique_ptr<std::uint8_t[]> keys_, values_;
};

}  // namespace rbee::kernels::test
