// How far down a list one has to go until a given weight is reached, without sorting the list.
//
// Owns the search. Does not know tokens: for top-k all weights are 1, for top-p and typical they are probabilities.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "rbee_kernels/blocks.h"

namespace rbee::kernels {

/// Weighted selection by repeated bucketing; kept for its memory.
class Selection {
public:
    /// The greatest key such that all with this key or a greater one weigh at least `wanted` together; if even all do
    /// not, the smallest. Entries with equal keys are not distinguished.
    ///
    /// `size` is at least 1, keys are finite, weights are not negative.
    float find(const float* keys, const float* weights, std::size_t size, double wanted) {
        if (bucket_.size() < size) {
            bucket_.resize(size);
            keys_.resize(size);
            weights_.resize(size);
        }
        double above = 0;  // the weight of entries that are already known to be in
        while (size > kFew) {
            const auto [lowest, highest] = extremes(keys, size);
            const double top = highest, range = top - double{lowest};
            if (range == 0) {
                return lowest;
            }
            // In double, because there a range of floats that is not 0 has a finite reciprocal. Rounding cannot change
            // the order of the buckets, and the extremes land in different ones: every round makes the list shorter.
            const double scale = static_cast<double>(kBuckets - 1) / range;
            for (std::size_t i = 0; i < size; ++i) {
                bucket_[i] = static_cast<std::uint8_t>(static_cast<int>((top - double{keys[i]}) * scale));
            }
            // In turns into two tables, as neighbours often share a bucket and would wait for each other.
            std::array<double, kBuckets> weight{}, others{};
            for (std::size_t i = 0; i + 1 < size; i += 2) {
                weight[bucket_[i]] += double{weights[i]};
                others[bucket_[i + 1]] += double{weights[i + 1]};
            }
            if (size % 2 != 0) {
                weight[bucket_[size - 1]] += double{weights[size - 1]};
            }
            for (std::size_t i = 0; i < kBuckets; ++i) {
                weight[i] += others[i];
            }
            std::size_t chosen = 0;
            while (chosen < kBuckets && above + weight[chosen] < wanted) {
                above += weight[chosen++];
            }
            if (chosen == kBuckets) {
                return lowest;
            }
            std::size_t left = 0;
            for (std::size_t i = 0; i < size; ++i) {
                if (bucket_[i] == chosen) {
                    keys_[left] = keys[i];
                    weights_[left++] = weights[i];
                }
            }
            keys = keys_.data();
            weights = weights_.data();
            size = left;
        }
        return find_among_few(keys, weights, size, wanted - above);
    }

private:
    static constexpr std::size_t kBuckets = 256;
    static constexpr std::size_t kFew = 48;

    static std::pair<float, float> extremes(const float* keys, std::size_t size) {
        // In lanes, so that a compiler makes vector instructions of it.
        float lowest[kLanes], highest[kLanes];
        std::fill_n(lowest, kLanes, keys[0]);
        std::fill_n(highest, kLanes, keys[0]);
        std::size_t i = 0;
        for (; i + kLanes <= size; i += kLanes) {
            for (std::size_t lane = 0; lane < kLanes; ++lane) {
                const float key = keys[i + lane];
                lowest[lane] = key < lowest[lane] ? key : lowest[lane];
                highest[lane] = key > highest[lane] ? key : highest[lane];
            }
        }
        for (; i < size; ++i) {
            lowest[0] = std::min(lowest[0], keys[i]);
            highest[0] = std::max(highest[0], keys[i]);
        }
        return {*std::min_element(lowest, lowest + kLanes), *std::max_element(highest, highest + kLanes)};
    }

    static float find_among_few(const float* keys, const float* weights, std::size_t size, double wanted) {
        std::array<std::pair<float, float>, kFew> sorted;
        for (std::size_t i = 0; i < size; ++i) {
            sorted[i] = {keys[i], weights[i]};
        }
        std::sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(size),
                  [](const auto& a, const auto& b) { return a.first > b.first; });
        double reached = 0;
        std::size_t i = 0;
        while (i + 1 < size && (reached += double{sorted[i].second}) < wanted) {
            ++i;
        }
        return sorted[i].first;
    }

    std::vector<std::uint8_t> bucket_;
    std::vector<float> keys_;
    std::vector<float> weights_;
};

}  // namespace rbee::kernels
