// The Python face of the native model, in rbee.engine._kernels. Its documentation is rbee/engine/_kernels.pyi.
//
// Owns conversions, checks of everything that comes from Python, and the memory that weights are streamed from.

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "rbee_kernels/model.h"

#include "kernels_module.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

namespace kernels = rbee::kernels;

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Table = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
/// Format, rows, columns, packed data.
using PackedMatrix = std::tuple<std::uint32_t, std::size_t, std::size_t, Array<std::uint8_t>>;

void check(bool condition, const std::string& otherwise) {
    if (!condition) {
        throw std::invalid_argument(otherwise);
    }
}

const kernels::InstructionSet& instruction_set(const std::string& name) {
    const kernels::InstructionSet* set = kernels::find_instruction_set(name.c_str());
    check(set != nullptr, "This processor does not have the instruction set '" + name +
                              "', or rbee does not know it. Use 'auto', 'avx512', 'avx2' or 'portable'.");
    return *set;
}

/// Copies of all weights in the order in which a step reads them, on huge pages.
class Memory {
public:
    explicit Memory(std::size_t bytes) : region_(bytes), end_(region_.data()) {}

    const unsigned char* copy(const void* data, std::size_t bytes) {
        unsigned char* start = end_;
        copies_.push_back({start, data, bytes});
        end_ += padded(bytes);
        return start;
    }
    /// Two matrices with as many panels: the first of the one, the first of the other, the second of the one ...
    void interleave(kernels::Matrix& one, kernels::Matrix& other) {
        const std::size_t size = kernels::panel_bytes(one.format, one.cols);
        const std::size_t other_size = kernels::panel_bytes(other.format, other.cols);
        kernels::Matrix merged_one = one, merged_other = other;
        merged_one.stride = merged_other.stride = padded(size) + padded(other_size);
        merged_one.data = end_;
        merged_other.data = end_ + padded(size);
        for (std::size_t panel = 0; panel < one.num_panels(); ++panel) {
            copy(one.panel(panel), size);
            copy(other.panel(panel), other_size);
        }
        one = merged_one;
        other = merged_other;
    }
    static std::size_t padded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

    /// Copies what was announced. In pieces, side by side: half of the time goes into the pages' first use.
    void fill(kernels::ThreadPool& pool) {
        struct Part {
            unsigned char* to;
            const unsigned char* from;
            std::size_t bytes;
        };
        constexpr std::size_t kPart = std::size_t{1} << 20;
        std::vector<Part> parts;
        for (const Copy& copy : copies_) {
            for (std::size_t at = 0; at < copy.bytes; at += kPart) {
                parts.push_back({copy.to + at, static_cast<const unsigned char*>(copy.from) + at,
                                 std::min(kPart, copy.bytes - at)});
            }
        }
        pool.for_each(parts.size(), [&](std::size_t i, std::size_t) {
            std::memcpy(parts[i].to, parts[i].from, parts[i].bytes);
        });
        copies_.clear();
    }

private:
    struct Copy {
        unsigned char* to;
        const void* from;
        std::size_t bytes;
    };
    kernels::Region region_;
    unsigned char* end_;
    std::vector<Copy> copies_;
};

/// Takes the weights by their names, and says which one does not fit.
class Collector {
public:
    Collector(const std::map<std::string, PackedMatrix>& matrices, const std::map<std::string, Array<float>>& vectors)
        : matrices_(matrices), vectors_(vectors), memory_(total()) {}

    kernels::Matrix matrix(const std::string& name, std::size_t rows, std::size_t cols) {
        kernels::Matrix matrix = find(name, rows, cols);
        matrix.data = memory_.copy(matrix.data, matrix.bytes());
        return matrix;
    }
    std::pair<kernels::Matrix, kernels::Matrix> interleaved(const std::string& name, const std::string& other_name,
                                                            std::size_t rows, std::size_t cols) {
        std::pair<kernels::Matrix, kernels::Matrix> both{find(name, rows, cols), find(other_name, rows, cols)};
        memory_.interleave(both.first, both.second);
        return both;
    }
    bool has_matrix(const std::string& name) const { return matrices_.count(name) != 0; }

    /// Null if there is none.
    const float* vector(const std::string& name, std::size_t size) {
        const auto found = vectors_.find(name);
        if (found == vectors_.end()) {
            return nullptr;
        }
        check(found->second.size() == size, "The vector '" + name + "' has " + std::to_string(found->second.size()) +
                                                " numbers, but the model needs " + std::to_string(size) + ".");
        return reinterpret_cast<const float*>(memory_.copy(found->second.data(), size * sizeof(float)));
    }
    const float* needed_vector(const std::string& name, std::size_t size) {
        const float* data = vector(name, size);
        check(data != nullptr, "The vector '" + name + "' is missing.");
        return data;
    }

