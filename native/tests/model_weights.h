// A decoder with random weights, of any shape and in any mix of formats.
//
// Owns the memory of the weights, and how each format is filled so that products are as large as what goes in. Does not
// know what is computed with them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "rbee_kernels/half.h"
#include "rbee_kernels/model.h"

#include "check.h"
#include "packed_layout.h"

namespace rbee::kernels::test {

/// Of a case: the decoder, the sequences that it computes, and how.
struct Options {
    ModelShape shape;
    std::vector<std::size_t> windows;  // of the layers
    std::size_t block_size;
    bool quantized = false;  // matrices are, where their columns are groups of 32; all in random formats
    bool biases = false;
    bool head_norms = false;
    bool post_norms = false;
    bool tied = false;
    bool interleaved = false;          // gate and up, panel by panel
    bool gated = true;                 // otherwise the activation is that of up
    std::size_t turned = 1;            // pairs of a head are divided by this many: the first share is turned
    bool unturned_windows = false;     // layers with a window turn nothing
    std::vector<std::size_t> lengths;  // of the sequences
    std::size_t threads = 2;
};

inline std::size_t padded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

/// From -1 to 1.
inline float uniform(Random& random) {
    return static_cast<float>(static_cast<int>(random.below(20001)) - 10000) / 10000.0F;
}

inline WeightFormat random_format(bool quantized, std::size_t cols, Random& random) {
    if (!quantized || cols % kGroup != 0) {
        return static_cast<WeightFormat>(random.below(3));
    }
    const auto format = static_cast<WeightFormat>(random.below(kNumWeightFormats));
    return cols % block_cols(format) == 0 ? format : WeightFormat::kQ4;
}

inline void put(std::uint8_t* at, std::size_t index, float value, bool half) {
    const Half bits = half_of(value);
    half ? std::memcpy(at + 2 * index, &bits, 2) : std::memcpy(at + 4 * index, &value, 4);
}

/// Of a group: random quants, and factors so that weights are of about `size`; rows from `rows` on are zeros.
inline void fill(PackedPanel& packed, std::size_t group, std::size_t rows, float size, Random& random) {
    const PackedFormat& format = packed.format();
    const float levels = static_cast<float>(1U << packed.bits());
    const auto entry = [&](char kind, std::uint8_t* at, std::uint8_t* shared, float value) {
        if (kind == 'p') {
            *at = static_cast<std::uint8_t>(128 + std::ilogb(value));
            return;
        }
        if (!PackedPanel::is_shared(kind)) {
            put(at, 0, value, kind == 'h');
            return;
        }
        const bool of_half = kind == 'l' || kind == 'u';
        const std::uint32_t times = of_half ? 4 + random.below(12) : 64 + random.below(64);
        *at = static_cast<std::uint8_t>(kind == 'u' ? *at | (times << 4U) : times);
        put(shared, 0, value / (of_half ? 10.0F : 96.0F), true);
    };
    for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t k = 0; k < kGroup; ++k) {
            packed.set_quant(group, r, k, random.below(1U << packed.bits()));
        }
        for (std::size_t half = 0; half < packed.halves(); ++half) {
            const float scale = size * (1 + uniform(random) / 2) / levels * 3.4F;
            entry(format.scale, packed.scale(group, half, r), packed.shared_scale(group, r), scale);
            if (format.minimum != '-') {
                entry(format.minimum, packed.minimum(group, half, r), packed.shared_minimum(group, r),
                      scale * (1 - levels) / 2);
            }
        }
    }
}

/// Random weights of about 1 / sqrt(cols), so that products are as large as what goes in.
inline void fill(const Matrix& matrix, std::uint8_t* data, Random& random) {
    const float size = 1 / std::sqrt(static_cast<float>(matrix.cols));
    for (std::size_t panel = 0; panel < matrix.num_panels(); ++panel) {
        const std::size_t rows = std::min(matrix.rows - panel * kPanelRows, kPanelRows);
        const std::size_t bytes = panel_bytes(matrix.format, matrix.cols);
        std::uint8_t* at = data + panel * (matrix.stride != 0 ? matrix.stride : bytes);
        std::memset(at, 0, bytes);
        if (!is_quantized(matrix.format)) {
            for (std::size_t i = 0; i < matrix.cols * kPanelRows; ++i) {
                const float value = i % kPanelRows < rows ? 1.7F * size * uniform(random) : 0.0F;
                std::uint32_t bits = bits_of(value) >> 16U;
                matrix.format == WeightFormat::kBF16 ? void(std::memcpy(at + 2 * i, &bits, 2))
                                                     : put(at, i, value, matrix.format == WeightFormat::kF16);
            }
            continue;
        }
        PackedPanel packed(matrix.format, at);
        for (std::size_t g = 0; g < matrix.cols / kGroup; ++g) {
            fill(packed, g, rows, size, random);
        }
    }
}

