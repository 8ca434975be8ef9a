// The model against a small decoder in double precision, with every instruction set of this machine: shapes that are no
// multiples of anything, every norm, bias and window, all formats in a layer; mixed steps on scattered blocks.
//
// Before anything is computed, a token whose embedding is NaN is written to every slot of the cache. So whatever reads
// what its own sequence has not written shows. And each sequence is computed twice, in chunks beside others by one
// thread, and alone in steps of a token or two by several: that must make no difference in a single bit.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "rbee_kernels/half.h"
#include "rbee_kernels/model.h"

#include "check.h"

using namespace rbee::kernels;

namespace {

// Of the logits' root mean square. Exactly: what adding floats in another order makes, with room for steep softmaxes.
// Otherwise the reference rounds activations and cache too, but of values that differ by so much, so that now and then
// one becomes the next quant. A head, panel or row that is not where it belongs makes more than 1.
constexpr double kExactTolerance = 5e-5;
constexpr double kRoundedTolerance = 0.2;

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

std::size_t padded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

/// From -1 to 1.
float uniform(Random& random) { return static_cast<float>(static_cast<int>(random.below(20001)) - 10000) / 10000.0F; }

WeightFormat random_format(bool quantized, std::size_t cols, Random& random) {
    if (!quantized || cols % kGroup != 0) {
        return static_cast<WeightFormat>(random.below(3));
    }
    if (cols % block_cols(WeightFormat::kQ4K) == 0 && random.below(2) == 0) {
        return WeightFormat::kQ4K;  // few matrices here have so many columns
    }
    const auto format = static_cast<WeightFormat>(random.below(kNumWeightFormats));
    return cols % block_cols(format) == 0 ? format : WeightFormat::kQ4;
}

void put(std::uint8_t* at, std::size_t index, float value, bool half) {
    const Half bits = half_of(value);
    half ? std::memcpy(at + 2 * index, &bits, 2) : std::memcpy(at + 4 * index, &value, 4);
}

/// Random weights of about 1 / sqrt(cols), so that products are as large as what goes in.
void fill(const Matrix& matrix, std::uint8_t* data, Random& random) {
    const float size = 1 / std::sqrt(static_cast<float>(matrix.cols));
    const bool four = matrix.format == WeightFormat::kQ4;
    const bool half = matrix.format == WeightFormat::kQ4 || matrix.format == WeightFormat::kQ8;
    const std::size_t quants = four ? 256 : 512;
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
        const std::size_t block = block_bytes(matrix.format);
        for (std::size_t k = 0; k < matrix.cols; k += block_cols(matrix.format), at += block) {
            if (matrix.format == WeightFormat::kQ4K) {
                for (std::size_t i = 0; i < block; ++i) {
                    at[i] = static_cast<std::uint8_t>(random.below(256));
                }
                for (std::size_t r = 0; r < kPanelRows; ++r) {
                    const float scale = r < rows ? size * (1 + uniform(random) / 2) / (4.6F * 128) : 0.0F;
                    put(at, r, scale, true);
                    put(at, kPanelRows + r, -7.5F * scale, true);
                }
                continue;
            }
            for (std::size_t i = 0; i < quants; ++i) {
                at[i] = static_cast<std::uint8_t>(random.below(256));
            }
            for (std::size_t r = 0; r < rows; ++r) {
                const float scale = size * (1 + uniform(random) / 2) / (four ? 4.6F : 74.0F);
                put(at + quants, r, scale, half);
                if (four) {
                    put(at + quants, kPanelRows + r, -7.5F * scale, half);
                } else if (matrix.format == WeightFormat::kQ8Min) {
                    put(at + quants, kPanelRows + r, size * uniform(random) / 4, half);
                } else if (matrix.format == WeightFormat::kQ8Fine) {
                    put(at + quants, kPanelRows + r, -scale, half);
                }
            }
        }
    }
}

/// Makes the weights of a row NaN.
void poison(const Matrix& matrix, std::uint8_t* data, std::size_t row) {
    std::uint8_t* panel = data + row / kPanelRows * panel_bytes(matrix.format, matrix.cols);
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    const bool quantized = is_quantized(matrix.format);
    const bool four = matrix.format == WeightFormat::kQ4, bytes = matrix.format == WeightFormat::kQ4K;
    const bool half = bytes || four || matrix.format == WeightFormat::kF16 || matrix.format == WeightFormat::kQ8;
    if (matrix.format == WeightFormat::kBF16) {
        const std::uint16_t bits = 0x7FC0;
        std::memcpy(panel + 2 * (row % kPanelRows), &bits, 2);
    } else {
        put(panel + (!quantized || bytes ? 0 : four ? 256 : 512), row % kPanelRows, kNaN, half);
    }
}

