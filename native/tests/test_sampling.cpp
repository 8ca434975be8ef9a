// The sampling kernels: portable and AVX2 give the same bits, selection is what a sort would find, and nothing outside
// a row is touched (its arrays end where AddressSanitizer would see it). What the parameters mean is tested from
// Python, beside transformers.

#include <cmath>
#include <memory>
#include <numeric>
#include <thread>

#include "check.h"
#include "rbee_kernels/sampling.h"

namespace {

using namespace rbee::kernels;

float number(Random& random) { return static_cast<float>(random.below(1U << 24U)) * 0x1p-24F; }

/// Memory of exactly this size.
struct Logits {
    explicit Logits(std::size_t length) : values(new float[length]), size(length) {}
    std::unique_ptr<float[]> values;
    std::size_t size;
};

/// Rows of several kinds: like a model's, with many ties, of a huge range, almost all -inf, of denormals, one-hot.
Logits random_logits(Random& random) {
    Logits logits(random.below(4) == 0 ? 1 + random.below(5000) : 1 + random.below(100));
    const std::uint32_t kind = random.below(6);
    for (std::size_t i = 0; i < logits.size; ++i) {
        const float sum = number(random) + number(random) + number(random) + number(random) - 2;
        logits.values[i] = kind == 0   ? 8 * sum
                           : kind == 1 ? static_cast<float>(random.below(5)) / 2
                           : kind == 2 ? sum * std::pow(10.0F, static_cast<float>(random.below(38)))
                           : kind == 3 ? (random.below(4) == 0 ? sum : -kInfinity)
                           : kind == 4 ? sum * 0x1p-140F
                                       : 0;
    }
    logits.values[random.below(static_cast<std::uint32_t>(logits.size))] = kind == 5 ? 90.0F : 0.5F;
    return logits;
}

RowParams random_params(Random& random, std::size_t size) {
    const auto limit = static_cast<std::uint32_t>(size) + 3;  // some are no tokens
    RowParams params;
    params.temperature = one_of(random, {0.0, 0.5, 1.0, 1.0, 2.0, 1e-300, 1e300});
    params.top_k = one_of<std::size_t>(random, {0, 0, 1, 2, 40, 1000});
    params.top_p = one_of(random, {1.0, 1.0, 0.95, 0.5, 0.0});
    params.min_p = one_of(random, {0.0, 0.0, 0.1, 1.0});
    params.typical_p = one_of(random, {1.0, 1.0, 0.9, 0.0});
    params.frequency_penalty = one_of(random, {0.0, 0.0, 0.5, -2.0, 1e300});
    params.presence_penalty = one_of(random, {0.0, 0.0, 0.7, -1e300});
    params.repetition_penalty = one_of(random, {1.0, 1.0, 1.3, 1e-300, 1e300});
    params.min_tokens = random.below(8);
    params.seed = random();
    for (std::uint32_t i = random.below(4); i-- > 0;) {
        params.logit_bias.emplace_back(random.below(limit), one_of(random, {-100.0, 3.0, 1e300, -1e300}));
        params.stop_token_ids.push_back(random.below(limit));
    }
    if (random.below(3) == 0) {
        params.allowed.emplace(1 + random.below(1 + limit / 8));
        for (std::uint8_t& bits : *params.allowed) {
            bits = static_cast<std::uint8_t>(random());
        }
    }
    return params;
}

struct Outcome {
    Choice choice;
    std::vector<double> probabilities;
    float logprob;
    std::vector<std::uint32_t> top_ids;
    std::vector<float> top_logprobs;

    bool operator==(const Outcome& other) const {
        return choice.valid == other.choice.valid && choice.token_id == other.choice.token_id &&
               probabilities == other.probabilities && same(logprob, other.logprob) && top_ids == other.top_ids &&
               std::equal(top_logprobs.begin(), top_logprobs.end(), other.top_logprobs.begin(), same);
    }
    static bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }
};

Outcome outcome_of(Sampler& sampler, const Logits& logits, const RowParams& params, const Context& context,
                   std::size_t count) {
    Outcome outcome{
        {}, std::vector<double>(logits.size), 0, std::vector<std::uint32_t>(count), std::vector<float>(count)};
    outcome.choice = sampler.sample(logits.values.get(), logits.size, params, context);
    sampler.distribution(logits.values.get(), logits.size, params, context, outcome.probabilities.data());
    outcome.logprob = sampler.score(logits.values.get(), logits.size, outcome.choice.token_id, count,
                                    outcome.top_ids.data(), outcome.top_logprobs.data());
    return outcome;
}

void powers_are_accurate() {
    for (const BlockKernels* kernels : {&kPortable, &best_kernels()}) {
        float exponents[kBlock], weights[kBlock];
        for (int round = 0; round < 300; ++round) {
            for (std::size_t i = 0; i < kBlock; ++i) {
                exponents[i] = -static_cast<float>(static_cast<double>(i) + 512.0 * round) / 1218.0F;  // beyond -126
            }
            const double sum = kernels->weigh(exponents, {0, 1}, weights);
            double expected = 0;
            for (std::size_t i = 0; i < kBlock; ++i) {
                const double exact = exponents[i] > kLowestExponent ? std::exp2(double{exponents[i]}) : 0;
                CHECK(std::fabs(double{weights[i]} - exact) <= 2e-7 * exact);
                expected += double{weights[i]};
            }
            CHECK(std::fabs(sum - expected) <= 1e-13 * expected);
        }
        exponents[0] = 0;
        exponents[1] = -kInfinity;
        exponents[2] = kLowestExponent;
        exponents[3] = kLeastWeighed;
        kernels->weigh(exponents, {0, 1}, weights);
        CHECK(weights[0] == 1 && weights[1] == 0 && weights[2] == 0 && weights[3] > 0);
        CHECK(kLeastWeighed == std::nextafter(kLowestExponent, 0.0F));
    }
}