/// Makes the weights of a row NaN.
inline void poison(const Matrix& matrix, std::uint8_t* data, std::size_t row) {
    std::uint8_t* panel = data + row / kPanelRows * panel_bytes(matrix.format, matrix.cols);
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    const std::size_t lane = row % kPanelRows;
    if (is_quantized(matrix.format)) {
        PackedPanel packed(matrix.format, panel);
        const char kind = packed.format().scale;
        if (kind == 'p') {  // has no NaN: 12 times the greatest power is infinite
            *packed.scale(0, 0, lane) = 255;
            for (std::size_t k = 0; k < kGroup; ++k) {
                packed.set_quant(0, lane, k, 7);
            }
            return;
        }
        const bool shared = PackedPanel::is_shared(kind);
        put(shared ? packed.shared_scale(0, lane) : packed.scale(0, 0, lane), 0, kNaN, shared || kind == 'h');
    } else if (matrix.format == WeightFormat::kBF16) {
        const std::uint16_t bits = 0x7FC0;
        std::memcpy(panel + 2 * lane, &bits, 2);
    } else {
        put(panel, lane, kNaN, matrix.format == WeightFormat::kF16);
    }
}

/// Random weights, and the memory they lie in. Each matrix ends where its allocation does, for AddressSanitizer's sake.
class TestWeights {
public:
    TestWeights(const Options& options, Random& random) : random_(random), quantized_(options.quantized) {
        const ModelShape& shape = options.shape;
        const std::size_t hidden = shape.hidden_size, mlp = shape.intermediate_size;
        const std::size_t wide = shape.num_heads * shape.head_dim, narrow = shape.num_kv_heads * shape.head_dim;
        const auto norm = [&](bool has, std::size_t size) { return has ? vector(size, 1) : nullptr; };
        const auto linear = [&](std::size_t rows, std::size_t cols) {
            return Linear{matrix(rows, cols), options.biases ? vector(rows, 0) : nullptr};
        };
        for (const std::size_t window : options.windows) {
            Layer layer;
            layer.window = window;
            layer.rotary = window != 0 ? 1 : 0;
            layer.attention_norm = vector(hidden, 1);
            layer.query = linear(wide, hidden);
            layer.key = linear(narrow, hidden);
            layer.value = linear(narrow, hidden);
            layer.query_norm = norm(options.head_norms, shape.head_dim);
            layer.key_norm = norm(options.head_norms, shape.head_dim);
            layer.output = linear(hidden, wide);
            layer.post_attention_norm = norm(options.post_norms, hidden);
            layer.mlp_norm = vector(hidden, 1);
            layer.gate = options.gated ? linear(mlp, hidden) : Linear{};
            layer.up = linear(mlp, hidden);
            if (options.interleaved) {
                interleave(layer.gate.matrix, layer.up.matrix);
            }
            layer.down = linear(hidden, mlp);
            layer.post_mlp_norm = norm(options.post_norms, hidden);
            weights.layers.push_back(layer);
        }
        weights.final_norm = vector(hidden, 1);
        weights.embedding = matrix(shape.vocab_size, hidden);
        poison(weights.embedding, matrices_.back().data(), nan_token = shape.vocab_size - 1);
        weights.head = options.tied ? weights.embedding : matrix(shape.vocab_size, hidden);
        for (const float base : {10000.0F, 100.0F}) {
            Rotary rotary{{}, base == 100.0F ? 1.1F : 1.0F};
            const bool turns = base != 100.0F || !options.unturned_windows;
            for (std::size_t i = 0; turns && i < shape.head_dim / 2 / options.turned; ++i) {
                rotary.inverse_frequencies.push_back(
                    std::pow(base, -2 * static_cast<float>(i) / static_cast<float>(shape.head_dim)));
            }
            weights.rotaries.push_back(rotary);
        }
    }

    Weights weights;
    std::size_t nan_token;

private:
    const float* vector(std::size_t size, float around) {
        vectors_.emplace_back(size);
        for (float& value : vectors_.back()) {
            value = around + uniform(random_) / 3;
        }
        return vectors_.back().data();
    }
    Matrix matrix(std::size_t rows, std::size_t cols) {
        Matrix matrix{random_format(quantized_, cols, random_), rows, cols};
        matrix.data = memory(matrix.bytes());
        fill(matrix, matrices_.back().data(), random_);
        return matrix;
    }
    void interleave(Matrix& one, Matrix& other) {
        const std::size_t size = padded(panel_bytes(one.format, one.cols));
        one.stride = other.stride = size + padded(panel_bytes(other.format, other.cols));
        one.data = memory(one.num_panels() * one.stride);
        other.data = one.data + size;
        fill(one, matrices_.back().data(), random_);
        fill(other, matrices_.back().data() + size, random_);
    }
    const std::uint8_t* memory(std::size_t bytes) {
        matrices_.emplace_back().reserve(bytes);
        return matrices_.back().data();
    }

    Random& random_;
    bool quantized_;
    std::vector<std::vector<float>> vectors_;
    std::vector<Buffer<std::uint8_t>> matrices_;
};

}  // namespace rbee::kernels::test