    Memory take(kernels::ThreadPool& pool) {
        memory_.fill(pool);
        return std::move(memory_);
    }

private:
    /// As it is in Python's memory.
    kernels::Matrix find(const std::string& name, std::size_t rows, std::size_t cols) const {
        const auto found = matrices_.find(name);
        check(found != matrices_.end(), "The matrix '" + name + "' is missing.");
        const auto& [format, its_rows, its_cols, data] = found->second;
        check(its_rows == rows && its_cols == cols,
              "The matrix '" + name + "' is " + std::to_string(its_rows) + " x " + std::to_string(its_cols) +
                  ", but the model needs " + std::to_string(rows) + " x " + std::to_string(cols) + ".");
        check(format <= static_cast<std::uint32_t>(kernels::WeightFormat::kQ8Fine),
              "The matrix '" + name + "' has the unknown format " + std::to_string(format) + ".");
        kernels::Matrix matrix{static_cast<kernels::WeightFormat>(format), rows, cols, nullptr};
        check(!kernels::is_quantized(matrix.format) || cols % kernels::kGroup == 0,
              "The matrix '" + name + "' is quantized, but its columns are no multiple of 32.");
        check(matrix.bytes() == data.size(), "The matrix '" + name + "' has " + std::to_string(data.size()) +
                                                 " bytes, but its format needs " + std::to_string(matrix.bytes()) + ".");
        matrix.data = data.data();
        return matrix;
    }

    std::size_t total() const {
        std::size_t bytes = 0;
        for (const auto& [name, packed] : matrices_) {
            const auto& [format, rows, cols, data] = packed;
            bytes += Memory::padded(data.size()) + (rows / kernels::kPanelRows + 1) * Memory::padded(1);  // interleaved
        }
        for (const auto& [name, data] : vectors_) {
            bytes += Memory::padded(data.size() * sizeof(float));
        }
        return bytes;
    }

    const std::map<std::string, PackedMatrix>& matrices_;
    const std::map<std::string, Array<float>>& vectors_;
    Memory memory_;
};

class PyModel {
public:
    PyModel(const kernels::ModelShape& shape, const std::vector<std::pair<std::size_t, std::size_t>>& layers,
            const std::vector<std::pair<std::vector<float>, float>>& rotaries,
            const std::map<std::string, PackedMatrix>& matrices, const std::map<std::string, Array<float>>& vectors,
            bool exact, std::size_t num_blocks, std::size_t block_size, const std::string& set,
            kernels::ThreadPool& pool)
        : shape_(shape), num_blocks_(num_blocks), block_size_(block_size), set_(instruction_set(set)) {
        check(!layers.empty() && num_blocks > 0 && block_size > 0, "A model needs layers, and a cache with blocks.");
        check(shape.vocab_size > 0 && shape.hidden_size > 0 && shape.intermediate_size > 0 && shape.num_heads > 0,
              "Every size of a model must be positive.");
        check(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
              "The number of heads must be a multiple of that of kv heads.");
        check(shape.head_dim > 0 && shape.head_dim % 16 == 0, "head_dim must be a multiple of 16.");
        const std::size_t block_bytes = kernels::Model::block_bytes(shape, layers.size(), block_size, exact);
        if (num_blocks > (std::size_t{1} << 47) / block_bytes) {  // more than there are addresses
            throw std::bad_alloc();
        }
        Collector collector(matrices, vectors);
        kernels::Weights weights = collect(collector, layers, rotaries);
        const nb::gil_scoped_release release;
        memory_.emplace(collector.take(pool));
        model_.emplace(shape, std::move(weights), exact, num_blocks, block_size, set_, pool);
    }

