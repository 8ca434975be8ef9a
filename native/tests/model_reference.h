// The decoder that the model is compared with: plain loops in double precision over whole sequences.
//
// Owns what each layer computes, and which values it rounds as the model does. Does not know steps, blocks or threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "rbee_kernels/half.h"
#include "rbee_kernels/model.h"

#include "cache_numbers.h"

namespace rbee::kernels::test {

using Row = std::vector<double>;

/// As the reference multiplies with it.
struct Dense {
    bool rounds = false;  // activations, unless the model is exact
    std::size_t rows = 0;
    std::size_t cols = 0;
    Row weights;
    const float* bias = nullptr;
};

/// Computes whole sequences, one by one.
class Reference {
public:
    Reference(const ModelShape& shape, const Weights& weights, bool exact, CacheFormat cache)
        : shape_(shape),
          weights_(weights),
          exact_(exact),
          cache_(cache),
          embedding_(dense({weights.embedding})),
          head_(dense({weights.head})) {
        for (const Layer& layer : weights.layers) {
            layers_.push_back({dense(layer.query), dense(layer.key), dense(layer.value), dense(layer.output),
                               dense(layer.gate), dense(layer.up), dense(layer.down)});
        }
    }

    /// The hidden state of each token, which the head reads.
    std::vector<Row> hidden(const std::vector<std::int64_t>& tokens) const {
        std::vector<Row> states;
        for (const std::int64_t token : tokens) {
            const auto row = embedding_.weights.begin() + token * static_cast<std::ptrdiff_t>(shape_.hidden_size);
            states.emplace_back(row, row + static_cast<std::ptrdiff_t>(shape_.hidden_size));
            for (double& value : states.back()) {
                value *= double{shape_.embedding_scale};
            }
        }
        for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
            attend(weights_.layers[layer], layers_[layer], states);
            for (Row& x : states) {
                add_mlp(weights_.layers[layer], layers_[layer], x);
            }
        }
        for (Row& x : states) {
            x = normed(x, weights_.final_norm);
        }
        return states;
    }

    /// The logits behind each token, of its hidden state.
    std::vector<Row> logits(std::vector<Row> states) const {
        for (Row& x : states) {
            x = product(head_, x);
            scale(x, shape_.logit_scale);
        }
        return states;
    }

private:
    struct DenseLayer {
        Dense query, key, value, output, gate, up, down;
    };

    static Dense dense(const Linear& linear) {
        const Matrix& matrix = linear.matrix;
        const bool rounds = is_quantized(matrix.format);
        Dense result{rounds, matrix.rows, matrix.cols, Row(matrix.rows * matrix.cols), linear.bias};
        std::vector<float> row(matrix.cols);
        for (std::size_t r = 0; r < matrix.rows; ++r) {
            kPortableSet.linear.unpack_row(matrix, r, row.data());
            std::copy(row.begin(), row.end(), result.weights.begin() + static_cast<std::ptrdiff_t>(r * matrix.cols));
        }
        return result;
    }

    /// In 8 bits.
    static Row rounded(const Row& x) {
        const std::vector<float> values(x.begin(), x.end());
        std::vector<std::int8_t> quants(x.size());
        std::vector<float> scales(x.size() / kGroup), sums(scales.size());
        std::vector<std::int32_t> biases(scales.size());
        std::vector<HalfSums> half_sums(scales.size());
        kPortableSet.elementwise.quantize(values.data(), x.size(),
                                          {quants.data(), scales.data(), sums.data(), biases.data(), half_sums.data()});
        Row result(x.size());
        for (std::size_t i = 0; i < x.size(); ++i) {
            result[i] = double{scales[i / kGroup]} * quants[i];
        }
        return result;
    }

    Row product(const Dense& dense, const Row& input) const {
        const Row x = dense.rounds && !exact_ ? rounded(input) : input;
        Row out(dense.rows);
        for (std::size_t r = 0; r < dense.rows; ++r) {
            const double bias = dense.bias != nullptr ? double{dense.bias[r]} : 0.0;
            out[r] = std::inner_product(x.begin(), x.end(), dense.weights.data() + r * dense.cols, bias);
        }
        return out;
    }

    Row normed(const Row& x, const float* weight) const {
        const double mean = std::inner_product(x.begin(), x.end(), x.begin(), 0.0) / static_cast<double>(x.size());
        Row out(x);
        for (std::size_t i = 0; i < x.size(); ++i) {
            out[i] *= double{weight[i]} / std::sqrt(mean + double{shape_.epsilon});
        }
        return out;
    }

    static void add(Row& x, const Row& y) {
        std::transform(x.begin(), x.end(), y.begin(), x.begin(), [](double a, double b) { return a + b; });
    }

