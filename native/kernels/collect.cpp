#include "rbee_kernels/collect.h"

#include <stdexcept>
#include <tuple>
#include <utility>

namespace rbee::kernels {
namespace {

void check(bool condition, const std::string& otherwise) {
    if (!condition) {
        throw std::invalid_argument(otherwise);
    }
}

/// Takes the weights by their names; the error names the one that does not fit.
class Collector {
public:
    explicit Collector(const NamedWeights& named)
        : matrices_(named.matrices), vectors_(named.vectors), memory_(total()) {}

    Matrix matrix(const std::string& name, std::size_t rows, std::size_t cols) {
        const auto [source, format] = find(name, rows, cols);
        return memory_.place(source, format);
    }
    std::pair<Matrix, Matrix> interleaved(const std::string& name, const std::string& other_name, std::size_t rows,
                                          std::size_t cols) {
        const auto [one, one_format] = find(name, rows, cols);
        const auto [other, other_format] = find(other_name, rows, cols);
        return memory_.interleave(one, one_format, other, other_format);
    }
    bool has_matrix(const std::string& name) const { return matrices_.count(name) != 0; }

    /// Null if there is none.
    const float* vector(const std::string& name, std::size_t size) {
        const auto found = vectors_.find(name);
        if (found == vectors_.end()) {
            return nullptr;
        }
        check(found->second.size == size, "The vector '" + name + "' has " + std::to_string(found->second.size) +
                                              " numbers, but the model needs " + std::to_string(size) + ".");
        return memory_.copy(found->second.data, size);
    }
    const float* needed_vector(const std::string& name, std::size_t size) {
        const float* data = vector(name, size);
        check(data != nullptr, "The vector '" + name + "' is missing.");
        return data;
    }

    WeightMemory take() { return std::move(memory_); }

private:
    std::pair<SourceMatrix, WeightFormat> find(const std::string& name, std::size_t rows, std::size_t cols) const {
        const auto found = matrices_.find(name);
        check(found != matrices_.end(), "The matrix '" + name + "' is missing.");
        const auto& [format, source] = found->second;
        check(source.rows == rows && source.cols == cols,
              "The matrix '" + name + "' is " + std::to_string(source.rows) + " x " + std::to_string(source.cols) +
                  ", but the model needs " + std::to_string(rows) + " x " + std::to_string(cols) + ".");
        return {source, static_cast<WeightFormat>(format)};
    }

    /// Enough for all of them, which are checked on the way.
    std::size_t total() const {
        std::size_t total = 0;
        for (const auto& [name, matrix] : matrices_) {
            const auto format = static_cast<WeightFormat>(matrix.format);
            try {
                check_packable(matrix.source, format);
            } catch (const std::invalid_argument& error) {
                throw std::invalid_argument("The matrix '" + name + "' cannot be packed: " + error.what());
            }
            const Matrix packed{format, matrix.source.rows, matrix.source.cols, nullptr};
            // Interleaved panels are padded one by one.
            total += WeightMemory::padded(packed.bytes()) + (packed.num_panels() + 1) * WeightMemory::padded(1);
        }
        for (const auto& [name, vector] : vectors_) {
            total += WeightMemory::padded(vector.size * sizeof(float));
        }
        return total;
    }

    const std::map<std::string, NamedMatrix>& matrices_;
    const std::map<std::string, NamedVector>& vectors_;
    WeightMemory memory_;
};

Weights collect(Collector& from, const ModelShape& shape, const std::vector<LayerKind>& layers,
                std::vector<Rotary> rotaries) {
    const std::size_t hidden = shape.hidden_size, wide = shape.num_heads * shape.head_dim;
    const std::size_t narrow = shape.num_kv_heads * shape.head_dim, mlp = shape.intermediate_size;
    Weights weights;
    for (const Rotary& rotary : rotaries) {
        check(rotary.inverse_frequencies.size() <= shape.head_dim / 2,
              "A rotary embedding has more frequencies than a head has pairs.");
    }
    weights.rotaries = std::move(rotaries);
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const auto name = [i](const char* part) { return "layers." + std::to_string(i) + "." + part; };
        const auto linear = [&](const char* part, std::size_t rows, std::size_t cols) {
            const Matrix matrix = from.matrix(name(part), rows, cols);
            return Linear{matrix, from.vector(name(part) + "_bias", rows)};
        };
        check(layers[i].rotary < weights.rotaries.size(), "A layer has a rotary embedding that is not there.");
        Layer layer;
        layer.window = layers[i].window;
        layer.rotary = layers[i].rotary;
        layer.attention_norm = from.needed_vector(name("attention_norm"), hidden);
        layer.query = linear("query", wide, hidden);
        layer.key = linear("key", narrow, hidden);
        layer.value = linear("value", narrow, hidden);
        layer.query_norm = from.vector(name("query_norm"), shape.head_dim);
        layer.key_norm = from.vector(name("key_norm"), shape.head_dim);
        layer.output = linear("output", hidden, wide);
        layer.post_attention_norm = from.vector(name("post_attention_norm"), hidden);
        layer.mlp_norm = from.needed_vector(name("mlp_norm"), hidden);
        if (from.has_matrix(name("gate"))) {
            std::tie(layer.gate.matrix, layer.up.matrix) = from.interleaved(name("gate"), name("up"), mlp, hidden);
        } else {
            layer.up.matrix = from.matrix(name("up"), mlp, hidden);
        }
        layer.gate.bias = from.vector(name("gate_bias"), mlp);
        layer.up.bias = from.vector(name("up_bias"), mlp);
        layer.down = linear("down", hidden, mlp);
        layer.post_mlp_norm = from.vector(name("post_mlp_norm"), hidden);
        check((layer.post_attention_norm == nullptr) == (layer.post_mlp_norm == nullptr) &&
                  (i == 0 || (layer.post_mlp_norm == nullptr) == (weights.layers[0].post_mlp_norm == nullptr)),
              "All layers must have both norms behind their halves, or none.");
        check(shape.residual_scale == 1.0F || layer.post_mlp_norm == nullptr,
              "A model with norms behind its halves cannot have a residual_scale.");
        check(i == 0 || (layer.gate.matrix.rows == 0) == (weights.layers[0].gate.matrix.rows == 0),
              "All layers must have a gate, or none.");
        weights.layers.push_back(layer);
    }
    weights.final_norm = from.needed_vector("final_norm", hidden);
    weights.embedding = from.matrix("embedding", shape.vocab_size, hidden);
    weights.head = from.has_matrix("head") ? from.matrix("head", shape.vocab_size, hidden) : weights.embedding;
    return weights;
}

}  // namespace

CollectedWeights collect_weights(const ModelShape& shape, const std::vector<LayerKind>& layers,
                                 std::vector<Rotary> rotaries, const NamedWeights& named) {
    Collector collector(named);
    Weights weights = collect(collector, shape, layers, std::move(rotaries));
    return {collector.take(), std::move(weights)};
}

}  // namespace rbee::kernels
