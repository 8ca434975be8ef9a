// What is done to single logits before anything looks at the row as a whole: masks, bias, min_tokens, penalties.
//
// Owns the edited copy of a row. Most rows need none.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "rbee_kernels/blocks.h"
#include "rbee_kernels/row.h"
#include "rbee_kernels/row_params.h"

namespace rbee::kernels {

/// Edits rows one after the other, with memory that it keeps.
class Edits {
public:
    explicit Edits(const BlockKernels& kernels) : kernels_(&kernels) {}

    /// The logits themselves if nothing is to be done to them, or a copy, which the next call overwrites. `bad` becomes
    /// true if edits may hide that one of the originals is NaN or +inf.
    const float* apply(const float* logits, std::size_t size, const RowParams& params, const Context& context,
                       bool& bad) {
        const std::size_t num_output = context.num_tokens - context.num_prompt_tokens;
        const bool repetition = params.repetition_penalty != 1 && context.num_tokens > 0;
        const bool output = (params.frequency_penalty != 0 || params.presence_penalty != 0) && num_output > 0;
        const bool too_short = num_output < params.min_tokens && !params.stop_token_ids.empty();
        const bool masked = params.allowed || context.mask != nullptr;
        if (!masked && params.logit_bias.empty() && !too_short && !repetition && !output) {
            return logits;
        }
        if (edited_.size() < size) {
            edited_.resize(blocks_of(size) * kBlock);
            occurrences_.resize(edited_.size());
        }
        bad = masked ? copy_masked(logits, size, params, context) : copy(logits, size);
        for (const auto& [id, bias] : params.logit_bias) {
            if (id < size) {
                edited_[id] = finite(double{edited_[id]} + limited(bias));
            }
        }
        if (too_short) {
            for (const std::uint32_t id : params.stop_token_ids) {
                if (id < size) {
                    edited_[id] = -kInfinity;
                }
            }
        }
        if (repetition || output) {
            penalize(size, params, context, repetition ? 0 : context.num_prompt_tokens);
        }
        return edited_.data();
    }

private:
    bool copy(const float* logits, std::size_t size) {
        const Row row(logits, size, tail_);
        bool bad = false;
        for (std::size_t i = 0; i < row.blocks(); ++i) {
            bad |= kernels_->copy(row.block(i), nullptr, edited_.data() + i * kBlock);
        }
        return bad;
    }

    /// What the parameters and the grammar both allow; all else is -inf.
    bool copy_masked(const float* logits, std::size_t size, const RowParams& params, const Context& context) {
        const Row row(logits, size, tail_);
        bool bad = false;
        for (std::size_t i = 0; i < row.blocks(); ++i) {
            Bits bits;
            bits.fill(0xFF);
            if (params.allowed) {
                keep_common(bits, params.allowed->data(), params.allowed->size(), i);
            }
            if (context.mask != nullptr) {
                keep_common(bits, context.mask, context.mask_bytes, i);
            }
            bad |= kernels_->copy(row.block(i), bits.data(), edited_.data() + i * kBlock);
        }
        return bad;
    }

    using Bits = std::array<std::uint8_t, kBlock / 8>;

    /// Of a block's bits those that the mask has too.
    static void keep_common(Bits& bits, const std::uint8_t* mask, std::size_t mask_bytes, std::size_t block) {
        const std::size_t first = std::min(block * bits.size(), mask_bytes);
        const std::size_t there = std::min(bits.size(), mask_bytes - first);
        for (std::size_t i = 0; i < bits.size(); ++i) {
            bits[i] = i < there ? static_cast<std::uint8_t>(bits[i] & mask[first + i]) : std::uint8_t{0};
        }
    }

    /// Each token of the context from `first` on is edited once, however often it occurs. Then its count is 0 again, as
    /// it must be for the next row.
    void penalize(std::size_t size, const RowParams& params, const Context& context, std::size_t first) {
        constexpr std::uint32_t kSeen = 1U << 31U;
        const double repetition = limited(params.repetition_penalty);
        const double frequency = limited(params.frequency_penalty);
        const double presence = limited(params.presence_penalty);
        for (std::size_t i = first; i < context.num_tokens; ++i) {
            const std::uint32_t id = context.token_ids[i];
            if (id < size) {
                occurrences_[id] = (occurrences_[id] | kSeen) + (i >= context.num_prompt_tokens ? 1 : 0);
            }
        }
        for (std::size_t i = first; i < context.num_tokens; ++i) {
            const std::uint32_t id = context.token_ids[i];
            if (id >= size || occurrences_[id] == 0) {
                continue;
            }
            const std::uint32_t count = std::exchange(occurrences_[id], 0) & ~kSeen;
            double logit = double{edited_[id]};
            logit = logit < 0 ? logit * repetition : logit / repetition;
            if (count > 0) {
                logit -= frequency * count + presence;
            }
            edited_[id] = finite(logit);
        }
    }

    /// Within the range of a float, so that no arithmetic with it in double can overflow.
    static double limited(double value) {
        constexpr double kGreatest = std::numeric_limits<float>::max();
        return std::clamp(value, -kGreatest, kGreatest);
    }

    /// A penalty cannot make a token impossible, nor a row invalid, by leaving the range of a float; what is impossible
    /// already stays so.
    static float finite(double logit) {
        return logit < -std::numeric_limits<double>::max() ? -kInfinity : static_cast<float>(limited(logit));
    }

    const BlockKernels* kernels_;
    float tail_[kBlock];
    std::vector<float> edited_;
    std::vector<std::uint32_t> occurrences_;  // of each token; 0 between rows
};

}  // namespace rbee::kernels
