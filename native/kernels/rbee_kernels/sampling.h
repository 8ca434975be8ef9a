// Logits to tokens: temperature, filters, the draw, and logprobs, one row at a time.
//
// Owns the meaning of the parameters, which rbee/sampling_params.py describes; edits.h is the first part of it. Does
// not know batches. The result of a row depends on that row alone: nothing is kept between rows but memory.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "rbee_kernels/blocks.h"
#include "rbee_kernels/edits.h"
#include "rbee_kernels/row.h"
#include "rbee_kernels/row_params.h"
#include "rbee_kernels/selection.h"

namespace rbee::kernels {

constexpr float kLog2E = 1.44269504F;  // e^x = 2^(x kLog2E)

struct Choice {
    bool valid;
    std::uint32_t token_id;
};

/// Samples rows, with memory that it keeps from one to the next.
class Sampler {
public:
    explicit Sampler(const BlockKernels& kernels) : kernels_(&kernels), edits_(kernels) {}

    /// A token for the row of `size` >= 1 logits.
    Choice sample(const float* logits, std::size_t size, const RowParams& params, const Context& context) {
        const std::optional<Shaped> shaped = shape(logits, size, params, context);
        if (!shaped) {
            return {false, 0};
        }
        if (shaped->greedy) {
            return {true, static_cast<std::uint32_t>(shaped->peak.index)};
        }
        const std::size_t index = draw(shaped->left, uniform(params.seed, context.num_tokens));
        return {true, shaped->left.ids != nullptr ? shaped->left.ids[index] : static_cast<std::uint32_t>(index)};
    }

    /// The probabilities [size] that `sample` draws from; false if the row is not valid.
    bool distribution(const float* logits, std::size_t size, const RowParams& params, const Context& context,
                      double* probabilities) {
        const std::optional<Shaped> shaped = shape(logits, size, params, context);
        std::fill(probabilities, probabilities + size, 0.0);
        if (!shaped) {
            return false;
        }
        if (shaped->greedy) {
            probabilities[shaped->peak.index] = 1;
            return true;
        }
        const Left& left = shaped->left;
        const double total = weigh(left, weights_.data());
        for (std::size_t i = 0; i < left.row.size(); ++i) {
            probabilities[left.ids != nullptr ? left.ids[i] : i] = double{weights_[i]} / total;
        }
        return true;
    }

    /// The logprob of a token under the unmodified logits, and those of the `count` most likely tokens, the best first
    /// and of equal ones the lowest id. All NaN, and the ids 0, if the row is not valid.
    float score(const float* logits, std::size_t size, std::uint32_t token_id, std::size_t count,
                std::uint32_t* top_ids, float* top_logprobs) {
        prepare(size);
        count = std::min(count, size);
        const Row row(logits, size, tail_);
        const Peak peak = find_peak(*kernels_, row, maxima_.data());
        if (!peak.valid) {
            constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
            std::fill(top_ids, top_ids + count, 0U);
            std::fill(top_logprobs, top_logprobs + count, kNaN);
            return kNaN;
        }
        const double log_total = std::log(weigh({row, {peak.value, kLog2E}, nullptr}, nullptr));
        const auto logprob = [&](float logit) {
            return static_cast<float>((double{logit} - double{peak.value}) - log_total);
        };
        if (count > 0) {
            // Of the logits themselves: offsets would make equal what is not.
            std::size_t found =
                collect({row, {0, 1}, nullptr}, bound_for(count, row, maxima_.data(), exponents_.data()));
            found = std::min(found, size);  // with a bound of -inf, what fills the last block is found too
            ranking_.resize(found);
            for (std::size_t i = 0; i < found; ++i) {
                ranking_[i] = {exponents_[i], ids_[i]};
            }
            std::partial_sort(ranking_.begin(), ranking_.begin() + static_cast<std::ptrdiff_t>(count), ranking_.end(),
                              [](const auto& a, const auto& b) {
                                  return a.first > b.first || (a.first == b.first && a.second < b.second);
                              });
            for (std::size_t i = 0; i < count; ++i) {
                top_ids[i] = ranking_[i].second;
                top_logprobs[i] = logprob(ranking_[i].first);
            }
        }
        return token_id < size ? logprob(row[token_id]) : -kInfinity;
    }

