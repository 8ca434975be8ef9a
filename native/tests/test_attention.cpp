// Attention against a reference in double precision, with every instruction set that this machine has: whatever the
// blocks, heads, queries, windows and values; in parts; and with NaN in everything that the sequence has not written.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "rbee_kernels/instruction_sets.h"

#include "attention_reference.h"
#include "attention_sequences.h"
#include "check.h"

namespace {

using namespace rbee::kernels;
using namespace rbee::kernels::test;

std::vector<const InstructionSet*> sets() {
    std::vector<const InstructionSet*> found;
    for (const char* name : {"portable", "avx2", "avx512"}) {
        if (const InstructionSet* set = find_instruction_set(name)) {
            found.push_back(set);
        }
    }
    return found;
}

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

bool same_bits(const float* a, const float* b, std::size_t size) {
    return std::memcmp(a, b, size * sizeof(float)) == 0;
}

std::size_t first_seen(const Shape& shape) { return shape.first_seen(0); }

double number_of(Half half) {
    const int exponent = half.bits >> 10U & 31U;
    const double magnitude = exponent == 31 ? double{kNaN}
                             : exponent > 0 ? std::ldexp(1024 + (half.bits & 1023U), exponent - 25)
                                            : std::ldexp(half.bits & 1023U, -24);
    return (half.bits & 0x8000U) != 0 ? -magnitude : magnitude;
}

/// Element `at` of a place that begins at `place`; a byte times the binary16 number at byte `scale_at`.
double number_in(const CacheLayout& layout, const void* elements, std::size_t place, std::size_t at,
                 std::size_t scale_at) {
    const std::uint8_t* bytes = static_cast<const std::uint8_t*>(elements) + place * layout.element_bytes();
    Half half;
    switch (layout.format) {
        case CacheFormat::kF32: return double{reinterpret_cast<const float*>(bytes)[at]};
        case CacheFormat::kF16: return number_of(reinterpret_cast<const Half*>(bytes)[at]);
        case CacheFormat::kQ8:
            std::memcpy(&half, bytes + scale_at, sizeof half);
            return static_cast<std::int8_t>(bytes[at]) * number_of(half);
    }
    return 0;
}

void tokens_are_stored_where_the_layout_says() {
    Random random{5};
    for (int round = 0; round < 12; ++round) {
        const Shape shape = random_shape(random);
        const Sequence sequence(shape, random);
        const CacheLayout& layout = shape.layout;
        const std::vector<double> keys = sequence.held_keys(), values = sequence.held_values();
        for (const InstructionSet* set : sets()) {
            const Cache cache(*set, sequence, 0, random);
            for (std::size_t i = 0; i < keys.size(); ++i) {
                const std::size_t position = i / shape.token(), offset = position % layout.block_size;
                const auto block = static_cast<std::size_t>(cache.slot(position)) / layout.block_size;
                const std::size_t head = i % shape.token() / layout.head_dim, d = i % layout.head_dim;
                const std::size_t tile =
                    block * layout.key_block() + head * layout.key_place() + offset / 16 * layout.key_tile();
                const std::size_t lane = offset % 16;
                CHECK(number_in(layout, cache.layer.keys, tile, d * 16 + lane,
                                layout.head_dim * 16 + (d / 32 * 16 + lane) * 2) == keys[i]);
                const std::size_t place = block * layout.value_block() + head * layout.value_place();
                CHECK(number_in(layout, cache.layer.values, place, offset * layout.head_dim + d,
                                layout.block_size * layout.head_dim + offset * 2) == values[i]);
            }
        }
    }
}

void a_cache_in_8_bits_takes_little_more_than_half() {
    for (const std::size_t head_dim : {64, 80, 128}) {
        const CacheLayout half{16, 2, head_dim, CacheFormat::kF16}, bytes{16, 2, head_dim, CacheFormat::kQ8};
        const double size = static_cast<double>(bytes.key_block() + bytes.value_block());
        CHECK(size / static_cast<double>(2 * (half.key_block() + half.value_block())) < 0.53);
    }
}

/// A key and a value of one token: what the cache then gives for each number.
std::vector<double> kept(const InstructionSet& set, const std::vector<float>& numbers) {
    const CacheLayout layout{16, 1, numbers.size(), CacheFormat::kQ8};
    std::vector<std::uint8_t> keys(layout.key_block()), values(layout.value_block());
    set.attention.store({layout, keys.data(), values.data()}, 3, numbers.data(), numbers.data());
    std::vector<double> all;
    for (std::size_t d = 0; d < numbers.size(); ++d) {
        all.push_back(number_in(layout, keys.data(), 0, d * 16 + 3, numbers.size() * 16 + (d / 32 * 16 + 3) * 2));
    }
    return all;
}

void eight_bits_hold_what_there_is() {
    const float infinity = std::numeric_limits<float>::infinity();
    for (const InstructionSet* set : sets()) {
        std::vector<float> numbers(64, 0.0F);
        for (const double number : kept(*set, numbers)) {
            CHECK(number == 0);
        }
        numbers[5] = 1e-9F;  // no binary16 scale is so small
        numbers[40] = -127;
        numbers[41] = 126.6F;
        const std::vector<double> small = kept(*set, numbers);
        CHECK(small[5] == 0 && small[40] == -127 && small[41] == 127);
        for (const float bad : {infinity, -infinity, kNaN, 1e38F}) {
            numbers[5] = bad;
            const std::vector<double> spoilt = kept(*set, numbers);
            CHECK(std::isnan(spoilt[5]) && std::isnan(spoilt[0]) && spoilt[40] == -127);
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
    Shape shape{{16, 2, 64}, 3, 20, 100, 30, Kind::kNormal};
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
                // In 8 bits it spoils the scale of all dimensions.
                if (!same_head || (shape.layout.format != CacheFormat::kQ8 && i % head_dim != dim)) {
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
    {"attention's cache in 8 bits takes little more than half", a_cache_in_8_bits_takes_little_more_than_half},
    {"attention's cache in 8 bits holds what there is", eight_bits_hold_what_there_is},
    {"attention is softmax of scores times values", attention_is_what_it_should_be},
    {"attention of a query does not depend on its neighbours", queries_do_not_depend_on_their_neighbours},
    {"attention in parts makes the whole", parts_make_the_whole},
    {"attention in parts of fixed size makes the same whole, bit for bit", parts_of_fixed_size_make_the_same_whole},
    {"attention of a part that is not seen counts for nothing", a_part_that_is_not_seen_counts_for_nothing},
    {"attention leaves NaN with those who see it", nan_stays_with_those_who_see_it},
    {nullptr, nullptr},
};
