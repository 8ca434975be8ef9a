// The model against a small decoder in double precision, with every instruction set of this machine: shapes that are no
// multiples of anything, every norm, bias and window, all formats in a layer; mixed steps on scattered blocks.
//
// Before anything is computed, a token whose embedding is NaN is written to every slot of the cache. So whatever reads
// what its own sequence has not written shows. And each sequence is computed twice, in chunks beside others by one
// thread, and alone in steps of a token or two by several: that must make no difference in a single bit.

#include <cmath>
#include <cstring>
#include <vector>

#include "rbee_kernels/model.h"

#include "check.h"
#include "model_reference.h"
#include "model_steps.h"
#include "model_weights.h"

using namespace rbee::kernels;
using namespace rbee::kernels::test;

namespace {

// Of the root mean square of logits or hidden states. Exactly: what adding floats in another order makes, with room for steep softmaxes.
// Otherwise the reference rounds activations and cache too, but of values that differ by so much, so that now and then
// one becomes the next quant. A head, panel or row that is not where it belongs makes more than 1.
constexpr double kExactTolerance = 5e-5;
constexpr double kRoundedTolerance = 0.2;

/// NaN where the reference is, and else as near as `tolerance` times its root mean square.
void check_near(const std::vector<float>& row, const Row& reference, double tolerance) {
    double squares = 0;
    for (const double value : reference) {
        squares += std::isnan(value) ? 0 : value * value;
    }
    const double allowed = tolerance * std::sqrt(squares / static_cast<double>(reference.size()));
    for (std::size_t i = 0; i < reference.size(); ++i) {
        const double error = std::fabs(double{row[i]} - reference[i]);
        CHECK(std::isnan(reference[i]) ? std::isnan(row[i]) : error <= allowed);
    }
}

/// Each near the reference, unless it was not needed, and the same bits in both.
void check_rows(const std::vector<float>& a, const std::vector<float>& b, const Row& reference, double tolerance) {
    for (const std::vector<float>* row : {&a, &b}) {
        if (!row->empty()) {
            check_near(*row, reference, tolerance);
        }
    }
    if (!a.empty() && !b.empty() && !std::isnan(reference[0])) {
        CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    }
}

void check_model(const Options& options, std::uint64_t seed) {
    Random random{seed};
    const TestWeights weights(options, random);
    std::vector<Tokens> sequences;
    for (const std::size_t length : options.lengths) {
        Tokens& tokens = sequences.emplace_back(length);
        for (std::int64_t& token : tokens) {
            token = random.below(static_cast<std::uint32_t>(weights.nan_token));
        }
    }
    // A sequence whose logits are NaN must not change the others.
    sequences.push_back(Tokens(3, static_cast<std::int64_t>(weights.nan_token)));
    const std::pair<bool, CacheFormat> precisions[] = {
        {true, CacheFormat::kF32}, {false, CacheFormat::kF16}, {false, CacheFormat::kQ8}};
    for (const auto& [exact, cache] : precisions) {
        const Reference reference(options.shape, weights.weights, exact, cache);
        std::vector<std::vector<Row>> hidden, expected;
        for (const Tokens& tokens : sequences) {
            hidden.push_back(reference.hidden(tokens));
            expected.push_back(reference.logits(hidden.back()));
        }
        for (const char* name : {"portable", "avx2", "avx512"}) {
            const InstructionSet* set = find_instruction_set(name);
            if (set == nullptr) {
                continue;
            }
            const Results chunks =
                computed(options, weights, exact, cache, *set, 1, sequences, SIZE_MAX, SIZE_MAX, random);
            const Results single =
                computed(options, weights, exact, cache, *set, options.threads, sequences, 2, 1, random);
            for (std::size_t s = 0; s < sequences.size(); ++s) {
                for (std::size_t t = 0; t < sequences[s].size(); ++t) {
                    const double tolerance = exact ? kExactTolerance : kRoundedTolerance;
                    check_rows(chunks.logits[s][t], single.logits[s][t], expected[s][t], tolerance);
                    check_rows(chunks.hidden[s][t], single.hidden[s][t], hidden[s][t], tolerance);
                }
                CHECK(!chunks.logits[s].back().empty() && !single.logits[s].back().empty());
            }
        }
    }
}

/// vocab, hidden, intermediate, heads, kv heads, head_dim.
ModelShape shape_of(std::size_t vocab, std::size_t hidden, std::size_t mlp, std::size_t heads, std::size_t kv_heads,
                    std::size_t head_dim) {
    return {vocab,
            hidden,
            mlp,
            heads,
            kv_heads,
            head_dim,
            1e-5F,
            Activation::kSilu,
            1 / std::sqrt(static_cast<float>(head_dim)),
            1.0F};
}

void shapes_of_floats_need_no_multiples() {
    Options options;
    options.shape = shape_of(211, 72, 72, 3, 1, 16);
    options.windows = {0, 0};
    options.block_size = 16;
    options.lengths = {1, 9, 20};
    check_model(options, 1);

    options.shape = shape_of(16, 100, 33, 3, 3, 80);
    options.block_size = 3;
    options.biases = options.interleaved = true;
    options.lengths = {10, 4};
    check_model(options, 2);

    options.shape = shape_of(3, 20, 1, 2, 1, 256);
    options.block_size = 7;
    options.biases = options.interleaved = false;
    options.tied = true;
    options.lengths = {9, 8, 2, 1};
    options.threads = 7;
    check_model(options, 3);
}

void a_layer_mixes_formats() {
    Options options;
    options.quantized = true;
    for (std::uint64_t seed = 10; seed < 13; ++seed) {
        options.shape = shape_of(seed % 2 != 0 ? 211 : 64, 64,
                                 seed % 3 == 0   ? 72
                                 : seed % 3 == 1 ? 96
                                                 : 256,
                                 4, 2, seed % 2 != 0 ? 48 : 32);
        options.windows = {0, 0};
        options.block_size = 5 + seed;
        options.biases = seed % 2 == 0;
        options.head_norms = seed % 3 == 0;
        options.tied = seed % 4 == 0;
        options.interleaved = seed % 2 != 0;
        options.lengths = {12, 5, 2};
        check_model(options, seed);
    }
}

void many_heads_share_one() {
    Options options;
    options.quantized = true;
    options.head_norms = true;
    options.shape = shape_of(17, 32, 40, 16, 1, 16);
    options.windows = {0, 6};
    options.block_size = 24;
    options.lengths = {20, 5};
    check_model(options, 20);
    options.shape = shape_of(33, 32, 32, 5, 1, 96);
    options.block_size = 64;
    options.lengths = {7, 5};
    check_model(options, 21);
}

void norms_behind_both_halves() {
    Options options;
    options.post_norms = options.head_norms = true;
    for (std::uint64_t seed = 30; seed < 33; ++seed) {
        options.quantized = seed != 30;
        options.shape = shape_of(100, 96, 32 + 8 * (seed % 2), 1, 1, 128);
        options.shape.activation = Activation::kGeluTanh;
        options.shape.embedding_scale = 9.8F;
        options.windows = seed == 32 ? std::vector<std::size_t>{3} : std::vector<std::size_t>{5, 0, 1};
        options.block_size = seed - 29;
        options.biases = options.tied = seed == 31;
        options.lengths = {13, 2, 7};
        check_model(options, seed);
    }
}

/// Of the whole model: factors of residuals, logits and late queries, no gates, heads that are turned in part or not.
void factors_and_parts_of_heads() {
    Options options;
    for (std::uint64_t seed = 60; seed < 64; ++seed) {
        options.quantized = seed % 2 != 0;
        options.shape = shape_of(50, 64, seed % 2 != 0 ? 96 : 72, 4, 2, 48);
        options.shape.activation = seed < 62 ? Activation::kRelu2 : Activation::kSilu;
        options.shape.residual_scale = 0.4F;
        options.shape.logit_scale = 1.7F;
        options.shape.query_growth = 0.3F;
        options.shape.query_length = 4;
        options.gated = seed % 3 == 0;
        options.turned = seed % 2 != 0 ? 2 : 3;
        options.unturned_windows = seed > 61;
        options.biases = seed == 61;
        options.head_norms = seed == 62;
        options.windows = {6, 0};
        options.block_size = 5;
        options.lengths = {21, 3};
        check_model(options, seed);
    }
}

/// A tile for each position: contexts have several parts, which threads share.
void long_contexts_are_put_together() {
    Options options;
    options.quantized = true;
    options.shape = shape_of(40, 32, 64, 2, 1, 16);
    options.windows = {0, 40, 0};
    options.block_size = 1;
    options.lengths = {80};
    check_model(options, 40);
    options.lengths = {70, 20};
    options.block_size = 2;
    check_model(options, 41);
}

/// More rows than a product takes at once, whose last panel is not whole.
void steps_of_many_tokens() {
    Options options;
    options.quantized = true;
    options.interleaved = true;
    options.shape = shape_of(45, 32, 72, 2, 2, 16);
    options.windows = {0};
    options.block_size = 16;
    options.lengths = {140, 20};
    check_model(options, 50);
    options.shape.hidden_size = 40;
    options.post_norms = true;
    check_model(options, 51);
}

}  // namespace

extern const Test kModelTests[];
const Test kModelTests[] = {
    {"model: shapes of floats need no multiples", shapes_of_floats_need_no_multiples},
    {"model: a layer mixes formats", a_layer_mixes_formats},
    {"model: many heads share one", many_heads_share_one},
    {"model: norms behind both halves", norms_behind_both_halves},
    {"model: factors and parts of heads", factors_and_parts_of_heads},
    {"model: long contexts are put together", long_contexts_are_put_together},
    {"model: steps of many tokens", steps_of_many_tokens},
    {nullptr, nullptr},
};