    /// The place of a token among all of a row's, from 1, the best first and of equal ones the lowest id; 0 if there is
    /// no such token. Means nothing for a row that is not valid.
    static std::uint32_t rank(const float* logits, std::size_t size, std::uint32_t token_id) {
        if (token_id >= size) {
            return 0;
        }
        const float own = logits[token_id];
        std::uint32_t before = 0;  // no wider than a float, so that the loops are vectors
        for (std::size_t i = 0; i < token_id; ++i) {
            before += logits[i] >= own ? 1U : 0U;
        }
        for (std::size_t i = token_id + 1; i < size; ++i) {
            before += logits[i] > own ? 1U : 0U;
        }
        return before + 1;
    }

private:
    /// What filters have left of a row: as long as none has removed a token, the row itself.
    struct Left {
        Row row;
        Scaling scaling;
        const std::uint32_t* ids;  // null: the row has all tokens
    };

    struct Shaped {
        Peak peak;
        bool greedy;
        Left left;
    };

    void prepare(std::size_t size) {
        const std::size_t blocks = blocks_of(size);
        if (maxima_.size() < blocks * kLanes) {
            maxima_.resize(blocks * kLanes);
            sums_.resize(blocks);
            weights_.resize(blocks * kBlock);
            exponents_.resize(blocks * kBlock + kLanes);  // BlockKernels::collect may write so much more
            ids_.resize(blocks * kBlock + kLanes);
        }
    }

    /// Everything but the draw; nothing if the row holds NaN or +inf, or no token can be.
    std::optional<Shaped> shape(const float* logits, std::size_t size, const RowParams& params,
                                const Context& context) {
        prepare(size);
        bool bad = false;
        const float* values = edits_.apply(logits, size, params, context, bad);
        const Row row(values, size, tail_);
        const Peak peak = find_peak(*kernels_, row, maxima_.data());
        if (bad || !peak.valid) {
            return std::nullopt;
        }
        Shaped shaped{peak, params.temperature == 0, {row, {peak.value, scale_of(params.temperature)}, nullptr}};
        if (!shaped.greedy) {
            apply_top_k(shaped.left, params.top_k);
            apply_top_p(shaped.left, params.top_p);
            apply_min_p(shaped.left, params.min_p);
            apply_typical_p(shaped.left, params.typical_p);
        }
        return shaped;
    }

    /// A finite and normal number, so that it makes neither 0 nor -inf a NaN.
    static float scale_of(double temperature) {
        constexpr double kSmallest = std::numeric_limits<float>::min();
        constexpr double kGreatest = std::numeric_limits<float>::max();
        return static_cast<float>(std::clamp(double{kLog2E} / temperature, kSmallest, kGreatest));
    }

    // Filters. Each sees what the one before left, at least one token. Tokens without a weight are as good as removed.

    void apply_top_k(Left& left, std::size_t top_k) {
        if (top_k == 0 || top_k >= left.row.size()) {
            return;
        }
        const float bound = bound_for(top_k, left.row, maxima_.data(), exponents_.data());
        reduce(left, collect(left, std::max(left.scaling(bound), kLeastWeighed)));
        if (top_k < left.row.size()) {
            std::fill_n(weights_.data(), left.row.size(), 1.0F);
            keep_exponents(left, static_cast<double>(top_k));
        }
    }

    void apply_top_p(Left& left, double top_p) {
        if (!(top_p < 1)) {
            return;
        }
        const double total = weigh(left, nullptr);
        const double wanted = top_p * total;
        if (left.ids == nullptr) {
            reduce_to_top(left, total, wanted);
        } else {
            weigh(left, weights_.data());
        }
        keep_exponents(left, wanted);
    }

    /// Leaves the most likely tokens, so many that they weigh at least `wanted`; and their weights in weights_.
    void reduce_to_top(Left& left, double total, double wanted) {
        const Left all = left;
        // First those that are rarely too few. If they are, then all but those that weigh, even all of them together,
        // less than half of what is to go.
        constexpr double kTypicalSize = 1024;
        for (const double size : {kTypicalSize, 2 * static_cast<double>(all.row.size())}) {
            const auto bound = static_cast<float>(std::log2((total - wanted) / size));
            reduce(left, collect(all, std::clamp(bound, kLeastWeighed, 0.0F)));
            if (weigh(left, weights_.data()) >= wanted) {
                return;
            }
        }
    }

    void apply_min_p(Left& left, double min_p) {
        if (min_p <= 0) {
            return;
        }
        const float bound = std::max(static_cast<float>(std::log2(min_p)), kLeastWeighed);
        if (left.ids == nullptr) {
            reduce(left, collect(left, bound));
        } else {
            keep(left, exponents_.data(), bound);
        }
    }