using Row = std::vector<double>;

/// As the reference multiplies with it.
struct Dense {
    bool rounds = false;  // activations, unless the model is exact
    std::size_t rows = 0;
    std::size_t cols = 0;
    Row weights;
    const float* bias = nullptr;
};

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

// ---- the reference --------------------------------------------------------------------------------------------------

/// Computes whole sequences, one by one.
class Reference {
public:
    Reference(const ModelShape& shape, const Weights& weights, bool exact)
        : shape_(shape),
          weights_(weights),
          exact_(exact),
          embedding_(dense({weights.embedding})),
          head_(dense({weights.head})) {
        for (const Layer& layer : weights.layers) {
            layers_.push_back({dense(layer.query), dense(layer.key), dense(layer.value), dense(layer.output),
                               dense(layer.gate), dense(layer.up), dense(layer.down)});
        }
    }

    /// The logits behind each token.
    std::vector<Row> operator()(const std::vector<std::int64_t>& tokens) const {
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
            x = product(head_, normed(x, weights_.final_norm));
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
        kPortableSet.elementwise.quantize(values.data(), x.size(),
                                          {quants.data(), scales.data(), sums.data(), biases.data()});
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

    /// As the cache holds it.
    void keep(Row& row) const {
        for (double& value : row) {
            value = exact_ ? value : double{float_of(half_of(static_cast<float>(value)))};
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
            keep(keys.back());
            keep(values.back());
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
    Dense embedding_, head_;
    std::vector<DenseLayer> layers_;
};

// ---- steps ----------------------------------------------------------------------------------------------------------

using Tokens = std::vector<std::int64_t>;
/// Of each sequence the logits behind each token; empty where they are not needed.
using Logits = std::vector<std::vector<std::vector<float>>>;

/// A step that is put together sequence by sequence.
class Batch {
public:
    Batch(std::size_t block_size, std::size_t table_size) : block_size_(block_size), table_size_(table_size) {}

    void add(const Tokens& tokens, std::size_t first, std::size_t count, const std::vector<std::int64_t>& blocks) {
        for (std::size_t position = first; position < first + count; ++position) {
            token_ids_.push_back(tokens[position]);
            positions_.push_back(static_cast<std::int64_t>(position));
            const auto size = static_cast<std::int64_t>(block_size_);
            slots_.push_back(blocks[position / block_size_] * size + positions_.back() % size);
        }
        query_start_.push_back(static_cast<std::int64_t>(token_ids_.size()));
        context_lens_.push_back(static_cast<std::int64_t>(first + count));
        // No block beyond the context is to be looked at.
        const std::size_t needed = (first + count + block_size_ - 1) / block_size_;
        block_tables_.insert(block_tables_.end(), table_size_, std::numeric_limits<std::int64_t>::max() / 2);
        std::copy_n(blocks.begin(), needed, block_tables_.end() - static_cast<std::ptrdiff_t>(table_size_));
    }
    std::size_t num_tokens() const { return token_ids_.size(); }

    const float* execute(Model& model, const std::vector<std::int64_t>& logits_rows) const {
        const Step step{token_ids_.size(), context_lens_.size(), query_start_.data(), context_lens_.data(),
                        token_ids_.data(), positions_.data(),    slots_.data(),       block_tables_.data(),
                        table_size_,       logits_rows.size(),   logits_rows.data()};
        return model.execute(step)->data();
    }

private:
    std::size_t block_size_, table_size_;
    std::vector<std::int64_t> query_start_{0}, context_lens_, token_ids_, positions_, slots_, block_tables_;
};

/// Computes the sequences in steps in which each of them has at most so many tokens, up to all that are left.
Logits computed(const Options& options, const TestWeights& weights, bool exact, const InstructionSet& set,
                std::size_t threads, const std::vector<Tokens>& sequences, std::size_t most_tokens,
                std::size_t most_sequences, Random& random) {
    const std::size_t size = options.block_size, vocab = options.shape.vocab_size;
    std::size_t num_blocks = 1, table_size = 1;
    for (const Tokens& tokens : sequences) {
        num_blocks += (tokens.size() + size - 1) / size;
        table_size = std::max(table_size, (tokens.size() + size - 1) / size + 1);
    }
    std::vector<std::int64_t> free(num_blocks);
    std::iota(free.begin(), free.end(), 0);
    ThreadPool pool(threads);
    rbee::Progress progress;
    Model model(options.shape, weights.weights, exact, num_blocks, size, set, pool, &progress);

    Batch nans(size, table_size);
    for (const std::int64_t block : free) {
        nans.add(Tokens(size, static_cast<std::int64_t>(weights.nan_token)), 0, size, {block});
    }
    nans.execute(model, {});
    CHECK(progress.chunks() == 3 + 11 * weights.weights.layers.size());  // one step, however many its tokens

    for (std::size_t i = num_blocks; i > 1; --i) {
        std::swap(free[i - 1], free[random.below(static_cast<std::uint32_t>(i))]);
    }
    std::vector<std::vector<std::int64_t>> tables;
    std::vector<std::size_t> done(sequences.size());
    Logits logits;
    for (const Tokens& tokens : sequences) {
        const auto count = static_cast<std::ptrdiff_t>((tokens.size() + size - 1) / size);
        tables.emplace_back(free.end() - count, free.end());
        free.erase(free.end() - count, free.end());
        logits.emplace_back(tokens.size());
    }
    for (;;) {
        Batch batch(size, table_size);
        std::vector<std::pair<std::size_t, std::size_t>> rows;  // sequence and position
        std::size_t in_step = 0;
        for (std::size_t s = 0; s < sequences.size() && in_step < most_sequences; ++s) {
            const std::size_t left = sequences[s].size() - done[s];
            if (left == 0 || (sequences.size() > 1 && random.below(4) == 0)) {
                continue;
            }
            const std::size_t most = std::min(left, most_tokens);
            const std::size_t count = random.below(3) == 0 ? 1 : 1 + random.below(static_cast<std::uint32_t>(most));
            batch.add(sequences[s], done[s], count, tables[s]);
            for (std::size_t i = 0; i < count; ++i) {
                rows.push_back({s, done[s]++});
            }
            ++in_step;
        }
        if (in_step == 0) {
            if (std::equal(done.begin(), done.end(), sequences.begin(),
                           [](std::size_t some, const Tokens& all) { return some == all.size(); })) {
                return logits;
            }
            continue;
        }
        // Of no row, or of some in any order and repeatedly, maybe more than there are; always of a sequence's last.
        std::vector<std::int64_t> asked(
            random.below(4) == 0 ? 0 : 1 + random.below(2 * static_cast<std::uint32_t>(rows.size())));
        for (std::int64_t& row : asked) {
            row = random.below(static_cast<std::uint32_t>(rows.size()));
        }
        for (std::size_t row = 0; row < rows.size(); ++row) {
            if (rows[row].second + 1 == sequences[rows[row].first].size()) {
                asked.push_back(static_cast<std::int64_t>(row));
            }
        }
        const float* results = batch.execute(model, asked);
        for (std::size_t i = 0; i < asked.size(); ++i) {
            const auto [s, position] = rows[static_cast<std::size_t>(asked[i])];
            logits[s][position].assign(results + i * vocab, results + (i + 1) * vocab);
        }
    }
}

/// NaN where the reference is, and else as near as `tolerance` times its root mean square.
void check_near(const std::vector<float>& logits, const Row& reference, double tolerance) {
    double squares = 0;
    for (const double value : reference) {
        squares += std::isnan(value) ? 0 : value * value;
    }
    const double allowed = tolerance * std::sqrt(squares / static_cast<double>(reference.size()));
    for (std::size_t i = 0; i < reference.size(); ++i) {
        const double error = std::fabs(double{logits[i]} - reference[i]);
        CHECK(std::isnan(reference[i]) ? std::isnan(logits[i]) : error <= allowed);
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
    for (const bool exact : {true, false}) {
        const Reference reference(options.shape, weights.weights, exact);
        std::vector<std::vector<Row>> expected;
        for (const Tokens& tokens : sequences) {
            expected.push_back(reference(tokens));
        }
        for (const char* name : {"portable", "avx2", "avx512"}) {
            const InstructionSet* set = find_instruction_set(name);
            if (set == nullptr) {
                continue;
            }
            const Logits chunks = computed(options, weights, exact, *set, 1, sequences, SIZE_MAX, SIZE_MAX, random);
            const Logits single = computed(options, weights, exact, *set, options.threads, sequences, 2, 1, random);
            for (std::size_t s = 0; s < sequences.size(); ++s) {
                for (std::size_t t = 0; t < sequences[s].size(); ++t) {
                    const std::vector<float>&a = chunks[s][t], &b = single[s][t];
                    for (const std::vector<float>* logits : {&a, &b}) {
                        if (!logits->empty()) {
                            check_near(*logits, expected[s][t], exact ? kExactTolerance : kRoundedTolerance);
                        }
                    }
                    if (!a.empty() && !b.empty() && !std::isnan(expected[s][t][0])) {
                        CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
                    }
                }
                CHECK(!chunks[s].back().empty() && !single[s].back().empty());
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
