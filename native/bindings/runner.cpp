// The Python face of the native model, in rbee.engine._kernels. Its documentation is rbee/engine/_kernels.pyi.
//
// Owns conversions and checks of everything that comes from Python.

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
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "rbee/progress.h"
#include "rbee_kernels/collect.h"
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
template <typename T>
using Output = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
/// Format, rows, columns, data as stored, ggml's number of its type, order of its rows.
using StoredMatrix = std::tuple<std::uint32_t, std::size_t, std::size_t, Array<std::uint8_t>, std::uint32_t,
                                std::optional<Array<std::uint32_t>>>;

void check(bool condition, const std::string& otherwise) {
    if (!condition) {
        throw std::invalid_argument(otherwise);
    }
}

/// Views; Python's arrays must stay.
kernels::NamedWeights named_weights(const std::map<std::string, StoredMatrix>& matrices,
                                    const std::map<std::string, Array<float>>& vectors) {
    kernels::NamedWeights named;
    for (const auto& [name, stored] : matrices) {
        const auto& [format, rows, cols, data, type, order] = stored;
        check(!order.has_value() || order->size() == rows,
              "The row order of '" + name + "' must have an entry per row.");
        named.matrices[name] = {format,
                                {static_cast<kernels::SourceType>(type), data.data(), data.size(), rows, cols,
                                 order.has_value() ? order->data() : nullptr}};
    }
    for (const auto& [name, data] : vectors) {
        named.vectors[name] = {data.data(), data.size()};
    }
    return named;
}

kernels::Activation activation_of(const std::string& name) {
    if (name == "silu") {
        return kernels::Activation::kSilu;
    }
    if (name == "gelu_tanh") {
        return kernels::Activation::kGeluTanh;
    }
    check(name == "relu2", "activation must be 'silu', 'gelu_tanh' or 'relu2'.");
    return kernels::Activation::kRelu2;
}

kernels::CacheFormat cache_format_of(const std::string& name) {
    if (name == "f32") {
        return kernels::CacheFormat::kF32;
    }
    if (name == "f16") {
        return kernels::CacheFormat::kF16;
    }
    check(name == "q8", "kv_cache must be 'f32', 'f16' or 'q8'.");
    return kernels::CacheFormat::kQ8;
}

/// A decoder's weights, and the arrays that they are packed from until all are.
class PyWeights {
public:
    PyWeights(const kernels::ModelShape& shape, const std::vector<std::pair<std::size_t, std::size_t>>& layers,
              const std::vector<std::pair<std::vector<float>, float>>& rotaries,
              std::map<std::string, StoredMatrix> matrices, const std::map<std::string, Array<float>>& vectors)
        : shape_(shape), sources_(std::move(matrices)) {
        check(!layers.empty(), "A model needs layers.");
        check(shape.vocab_size > 0 && shape.hidden_size > 0 && shape.intermediate_size > 0 && shape.num_heads > 0,
              "Every size of a model must be positive.");
        check(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
              "The number of heads must be a multiple of that of kv heads.");
        check(shape.head_dim > 0 && shape.head_dim % 16 == 0, "head_dim must be a multiple of 16.");
        std::vector<kernels::LayerKind> kinds;
        for (const auto& [window, rotary] : layers) {
            kinds.push_back({window, rotary});
        }
        std::vector<kernels::Rotary> angles;
        for (const auto& [frequencies, factor] : rotaries) {
            angles.push_back({frequencies, factor});
        }
        collected_.emplace(kernels::collect_weights(shape, kinds, std::move(angles), named_weights(sources_, vectors)));
    }

    std::size_t pack(std::size_t bytes, kernels::ThreadPool& pool, const std::shared_ptr<rbee::Progress>& progress) {
        std::size_t packed = 0;
        {
            const nb::gil_scoped_release release;
            rbee::Progress none;
            packed = collected_->memory.pack(bytes, pool, progress != nullptr ? *progress : none);
        }
        if (collected_->memory.is_packed()) {
            sources_.clear();
        }
        return packed;
    }
    std::size_t source_bytes() const { return collected_->memory.source_bytes(); }
    bool is_packed() const { return collected_->memory.is_packed(); }
    const kernels::ModelShape& shape() const { return shape_; }
    const kernels::Weights& weights() const { return collected_->weights; }

private:
    kernels::ModelShape shape_;
    std::map<std::string, StoredMatrix> sources_;
    std::optional<kernels::CollectedWeights> collected_;
};