    nb::ndarray<nb::numpy, float, nb::ndim<2>> execute(const Array<std::int64_t>& token_ids,
                                                      const Array<std::int64_t>& positions,
                                                      const Array<std::int64_t>& slot_mapping,
                                                      const Array<std::int64_t>& query_start,
                                                      const Array<std::int64_t>& context_lens,
                                                      const Table<std::int64_t>& block_tables,
                                                      const Array<std::int64_t>& logits_rows) {
        const std::size_t tokens = token_ids.size(), sequences = context_lens.size();
        check(tokens > 0 && sequences > 0, "A step needs a token.");
        check(positions.size() == tokens && slot_mapping.size() == tokens,
              "positions and slot_mapping must be as long as token_ids.");
        check(query_start.size() == sequences + 1 && block_tables.shape(0) == sequences && query_start(0) == 0 &&
                  query_start(sequences) == static_cast<std::int64_t>(tokens),
              "query_start and block_tables must have an entry per sequence, and query_start must end with the tokens.");
        check_values(token_ids, positions, slot_mapping, query_start, context_lens, block_tables, logits_rows);
        const kernels::Step step{tokens,
                                 sequences,
                                 query_start.data(),
                                 context_lens.data(),
                                 token_ids.data(),
                                 positions.data(),
                                 slot_mapping.data(),
                                 block_tables.data(),
                                 block_tables.shape(1),
                                 logits_rows.size(),
                                 logits_rows.data()};
        using Logits = std::shared_ptr<kernels::Buffer<float>>;
        auto logits = std::make_unique<Logits>();
        {
            const nb::gil_scoped_release release;
            *logits = model_->execute(step);
        }
        float* data = (*logits)->data();
        nb::capsule owner(logits.get(), [](void* held) noexcept { delete static_cast<Logits*>(held); });
        (void)logits.release();
        return {data, {logits_rows.size(), shape_.vocab_size}, owner};
    }

    std::map<std::string, double> profile() const {
        const kernels::Profile profile = model_->profile();
        return {{"linear", profile.linear},
                {"head", profile.head},
                {"attention", profile.attention},
                {"other", profile.other},
                {"steps", profile.steps}};
    }
    const char* instruction_set_name() const { return set_.name; }

private:
    kernels::Weights collect(Collector& from, const std::vector<std::pair<std::size_t, std::size_t>>& layers,
                             const std::vector<std::pair<std::vector<float>, float>>& rotaries) const {
        const std::size_t hidden = shape_.hidden_size, wide = shape_.num_heads * shape_.head_dim;
        const std::size_t narrow = shape_.num_kv_heads * shape_.head_dim, mlp = shape_.intermediate_size;
        kernels::Weights weights;
        for (const auto& [frequencies, factor] : rotaries) {
            check(frequencies.size() == shape_.head_dim / 2, "A rotary embedding needs a frequency per pair of a head.");
            weights.rotaries.push_back({frequencies, factor});
        }
        for (std::size_t i = 0; i < layers.size(); ++i) {
            const auto name = [i](const char* part) { return "layers." + std::to_string(i) + "." + part; };
            const auto linear = [&](const char* part, std::size_t rows, std::size_t cols) {
                const kernels::Matrix matrix = from.matrix(name(part), rows, cols);
                return kernels::Linear{matrix, from.vector(name(part) + "_bias", rows)};
            };
            check(layers[i].second < rotaries.size(), "A layer has a rotary embedding that is not there.");
            kernels::Layer layer;
            layer.window = layers[i].first;
            layer.rotary = layers[i].second;
            layer.attention_norm = from.needed_vector(name("attention_norm"), hidden);
            layer.query = linear("query", wide, hidden);
            layer.key = linear("key", narrow, hidden);
            layer.value = linear("value", narrow, hidden);
            layer.query_norm = from.vector(name("query_norm"), shape_.head_dim);
            layer.key_norm = from.vector(name("key_norm"), shape_.head_dim);
            layer.output = linear("output", hidden, wide);
            layer.post_attention_norm = from.vector(name("post_attention_norm"), hidden);
            layer.mlp_norm = from.needed_vector(name("mlp_norm"), hidden);
            std::tie(layer.gate.matrix, layer.up.matrix) = from.interleaved(name("gate"), name("up"), mlp, hidden);
            layer.gate.bias = from.vector(name("gate_bias"), mlp);
            layer.up.bias = from.vector(name("up_bias"), mlp);
            layer.down = linear("down", hidden, mlp);
            layer.post_mlp_norm = from.vector(name("post_mlp_norm"), hidden);
            check((layer.post_attention_norm == nullptr) == (layer.post_mlp_norm == nullptr) &&
                      (i == 0 || (layer.post_mlp_norm == nullptr) == (weights.layers[0].post_mlp_norm == nullptr)),
                  "All layers must have both norms behind their halves, or none.");
            weights.layers.push_back(layer);
        }
        weights.final_norm = from.needed_vector("final_norm", hidden);
        weights.embedding = from.matrix("embedding", shape_.vocab_size, hidden);
        weights.head = from.has_matrix("head") ? from.matrix("head", shape_.vocab_size, hidden) : weights.embedding;
        return weights;
    }