    static void scale(Row& x, float factor) {
        for (double& value : x) {
            value *= double{factor};
        }
    }

    /// The heads of a row, normed and turned.
    void turn(Row& row, const float* norm, const Rotary& rotary, std::size_t position) const {
        const std::size_t dim = shape_.head_dim;
        for (std::size_t first = 0; first < row.size(); first += dim) {
            const auto begin = row.begin() + static_cast<std::ptrdiff_t>(first);
            Row head(begin, begin + static_cast<std::ptrdiff_t>(dim));
            if (norm != nullptr) {
                head = normed(head, norm);
            }
            std::copy(head.begin(), head.end(), begin);
            const std::size_t pairs = rotary.inverse_frequencies.size();
            for (std::size_t i = 0; i < pairs; ++i) {
                const double angle{rotary.inverse_frequencies[i] * static_cast<float>(position)};
                const double c = std::cos(angle) * double{rotary.factor}, s = std::sin(angle) * double{rotary.factor};
                row[first + i] = head[i] * c - head[pairs + i] * s;
                row[first + pairs + i] = head[pairs + i] * c + head[i] * s;
            }
        }
    }

    /// As the cache holds it, in groups of so many numbers of a head where that has 8 bits.
    void keep(Row& row, std::size_t group) const {
        if (cache_ != CacheFormat::kF32) {
            row = held({row.begin(), row.end()}, cache_, shape_.head_dim, group);
        }
    }

    void attend(const Layer& layer, const DenseLayer& dense, std::vector<Row>& states) const {
        const std::size_t dim = shape_.head_dim, heads_per_kv = shape_.num_heads / shape_.num_kv_heads;
        const Rotary& rotary = weights_.rotaries[layer.rotary];
        std::vector<Row> keys, values;
        for (std::size_t position = 0; position < states.size(); ++position) {
            const Row x = normed(states[position], layer.attention_norm);
            Row query = product(dense.query, x);
            turn(query, layer.query_norm, rotary, position);
            scale(query, 1 + shape_.query_growth * std::log(static_cast<float>(1 + position / shape_.query_length)));
            keys.push_back(product(dense.key, x));
            turn(keys.back(), layer.key_norm, rotary, position);
            values.push_back(product(dense.value, x));
            keep(keys.back(), kScaleDims);
            keep(values.back(), dim);
            const std::size_t first = layer.window != 0 && layer.window <= position ? position + 1 - layer.window : 0;
            Row attended(query.size());
            for (std::size_t head = 0; head < shape_.num_heads; ++head) {
                const auto own = static_cast<std::ptrdiff_t>(head * dim);
                const auto shared = static_cast<std::ptrdiff_t>(head / heads_per_kv * dim);
                Row scores;
                for (std::size_t other = first; other <= position; ++other) {
                    scores.push_back(double{shape_.attention_scale} *
                                     std::inner_product(query.begin() + own,
                                                        query.begin() + own + static_cast<std::ptrdiff_t>(dim),
                                                        keys[other].begin() + shared, 0.0));
                }
                const double greatest = *std::max_element(scores.begin(), scores.end());
                double total = 0;
                for (double& score : scores) {
                    total += score = std::exp(score - greatest);
                }
                for (std::size_t i = 0; i < scores.size(); ++i) {
                    for (std::size_t d = 0; d < dim; ++d) {
                        attended[head * dim + d] +=
                            scores[i] / total * values[first + i][head / heads_per_kv * dim + d];
                    }
                }
            }
            Row out = product(dense.output, attended);
            scale(out, shape_.residual_scale);
            add(states[position], layer.post_attention_norm != nullptr ? normed(out, layer.post_attention_norm) : out);
        }
    }

    void add_mlp(const Layer& layer, const DenseLayer& dense, Row& state) const {
        const Row x = normed(state, layer.mlp_norm);
        const Row up = product(dense.up, x);
        const bool has_gate = layer.gate.matrix.rows != 0;
        Row gated = has_gate ? product(dense.gate, x) : up;
        for (std::size_t i = 0; i < gated.size(); ++i) {
            gated[i] = activated(gated[i]) * (has_gate ? up[i] : 1);
        }
        Row out = product(dense.down, gated);
        scale(out, shape_.residual_scale);
        add(state, layer.post_mlp_norm != nullptr ? normed(out, layer.post_mlp_norm) : out);
    }

    double activated(double x) const {
        switch (shape_.activation) {
            case Activation::kSilu: return x / (1 + std::exp(-x));
            case Activation::kGeluTanh:
                return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
            default: return x > 0 ? x * x : 0;
        }
    }

    const ModelShape& shape_;
    const Weights& weights_;
    bool exact_;
    CacheFormat cache_;
    Dense embedding_, head_;
    std::vector<DenseLayer> layers_;
};

}  // namespace rbee::kernels::test
