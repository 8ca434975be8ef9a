// What a row is sampled with: its parameters, its sequence, and its draw.
//
// Owns no memory but the parameters. Their meaning is in edits.h and sampling.h.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace rbee::kernels {

/// As in SamplingParams. Ids that are not below the size of a row are no tokens and have no effect.
struct RowParams {
    double temperature = 1;
    std::size_t top_k = 0;
    double top_p = 1;
    double min_p = 0;
    double typical_p = 1;
    double frequency_penalty = 0;
    double presence_penalty = 0;
    double repetition_penalty = 1;
    std::size_t min_tokens = 0;
    std::uint64_t seed = 0;
    std::vector<std::pair<std::uint32_t, double>> logit_bias;
    std::vector<std::uint32_t> stop_token_ids;
    std::optional<std::vector<std::uint8_t>> allowed;  // a bit per token, lowest first; tokens behind its end are not
    std::optional<std::size_t> num_logprobs;
};

/// Whether a row's tokens matter, and not only how many there are.
inline bool reads_tokens(const RowParams& params) {
    return params.repetition_penalty != 1 || params.frequency_penalty != 0 || params.presence_penalty != 0;
}

/// A sequence as far as it is written. `token_ids` may be null where they are not read.
///
/// A grammar's mask has a bit for each token that may come next, lowest first; tokens behind its end may not.
struct Context {
    const std::uint32_t* token_ids;
    std::size_t num_tokens;
    std::size_t num_prompt_tokens;
    const std::uint8_t* mask = nullptr;  // null: no grammar
    std::size_t mask_bytes = 0;
};

inline std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
    return x ^ (x >> 31U);
}

/// A draw in [0, 1) for each (seed, position): SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) at that place.
///
/// The generator's state is a counter, so its output number `position` can be had directly. The seed is mixed once
/// before use, because the sequences of seeds that differ by a multiple of its increment would overlap.
inline double uniform(std::uint64_t seed, std::uint64_t position) {
    constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15U;
    const std::uint64_t state = mix(seed + kGolden);
    return static_cast<double>(mix(state + (position + 1) * kGolden) >> 11U) * 0x1p-53;
}

}  // namespace rbee::kernels