    void check_values(const Array<std::int64_t>& token_ids, const Array<std::int64_t>& positions,
                      const Array<std::int64_t>& slot_mapping, const Array<std::int64_t>& query_start,
                      const Array<std::int64_t>& context_lens, const Table<std::int64_t>& block_tables,
                      const Array<std::int64_t>& logits_rows) const {
        const auto below = [](std::int64_t value, std::size_t limit) {
            return value >= 0 && static_cast<std::size_t>(value) < limit;
        };
        for (std::size_t t = 0; t < token_ids.size(); ++t) {
            check(below(token_ids(t), shape_.vocab_size), "A token is not in the vocabulary.");
            check(below(slot_mapping(t), num_blocks_ * block_size_), "A slot is not in the cache.");
        }
        for (std::size_t s = 0; s < context_lens.size(); ++s) {
            const std::int64_t rows = query_start(s + 1) - query_start(s), context = context_lens(s);
            check(query_start(s + 1) > query_start(s) && below(query_start(s + 1) - 1, token_ids.size()) &&
                      context >= rows &&
                      static_cast<std::size_t>(context) <= block_tables.shape(1) * block_size_,
                  "A sequence's context must hold its tokens, and fit its block table.");
            for (std::int64_t i = 0; i < rows; ++i) {
                check(positions(static_cast<std::size_t>(query_start(s) + i)) == context - rows + i,
                      "A sequence's tokens must be the last ones of its context.");
            }
            for (std::size_t b = 0; b * block_size_ < static_cast<std::size_t>(context); ++b) {
                check(below(block_tables(s, b), num_blocks_), "A block is not in the cache.");
            }
        }
        for (std::size_t i = 0; i < logits_rows.size(); ++i) {
            check(below(logits_rows(i), token_ids.size()), "A row of logits is not in the step.");
        }
    }

    kernels::ModelShape shape_;
    std::size_t num_blocks_;
    std::size_t block_size_;
    const kernels::InstructionSet& set_;
    std::optional<Memory> memory_;
    std::optional<kernels::Model> model_;
};

}  // namespace

void bind_runner(nb::module_& m) {
    nb::class_<kernels::ModelShape>(m, "ModelShape")
        .def(
            "__init__",
            [](kernels::ModelShape* shape, std::size_t vocab_size, std::size_t hidden_size,
               std::size_t intermediate_size, std::size_t num_heads, std::size_t num_kv_heads, std::size_t head_dim,
               float epsilon, const std::string& activation, float attention_scale, float embedding_scale) {
                check(activation == "silu" || activation == "gelu_tanh", "activation must be 'silu' or 'gelu_tanh'.");
                new (shape) kernels::ModelShape{
                    vocab_size, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, epsilon,
                    activation == "silu" ? kernels::Activation::kSilu : kernels::Activation::kGeluTanh,
                    attention_scale, embedding_scale};
            },
            nb::kw_only(), "vocab_size"_a, "hidden_size"_a, "intermediate_size"_a, "num_heads"_a, "num_kv_heads"_a,
            "head_dim"_a, "epsilon"_a, "activation"_a, "attention_scale"_a, "embedding_scale"_a)
        .def(
            "block_bytes",
            [](const kernels::ModelShape& shape, std::size_t num_layers, std::size_t block_size, bool exact) {
                return kernels::Model::block_bytes(shape, num_layers, block_size, exact);
            },
            nb::kw_only(), "num_layers"_a, "block_size"_a, "exact"_a);
    nb::class_<PyModel>(m, "Model")
        .def(nb::init<const kernels::ModelShape&, const std::vector<std::pair<std::size_t, std::size_t>>&,
                      const std::vector<std::pair<std::vector<float>, float>>&,
                      const std::map<std::string, PackedMatrix>&, const std::map<std::string, Array<float>>&, bool,
                      std::size_t, std::size_t, const std::string&, kernels::ThreadPool&>(),
             nb::keep_alive<1, 11>(), "shape"_a, nb::kw_only(), "layers"_a, "rotaries"_a, "matrices"_a, "vectors"_a,
             "exact"_a, "num_blocks"_a, "block_size"_a, "instruction_set"_a, "pool"_a)
        .def(
            "execute", &PyModel::execute,
            nb::arg("token_ids").noconvert(), nb::arg("positions").noconvert(), nb::arg("slot_mapping").noconvert(),
            nb::arg("query_start").noconvert(), nb::arg("context_lens").noconvert(),
            nb::arg("block_tables").noconvert(), nb::arg("logits_rows").noconvert())
        .def("profile", &PyModel::profile)
        .def_prop_ro("instruction_set", &PyModel::instruction_set_name);
}
