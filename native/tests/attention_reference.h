// What attention has to be: softmax of scores times values, in double precision.
//
// Owns the reference and how far from it a result may be. Does not know caches, parts or instruction sets.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention_sequences.h"

namespace rbee::kernels::test {

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

inline std::vector<Expected> expected_of(const Sequence& sequence) {
    const Shape& shape = sequence.shape;
    const std::size_t head_dim = shape.layout.head_dim;
    const std::vector<double> keys = sequence.held_keys(), values = sequence.held_values();
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

inline bool close(const std::vector<float>& out, const std::vector<Expected>& expected) {
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

}  // namespace rbee::kernels::test
