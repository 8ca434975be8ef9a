// Attention against a reference in double precision, with every instruction set that this machine has: whatever the
// blocks, heads, queries, windows and values; in parts; and with NaN in everything that the sequence has not written.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "check.h"
#include "rbee_kernels/instruction_sets.h"

namespace {

using namespace rbee::kernels;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<const InstructionSet*> sets() {
    std::vector<const InstructionSet*> found;
    for (const char* name : {"portable", "avx2", "avx512"}) {
        if (const InstructionSet* set = find_instruction_set(name)) {
            found.push_back(set);
        }
    }
    return found;
}

/// Both included.
std::size_t between(Random& random, std::size_t least, std::size_t greatest) {
    return least + random.below(static_cast<std::uint32_t>(greatest - least + 1));
}

template <typename T>
T one_of(Random& random, std::initializer_list<T> values) {
    return values.begin()[random.below(static_cast<std::uint32_t>(values.size()))];
}

float normal(Random& random) {
    float sum = 0;
    for (int i = 0; i < 12; ++i) {
        sum += static_cast<float>(random.below(1U << 20U)) * 0x1p-20F;
    }
    return sum - 6;
}

/// The nearest binary16, of two the even one, if that is finite.
float rounded_to_half(float value) {
    int exponent = 0;
    std::frexp(value, &exponent);
    const float unit = std::ldexp(1.0F, std::max(exponent, -13) - 11);
    return std::nearbyint(value / unit) * unit;
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
    bool exact;
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

Shape random_shape(Random& random) {
    Shape shape{};
    shape.layout.block_size = one_of<std::size_t>(random, {1, 7, 16, 16, 32, 48});
    shape.layout.num_kv_heads = between(random, 1, 3);
    shape.layout.head_dim = one_of<std::size_t>(random, {16, 32, 48, 64, 64, 80, 96, 112, 128, 256});
    shape.exact = random.below(2) == 0;
    shape.heads_per_kv = between(random, 1, 8);
    shape.num_queries = random.below(3) == 0 ? 1 : between(random, 1, 70);
    const std::size_t cost = shape.num_queries * shape.query();  // the reference is slow
    const std::size_t longest = std::min<std::size_t>(1200, 2'000'000 / cost);
    shape.first_position = longest > shape.num_queries ? between(random, 0, longest - shape.num_queries) : 0;
    if (random.below(2) == 0) {
        shape.window = one_of<std::size_t>(random, {1, 2, 15, 16, 17, 33, 100, 300, 5000});
    }
    shape.kind = one_of(random, {Kind::kNormal, Kind::kNormal, Kind::kEqual, Kind::kHuge, Kind::kHopeless});
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
    double held(float value) const { return double{shape.exact ? value : rounded_to_half(value)}; }

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
        keys_ = all_nan(blocks * layout.key_block(), shape.exact);
        values_ = all_nan(blocks * layout.value_block(), shape.exact);
        layer = {layout, shape.exact, keys_.get(), values_.get()};
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
    static std::unique_ptr<std::uint8_t[]> all_nan(std::size_t elements, bool exact) {
        const std::size_t bytes = elements * (exact ? sizeof(float) : sizeof(Half));
        std::unique_ptr<std::uint8_t[]> memory(new std::uint8_t[bytes]);
        const std::uint32_t nan = exact ? 0x7FC00000U : 0x7E007E00U;
        for (std::size_t i = 0; i < bytes; i += sizeof nan) {  // every place has a multiple of 16 elements
            std::memcpy(memory.get() + i, &nan, sizeof nan);
        }
        return memory;
    }
    std::unique_ptr<std::uint8_t[]> keys_, values_;
};

/// Queries [from, to) and, if partials are wanted, of the positions only [begin, end).
struct Wanted {
    std::size_t from;
    std::size_t to;
    std::vector<Partial>* partials = nullptr;  // [num_kv_heads][to - from][heads_per_kv]
    std::size_t begin = 0;
    std::size_t end = 0;
};

/// Rows as in Sequence::queries.
std::vector<float> attend(const InstructionSet& set, const Sequence& sequence, const Cache& cache, Wanted wanted) {
    const Shape& shape = sequence.shape;
    const std::size_t count = wanted.to - wanted.from;
    std::vector<float> out(count * shape.query(), 123.0F);
    std::vector<float> scratch(set.attention.scratch_bytes(shape.layout, shape.heads_per_kv) / sizeof(float), kNaN);
    if (wanted.partials != nullptr) {
        wanted.partials->resize(count * shape.layout.num_kv_heads * shape.heads_per_kv);
    }
    for (std::size_t kv_head = 0; kv_head < shape.layout.num_kv_heads; ++kv_head) {
        const std::size_t first = kv_head * shape.heads_per_kv;
        AttentionTask task{};
        task.cache = &cache.layer;
        task.block_table = cache.table.data();
        task.kv_head = kv_head;
        task.heads_per_kv = shape.heads_per_kv;
        task.num_queries = count;
        task.first_position = shape.first_position + wanted.from;
        task.window = shape.window;
        task.scale = sequence.scale;
        task.queries = sequence.queries.data() + wanted.from * shape.query() + first * shape.layout.head_dim;
        task.query_stride = shape.query();
        task.out = out.data() + first * shape.layout.head_dim;
        task.out_stride = shape.query();
        if (wanted.partials != nullptr) {
            task.partial = wanted.partials->data() + first * count;
            task.begin = wanted.begin;
            task.end = wanted.end;
        }
        set.attention.attend(task, scratch.data());
    }
    return out;
}

/// What a number of the result has to be, and how far from it it may be.
struct Expected {
    double value;
    double tolerance;
};

// Errors in half units in the last place of the sum of the magnitudes of what is added up (over 600 shapes the greatest
// is 15, of 1,200 positions), and where scores are not exact, for each 1 that a score's terms add up to in magnitude
// (the greatest is 3). Where all scores are the same, a position more or less is worth thousands of them.
constexpr double kUnit = 0x1p-24;
constexpr double kUnits = 24;
constexpr double kUnitsOfScores = 4;

std::vector<Expected> expected_of(const Sequence& sequence) {
    const Shape& shape = sequence.shape;
    const std::size_t head_dim = shape.layout.head_dim;
    std::vector<double> keys(sequence.keys.size()), values(sequence.values.size());
    std::transform(sequence.keys.begin(), sequence.keys.end(), keys.begin(), [&](float x) { return sequence.held(x); });
    std::transform(sequence.values.begin(), sequence.values.end(), values.begin(),
                   [&](float x) { return sequence.held(x); });
    std::vector<Expected> all;
    std::vector<double> weights(shape.context());
    for (std::size_t row = 0; row < shape.num_queries * shape.layout.num_kv_heads * shape.heads_per_kv; ++row) {
        const std::size_t query_index = row / (shape.layout.num_kv_heads * shape.heads_per_kv);
        const std::size_t place = row / shape.heads_per_kv % shape.layout.num_kv_heads * head_dim;
        const std::size_t from = shape.first_seen(query_index), to = shape.first_position + query_index + 1;
        const float* query = sequence.queries.data() + row * head_dim;
        double greatest = -std::numeric_limits<double>::infinity(), magnitude = 0;
        for (std::size_t position = from; position < to; ++position) {
            double score = 0, terms = 0;
            for (std::size_t d = 0; d < head_dim; ++d) {
                const double term = double{query[d]} * keys[position * shape.token() + place + d];
                score += term;
                terms += std::fabs(term);
            }
            weights[position] = score * double{sequence.scale};
            greatest = std::max(greatest, weights[position]);
            magnitude = std::max(magnitude, terms * double{sequence.scale});
        }
        double total = 0;
        for (std::size_t position = from; position < to; ++position) {
            weights[position] = std::exp(weights[position] - greatest);
            total += weights[position];
        }
        for (std::size_t d = 0; d < head_dim; ++d) {
            double sum = 0, sum_of_magnitudes = 0;
            for (std::size_t position = from; position < to; ++position) {
                const double term = weights[position] / total * values[position * shape.token() + place + d];
                sum += term;
                sum_of_magnitudes += std::fabs(term);
            }
            const double units = kUnits + (shape.kind == Kind::kNormal ? kUnitsOfScores * magnitude : 0);
            all.push_back({sum, units * kUnit * sum_of_magnitudes});
        }
    }
    return all;
}

bool close(const std::vector<float>& out, const std::vector<Expected>& expected) {
    if (out.size() != expected.size()) {
        return false;
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
        if (!(std::fabs(double{out[i]} - expected[i].value) <= expected[i].tolerance)) {
            return false;
        }
    }
    return true;
}

bool same_bits(const float* a, const float* b, std::size_t size) {
    return std::memcmp(a, b, size * sizeof(float)) == 0;
}

std::size_t first_seen(const Shape& shape) { return shape.first_seen(0); }

void tokens_are_stored_where_the_layout_says() {
    Random random{5};
    for (int round = 0; round < 8; ++round) {
        const Shape shape = random_shape(random);
        const Sequence sequence(shape, random);
        const CacheLayout& layout = shape.layout;
        for (const InstructionSet* set : sets()) {
            const Cache cache(*set, sequence, 0, random);
            const auto number = [&](const void* elements, std::size_t i) {
                if (shape.exact) {
                    return double{static_cast<const float*>(elements)[i]};
                }
                const std::uint16_t bits = static_cast<const Half*>(elements)[i].bits;
                const int exponent = bits >> 10U & 31U;
                const double magnitude = exponent == 31 ? double{kNaN}
                                         : exponent > 0 ? std::ldexp(1024 + (bits & 1023U), exponent - 25)
                                                        : std::ldexp(bits & 1023U, -24);
                return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
            };
            for (std::size_t position = 0; position < shape.context(); ++position) {
                const auto block = static_cast<std::size_t>(cache.slot(position)) / layout.block_size;
                const std::size_t offset = position % layout.block_size;
                for (std::size_t i = 0; i < shape.token(); ++i) {
                    const std::size_t head = i / layout.head_dim, d = i % layout.head_dim;
                    const std::size_t at = block * layout.key_block() + head * layout.key_place() +
                                           (offset / 16 * layout.head_dim + d) * 16 + offset % 16;
                    CHECK(number(cache.layer.keys, at) == sequence.held(sequence.key_at(position, head)[d]));
                    const std::size_t to =
                        block * layout.value_block() + head * layout.value_place() + offset * layout.head_dim + d;
                    CHECK(number(cache.layer.values, to) == sequence.held(sequence.value_at(position, head)[d]));
                }
            }
        }
    }
}

void attention_is_what_it_should_be() {
    Random random{7};
    for (int round = 0; round < 25; ++round) {
        const Shape shape = random_shape(random);
        const Sequence sequence(shape, random);
        const std::vector<Expected> expected = expected_of(sequence);
        for (const InstructionSet* set : sets()) {
            const Cache cache(*set, sequence, first_seen(shape), random);
            CHECK(close(attend(*set, sequence, cache, {0, shape.num_queries}), expected));
        }
    }
}

void queries_do_not_depend_on_their_neighbours() {
    // To the bit: a token's numbers are the same in whatever chunks a prompt is computed.
    Random random{8};
    for (int round = 0; round < 16; ++round) {
        const Shape shape = random_shape(random);
        const Sequence sequence(shape, random);
        for (const InstructionSet* set : sets()) {
            const Cache cache(*set, sequence, first_seen(shape), random);
            const std::vector<float> together = attend(*set, sequence, cache, {0, shape.num_queries});
            for (std::size_t from = 0; from < shape.num_queries;) {
                const std::size_t to = between(random, from + 1, shape.num_queries);
                const std::vector<float> out = attend(*set, sequence, cache, {from, to});
                CHECK(same_bits(out.data(), together.data() + from * shape.query(), out.size()));
                from = to;
            }
        }
    }
}

/// Puts the outs and partials of the parts together, row by row.
std::vector<float> merged(const InstructionSet& set, const Shape& shape, std::size_t num_queries,
                          const std::vector<std::vector<float>>& outs,
                          const std::vector<std::vector<Partial>>& partials) {
    const std::size_t head_dim = shape.layout.head_dim;
    std::vector<float> out(num_queries * shape.query());
    for (std::size_t row = 0; row < out.size() / head_dim; ++row) {
        const std::size_t head = row % shape.heads_per_kv;
        const std::size_t kv_head = row / shape.heads_per_kv % shape.layout.num_kv_heads;
        const std::size_t query = row / shape.heads_per_kv / shape.layout.num_kv_heads;
        std::vector<const float*> rows;
        std::vector<const Partial*> states;
        for (std::size_t part = 0; part < outs.size(); ++part) {
            rows.push_back(outs[part].data() + row * head_dim);
            states.push_back(&partials[part][(kv_head * num_queries + query) * shape.heads_per_kv + head]);
        }
        set.attention.merge(rows.data(), states.data(), rows.size(), head_dim, out.data() + row * head_dim);
    }
    return out;
}

void parts_make_the_whole() {
    Random random{9};
    for (int round = 0; round < 16; ++round) {
        const Shape shape = random_shape(random);
        const Sequence sequence(shape, random);
        const std::vector<Expected> expected = expected_of(sequence);
        std::vector<std::size_t> bounds{0, shape.context() + between(random, 0, 40)};
        for (std::size_t i = between(random, 0, 6); i > 0; --i) {
            bounds.push_back(between(random, 0, bounds[1]));  // some parts are empty, or visible to no row
        }
        std::sort(bounds.begin(), bounds.end());
        for (const InstructionSet* set : sets()) {
            const Cache cache(*set, sequence, first_seen(shape), random);
            std::vector<std::vector<float>> outs;
            std::vector<std::vector<Partial>> partials(bounds.size() - 1);
            for (std::size_t part = 0; part + 1 < bounds.size(); ++part) {
                outs.push_back(attend(*set, sequence, cache,
                                      {0, shape.num_queries, &partials[part], bounds[part], bounds[part + 1]}));
            }
            CHECK(close(merged(*set, shape, shape.num_queries, outs, partials), expected));
        }
    }
}

/// The threads may share a long context: that must not show in a single bit.
void parts_of_fixed_size_make_the_same_whole() {
    Random random{12};
    for (std::uint32_t round = repeats(10, 3); round != 0; --round) {
        Shape shape = random_shape(random);
        shape.window = 0;
        shape.first_position = between(random, 0, 1600);
        const Sequence sequence(shape, random);
        for (const InstructionSet* set : sets()) {
            const Cache cache(*set, sequence, first_seen(shape), random);
            std::vector<std::vector<float>> outs;
            std::vector<std::vector<Partial>> partials(shape.layout.tile_of(shape.context() - 1) / kPartTiles + 1);
            for (std::size_t part = 0; part < partials.size(); ++part) {
                outs.push_back(
                    attend(*set, sequence, cache,
                           {0, shape.num_queries, &partials[part], shape.layout.first_position_of(part * kPartTiles),
                            shape.layout.first_position_of((part + 1) * kPartTiles)}));
            }
            const std::vector<float> whole = attend(*set, sequence, cache, {0, shape.num_queries});
            CHECK(same_bits(merged(*set, shape, shape.num_queries, outs, partials).data(), whole.data(), whole.size()));
        }
    }
}

void a_part_that_is_not_seen_counts_for_nothing() {
    Random random{10};
    Shape shape{{16, 2, 64}, false, 3, 20, 100, 30, Kind::kNormal};
    const Sequence sequence(shape, random);
    for (const InstructionSet* set : sets()) {
        const Cache cache(*set, sequence, first_seen(shape), random);
        std::vector<Partial> partials;
        const std::vector<float> out = attend(*set, sequence, cache, {0, 20, &partials, 110, 120});
        for (std::size_t row = 0; row < partials.size(); ++row) {
            const std::size_t query = row / 3 % 20, kv_head = row / 60, head = row % 3;
            const float* sums = out.data() + query * shape.query() + (kv_head * 3 + head) * 64;
            if (query < 10) {
                CHECK(partials[row].sum == 0 && partials[row].greatest == -std::numeric_limits<float>::infinity());
                CHECK(std::all_of(sums, sums + 64, [](float x) { return x == 0; }));
            } else {
                CHECK(partials[row].sum >= 1 && std::isfinite(partials[row].greatest));
            }
        }
    }
}

void nan_stays_with_those_who_see_it() {
    Random random{11};
    for (int round = 0; round < 10; ++round) {
        Shape shape = random_shape(random);
        shape.kind = Kind::kNormal;
        const Sequence healthy(shape, random);
        const std::size_t head_dim = shape.layout.head_dim;
        const std::size_t kv_head = between(random, 0, shape.layout.num_kv_heads - 1);
        const std::size_t position = between(random, shape.first_seen(shape.num_queries - 1), shape.context() - 1);
        const std::size_t dim = between(random, 0, head_dim - 1);
        const std::size_t bad_row = between(random, 0, healthy.queries.size() / head_dim - 1);
        Sequence query = healthy, key = healthy, value = healthy;
        query.queries[bad_row * head_dim + dim] = kNaN;
        key.keys[position * shape.token() + kv_head * head_dim + dim] = kNaN;
        value.values[position * shape.token() + kv_head * head_dim + dim] = kNaN;
        for (const InstructionSet* set : sets()) {
            const std::vector<float> good =
                attend(*set, healthy, Cache(*set, healthy, first_seen(shape), random), {0, shape.num_queries});
            const auto out_of = [&](const Sequence& sequence) {
                const Cache cache(*set, sequence, first_seen(shape), random);
                std::vector<float> whole = attend(*set, sequence, cache, {0, shape.num_queries});
                std::vector<std::vector<Partial>> partials(2);
                const std::vector<std::vector<float>> outs{
                    attend(*set, sequence, cache, {0, shape.num_queries, &partials[0], 0, position + 1}),
                    attend(*set, sequence, cache, {0, shape.num_queries, &partials[1], position + 1, 9999})};
                const std::vector<float> parts = merged(*set, shape, shape.num_queries, outs, partials);
                for (std::size_t i = 0; i < whole.size(); ++i) {
                    CHECK(std::isnan(whole[i]) == std::isnan(parts[i]));
                }
                return whole;
            };
            const std::vector<float> of_query = out_of(query), of_key = out_of(key), of_value = out_of(value);
            for (std::size_t i = 0; i < good.size(); ++i) {
                const std::size_t query_index = i / shape.query();
                const bool same_head = i % shape.query() / (head_dim * shape.heads_per_kv) == kv_head;
                const bool sees = shape.first_seen(query_index) <= position &&
                                  position <= shape.first_position + query_index && same_head;
                CHECK(i / head_dim == bad_row ? std::isnan(of_query[i]) : of_query[i] == good[i]);
                CHECK(sees ? std::isnan(of_key[i]) : of_key[i] == good[i]);
                if (!same_head || i % head_dim != dim) {
                    CHECK(of_value[i] == good[i]);
                } else if (sees) {
                    CHECK(std::isnan(of_value[i]));
                }
            }
        }
    }
}

}  // namespace

extern const Test kAttentionTests[];
const Test kAttentionTests[] = {
    {"attention stores tokens where the layout says", tokens_are_stored_where_the_layout_says},
    {"attention is softmax of scores times values", attention_is_what_it_should_be},
    {"attention of a query does not depend on its neighbours", queries_do_not_depend_on_their_neighbours},
    {"attention in parts makes the whole", parts_make_the_whole},
    {"attention in parts of fixed size makes the same whole, bit for bit", parts_of_fixed_size_make_the_same_whole},
    {"attention of a part that is not seen counts for nothing", a_part_that_is_not_seen_counts_for_nothing},
    {"attention leaves NaN with those who see it", nan_stays_with_those_who_see_it},
    {nullptr, nullptr},
};