void selection_is_what_a_sort_finds() {
    Random random{11};
    Selection selection;
    for (int round = 0; round < 400; ++round) {
        const std::size_t size = 1 + random.below(round % 4 == 0 ? 3000 : 120);
        std::vector<float> keys(size), weights(size);
        for (std::size_t i = 0; i < size; ++i) {
            // Of all magnitudes, or few different ones. Weights are integers: in every order they have the same sum.
            keys[i] = round % 2 == 0 ? -std::pow(10.0F, -45.0F * number(random)) : -static_cast<float>(random.below(9));
            weights[i] = static_cast<float>(random.below(round % 3 == 0 ? 2 : 1000));
        }
        const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
        std::vector<std::size_t> order(size);
        std::iota(order.begin(), order.end(), 0U);
        std::sort(order.begin(), order.end(), [&keys](std::size_t a, std::size_t b) { return keys[a] > keys[b]; });
        for (const double wanted : {0.0, 1.0, std::floor(0.5 * total), total - 1, total, total + 1}) {
            double reached = 0;
            std::size_t i = 0;
            while (i + 1 < size && (reached += double{weights[order[i]]}) < wanted) {
                ++i;
            }
            CHECK(selection.find(keys.data(), weights.data(), size, wanted) == keys[order[i]]);
        }
    }
}

void machines_agree_whatever_the_row() {
    Random random{5};
    Sampler best(best_kernels()), portable(kPortable);
    int drawn = 0;
    for (int round = 0; round < 3000; ++round) {
        Logits logits = random_logits(random);
        const RowParams params = random_params(random, logits.size);
        std::vector<std::uint32_t> tokens(random.below(30));
        for (std::uint32_t& token : tokens) {
            token = random.below(static_cast<std::uint32_t>(logits.size) + 3);
        }
        const std::size_t num_prompt_tokens = random.below(static_cast<std::uint32_t>(tokens.size()) + 1);
        Context context{tokens.data(), tokens.size(), num_prompt_tokens};
        std::vector<std::uint8_t> mask(1 + random.below(1 + static_cast<std::uint32_t>(logits.size) / 8));
        for (std::uint8_t& bits : mask) {
            bits = static_cast<std::uint8_t>(random());
        }
        if (random.below(4) == 0) {
            context.mask = mask.data();
            context.mask_bytes = mask.size();
        }
        const std::size_t count = random.below(static_cast<std::uint32_t>(std::min<std::size_t>(logits.size, 90)) + 1);
        const bool spoiled = round % 50 == 0;
        if (spoiled) {
            logits.values[random.below(static_cast<std::uint32_t>(logits.size))] =
                round % 100 == 0 ? kInfinity : std::numeric_limits<float>::quiet_NaN();
        }
        const Outcome outcome = outcome_of(best, logits, params, context, count);
        CHECK(outcome == outcome_of(portable, logits, params, context, count));
        // What earlier rows have left in its memory is nothing to the next.
        Sampler fresh(best_kernels());
        CHECK(outcome == outcome_of(fresh, logits, params, context, count));
        CHECK(!(spoiled && (outcome.choice.valid || !std::isnan(outcome.logprob))));
        if (outcome.choice.valid) {
            ++drawn;
            CHECK(outcome.choice.token_id < logits.size);
            CHECK(outcome.probabilities[outcome.choice.token_id] > 0);
            const double sum = std::accumulate(outcome.probabilities.begin(), outcome.probabilities.end(), 0.0);
            CHECK(std::fabs(sum - 1) < 1e-12);
        }
    }
    CHECK(drawn > 2000);
}

void blocks_are_kept_to() {
    // A row that ends with a whole block has nothing behind it either.
    Sampler best(best_kernels()), portable(kPortable);
    for (const std::size_t size : {kBlock - 1, kBlock, kBlock + 1, 2 * kBlock}) {
        Logits logits(size);
        for (std::size_t i = 0; i < size; ++i) {
            logits.values[i] = static_cast<float>(i) * 0x1p-8F;
        }
        for (Sampler* sampler : {&best, &portable}) {
            for (const double typical_p : {1.0, 0.999999}) {
                RowParams params;
                params.typical_p = typical_p;
                params.repetition_penalty = 1.5;
                const auto last = static_cast<std::uint32_t>(size - 1);
                const Outcome outcome = outcome_of(*sampler, logits, params, {&last, 1, 1}, size);
                CHECK(outcome.choice.valid && outcome.top_ids[0] == last && outcome.top_ids[size - 1] == 0);
            }
        }
    }
}

void threads_share_parameters() {
    Random random{3};
    const Logits logits = random_logits(random);
    const RowParams params = random_params(random, logits.size);
    const std::uint32_t token = 0;
    Sampler here(best_kernels());
    const Outcome expected = outcome_of(here, logits, params, {&token, 1, 0}, 1);
    bool same = false;
    std::thread other([&] {
        Sampler there(best_kernels());
        same = outcome_of(there, logits, params, {&token, 1, 0}, 1) == expected;
    });
    const bool again = outcome_of(here, logits, params, {&token, 1, 0}, 1) == expected;
    other.join();
    CHECK(same && again);
}

}  // namespace

extern const Test kSamplingTests[];
const Test kSamplingTests[] = {
    {"powers of two are accurate, and exact at 0", powers_are_accurate},
    {"selection is what a sort finds", selection_is_what_a_sort_finds},
    {"a row gives the same on every machine, whatever came before it", machines_agree_whatever_the_row},
    {"rows of whole blocks and one more or less", blocks_are_kept_to},
    {"threads share parameters", threads_share_parameters},
    {nullptr, nullptr},
};