class PyModel {
public:
    PyModel(const PyWeights& weights, bool exact, const std::string& kv_cache, std::size_t num_blocks,
            std::size_t block_size, const std::string& set, kernels::ThreadPool& pool,
            std::shared_ptr<rbee::Progress> progress)
        : shape_(weights.shape()),
          num_blocks_(num_blocks),
          block_size_(block_size),
          set_(kernels::choose_instruction_set(set)),
          progress_(progress != nullptr ? std::move(progress) : std::make_shared<rbee::Progress>()) {
        check(weights.is_packed(), "A model computes with packed weights; pack them all first.");
        check(num_blocks > 0 && block_size > 0, "A model needs a cache with blocks.");
        const kernels::CacheFormat format = cache_format_of(kv_cache);
        const std::size_t layers = weights.weights().layers.size();
        if (num_blocks > (std::size_t{1} << 47) / kernels::Model::block_bytes(shape_, layers, block_size, format)) {
            throw std::bad_alloc();  // more than there are addresses
        }
        const nb::gil_scoped_release release;
        model_.emplace(shape_, weights.weights(), exact, format, num_blocks, block_size, set_, pool, progress_.get());
    }

    nb::ndarray<nb::numpy, float, nb::ndim<2>> execute(
        const Array<std::int64_t>& token_ids, const Array<std::int64_t>& positions,
        const Array<std::int64_t>& slot_mapping, const Array<std::int64_t>& query_start,
        const Array<std::int64_t>& context_lens, const Table<std::int64_t>& block_tables,
        const Array<std::int64_t>& logits_rows, const std::optional<Array<std::int64_t>>& hidden_rows,
        const std::optional<Output<float>>& hidden_states) {
        const std::size_t tokens = token_ids.size(), sequences = context_lens.size();
        check(tokens > 0 && sequences > 0, "A step needs a token.");
        check(positions.size() == tokens && slot_mapping.size() == tokens,
              "positions and slot_mapping must be as long as token_ids.");
        check(
            query_start.size() == sequences + 1 && block_tables.shape(0) == sequences && query_start(0) == 0 &&
                query_start(sequences) == static_cast<std::int64_t>(tokens),
            "query_start and block_tables must have an entry per sequence, and query_start must end with the tokens.");
        check_values(token_ids, positions, slot_mapping, query_start, context_lens, block_tables, logits_rows);
        check(hidden_rows.has_value() == hidden_states.has_value(), "hidden_rows and hidden_states need each other.");
        const std::size_t num_hidden = hidden_rows.has_value() ? hidden_rows->size() : 0;
        if (hidden_rows.has_value()) {
            check_rows(*hidden_rows, tokens, "hidden states");
            check(hidden_states->shape(0) == num_hidden && hidden_states->shape(1) == shape_.hidden_size,
                  "hidden_states must have a row of hidden_size for each of hidden_rows.");
        }
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
                                 logits_rows.data(),
                                 num_hidden,
                                 num_hidden > 0 ? hidden_rows->data() : nullptr,
                                 num_hidden > 0 ? hidden_states->data() : nullptr};
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
                      context >= rows && static_cast<std::size_t>(context) <= block_tables.shape(1) * block_size_,
                  "A sequence's context must hold its tokens, and fit its block table.");
            for (std::int64_t i = 0; i < rows; ++i) {
                check(positions(static_cast<std::size_t>(query_start(s) + i)) == context - rows + i,
                      "A sequence's tokens must be the last ones of its context.");
            }
            for (std::size_t b = 0; b * block_size_ < static_cast<std::size_t>(context); ++b) {
                check(below(block_tables(s, b), num_blocks_), "A block is not in the cache.");
            }
        }
        check_rows(logits_rows, token_ids.size(), "logits");
    }

    static void check_rows(const Array<std::int64_t>& rows, std::size_t tokens, const std::string& of) {
        for (std::size_t i = 0; i < rows.size(); ++i) {
            check(rows(i) >= 0 && static_cast<std::size_t>(rows(i)) < tokens,
                  "A row of " + of + " is not in the step.");
        }
    }

    kernels::ModelShape shape_;
    std::size_t num_blocks_;
    std::size_t block_size_;
    const kernels::InstructionSet& set_;
    std::shared_ptr<rbee::Progress> progress_;
    std::optional<kernels::Model> model_;
};

}  // namespace