    /// -log2 p of a token and the entropy in bits differ by as much as its exponent and the mean: the norm cancels out.
    void apply_typical_p(Left& left, double typical_p) {
        if (!(typical_p < 1)) {
            return;
        }
        if (left.ids == nullptr) {
            reduce(left, collect(left, kLeastWeighed));
        }
        const std::size_t size = left.row.size();
        const double total = weigh(left, weights_.data());
        const auto mean = static_cast<float>(dot(exponents_.data(), weights_.data(), size) / total);
        distances_.resize(std::max(distances_.size(), size));
        for (std::size_t i = 0; i < size; ++i) {
            distances_[i] = -std::fabs(exponents_[i] - mean);
        }
        const float bound = selection_.find(distances_.data(), weights_.data(), size, typical_p * total);
        keep(left, distances_.data(), bound);
    }

    static double dot(const float* a, const float* b, std::size_t size) {
        double lanes[kLanes] = {};
        std::size_t i = 0;
        for (; i + kLanes <= size; i += kLanes) {
            for (std::size_t lane = 0; lane < kLanes; ++lane) {
                lanes[lane] += double{a[i + lane]} * double{b[i + lane]};
            }
        }
        for (std::size_t lane = 0; i < size; ++i, ++lane) {
            lanes[lane] += double{a[i]} * double{b[i]};
        }
        return sum_of_lanes(lanes);
    }

    /// Puts the tokens with at least this exponent, and their exponents, into ids_ and exponents_.
    std::size_t collect(const Left& left, float at_least) {
        std::size_t found = 0;
        for (std::size_t i = 0; i < left.row.blocks(); ++i) {
            found +=
                kernels_->collect(left.row.block(i), left.scaling, at_least, static_cast<std::uint32_t>(i * kBlock),
                                  exponents_.data() + found, ids_.data() + found);
        }
        return found;
    }

    /// From now on only the first `size` of exponents_ and ids_ are left.
    void reduce(Left& left, std::size_t size) {
        left = {Row(exponents_.data(), size, left_tail_), {0, 1}, ids_.data()};
    }

    /// Leaves the greatest exponents, so many that the weights of the tokens reach `wanted`.
    void keep_exponents(Left& left, double wanted) {
        const float* exponents = exponents_.data();
        keep(left, exponents, selection_.find(exponents, weights_.data(), left.row.size(), wanted));
    }

    /// Leaves those whose key is at least so great; the keys may be exponents_.
    void keep(Left& left, const float* keys, float bound) {
        float* exponents = exponents_.data();
        std::uint32_t* ids = ids_.data();
        std::size_t kept = 0;
        for (std::size_t i = 0; i < left.row.size(); ++i) {
            const bool stays = keys[i] >= bound;
            exponents[kept] = exponents[i];
            ids[kept] = ids[i];
            kept += stays ? 1 : 0;
        }
        reduce(left, kept);
    }

    /// The sum of what is left, also by block in sums_; the weights too, unless `weights` is null: they are written in
    /// whole blocks.
    double weigh(const Left& left, float* weights) {
        float unused[kBlock];
        double total = 0;
        for (std::size_t i = 0; i < left.row.blocks(); ++i) {
            sums_[i] =
                kernels_->weigh(left.row.block(i), left.scaling, weights != nullptr ? weights + i * kBlock : unused);
            total += sums_[i];
        }
        return total;
    }

    /// The first whose running sum is beyond uniform * total, by blocks and then within one.
    std::size_t draw(const Left& left, double uniform) {
        // Below the total, which the same sum of blocks reaches: uniform is at most 1 - 2^-53.
        const double target = uniform * weigh(left, nullptr);
        double running = 0;
        std::size_t block = 0;
        while (running + sums_[block] <= target) {
            running += sums_[block++];
        }
        float weights[kBlock];
        kernels_->weigh(left.row.block(block), left.scaling, weights);
        std::size_t chosen = 0;
        for (std::size_t i = 0; i < kBlock; ++i) {
            if (weights[i] > 0) {
                // Should this sum end a rounding error short of the block's, it is the last.
                chosen = i;
                running += double{weights[i]};
                if (running > target) {
                    break;
                }
            }
        }
        return block * kBlock + chosen;
    }

    const BlockKernels* kernels_;
    Edits edits_;
    Selection selection_;
    float tail_[kBlock];            // of the row
    float left_tail_[kBlock];       // of what is left
    std::vector<float> maxima_;     // 8 for each block
    std::vector<double> sums_;      // one for each block
    std::vector<float> exponents_;  // of the tokens that are left
    std::vector<std::uint32_t> ids_;
    std::vector<float> weights_;
    std::vector<float> distances_;  // of their exponents from the mean, negative
    std::vector<std::pair<float, std::uint32_t>> ranking_;
};

}  // namespace rbee::kernels