void bind_runner(nb::module_& m) {
    nb::list formats;
    for (const kernels::FormatLayout& layout : kernels::kFormatLayouts) {
        formats.append(layout.name);
    }
    m.attr("WEIGHT_FORMATS") = nb::tuple(formats);

    nb::class_<kernels::ModelShape>(m, "ModelShape")
        .def(
            "__init__",
            [](kernels::ModelShape* shape, std::size_t vocab_size, std::size_t hidden_size,
               std::size_t intermediate_size, std::size_t num_heads, std::size_t num_kv_heads, std::size_t head_dim,
               float epsilon, const std::string& activation, float attention_scale, float embedding_scale,
               float residual_scale, float logit_scale, float query_growth, std::size_t query_length) {
                check(query_length > 0, "query_length must be positive.");
                new (shape)
                    kernels::ModelShape{vocab_size,      hidden_size,     intermediate_size, num_heads,
                                        num_kv_heads,    head_dim,        epsilon,           activation_of(activation),
                                        attention_scale, embedding_scale, residual_scale,    logit_scale,
                                        query_growth,    query_length};
            },
            nb::kw_only(), "vocab_size"_a, "hidden_size"_a, "intermediate_size"_a, "num_heads"_a, "num_kv_heads"_a,
            "head_dim"_a, "epsilon"_a, "activation"_a, "attention_scale"_a, "embedding_scale"_a,
            "residual_scale"_a = 1.0F, "logit_scale"_a = 1.0F, "query_growth"_a = 0.0F, "query_length"_a = 1)
        .def(
            "block_bytes",
            [](const kernels::ModelShape& shape, std::size_t num_layers, std::size_t block_size,
               const std::string& kv_cache) {
                return kernels::Model::block_bytes(shape, num_layers, block_size, cache_format_of(kv_cache));
            },
            nb::kw_only(), "num_layers"_a, "block_size"_a, "kv_cache"_a);
    nb::class_<PyWeights>(m, "Weights")
        .def(nb::init<const kernels::ModelShape&, const std::vector<std::pair<std::size_t, std::size_t>>&,
                      const std::vector<std::pair<std::vector<float>, float>>&, std::map<std::string, StoredMatrix>,
                      const std::map<std::string, Array<float>>&>(),
             "shape"_a, nb::kw_only(), "layers"_a, "rotaries"_a, "matrices"_a, "vectors"_a)
        .def_prop_ro("source_bytes", &PyWeights::source_bytes)
        .def("pack", &PyWeights::pack, "num_bytes"_a, "pool"_a, nb::arg("progress").none() = nb::none());
    nb::class_<PyModel>(m, "Model")
        .def(nb::init<const PyWeights&, bool, const std::string&, std::size_t, std::size_t, const std::string&,
                      kernels::ThreadPool&, std::shared_ptr<rbee::Progress>>(),
             nb::keep_alive<1, 2>(), nb::keep_alive<1, 8>(), "weights"_a, nb::kw_only(), "exact"_a, "kv_cache"_a,
             "num_blocks"_a, "block_size"_a, "instruction_set"_a, "pool"_a, nb::arg("progress").none() = nb::none())
        .def("execute", &PyModel::execute, nb::arg("token_ids").noconvert(), nb::arg("positions").noconvert(),
             nb::arg("slot_mapping").noconvert(), nb::arg("query_start").noconvert(),
             nb::arg("context_lens").noconvert(), nb::arg("block_tables").noconvert(),
             nb::arg("logits_rows").noconvert(), nb::arg("hidden_rows").noconvert().none() = nb::none(),
             nb::arg("hidden_states").noconvert().none() = nb::none())
        .def("profile", &PyModel::profile)
        .def_prop_ro("instruction_set", &PyModel::instruction_set_name);
}
