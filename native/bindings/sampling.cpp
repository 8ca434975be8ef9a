// The Python face of the sampling kernels, in rbee.engine._kernels. Its documentation is rbee/engine/_kernels.pyi.
//
// Owns conversions, the memory that rows are sampled in (one per thread, which stays as large as its largest row), and
// their distribution among threads. The GIL is released while rows are sampled; their arrays are held, and nothing of
// Python is touched.

#include <deque>
#include <exception>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "rbee_kernels/sampling.h"
#include "rbee_kernels/thread_pool.h"

#include "kernels_module.h"
#include "python_memory.h"

using namespace nb::literals;

namespace {

namespace kernels = rbee::kernels;

template <typename T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Table = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

kernels::Sampler& sampler(bool portable) {
    static thread_local kernels::Sampler best(kernels::best_kernels());
    static thread_local kernels::Sampler plain(kernels::kPortable);
    return portable ? plain : best;
}

/// row(i, memory) for each of n rows, on the pool's threads if there are several of both.
template <typename Row>
void for_rows(std::size_t n, kernels::ThreadPool* pool, bool portable, Row row) {
    if (n < 2 || pool == nullptr || pool->threads() == 1) {
        kernels::Sampler& memory = sampler(portable);
        for (std::size_t i = 0; i < n; ++i) {
            row(i, memory);
        }
        return;
    }
    std::vector<std::exception_ptr> failures(pool->threads());  // a thread may run out of memory
    pool->for_each(n, [&](std::size_t i, std::size_t thread) {
        try {
            row(i, sampler(portable));
        } catch (...) {
            failures[thread] = std::current_exception();
        }
    });
    for (const std::exception_ptr& failure : failures) {
        if (failure) {
            std::rethrow_exception(failure);
        }
    }
}

std::vector<std::uint8_t> bits_of(const std::vector<std::uint32_t>& ids) {
    std::vector<std::uint8_t> bits;
    for (const std::uint32_t id : ids) {
        if (id / 8 >= bits.size()) {
            bits.resize(id / 8 + 1);
        }
        bits[id / 8] = static_cast<std::uint8_t>(bits[id / 8] | (1U << (id % 8)));
    }
    return bits;
}

void check(bool condition, const char* otherwise) {
    if (!condition) {
        throw std::invalid_argument(otherwise);
    }
}

/// A row's parameters, its sequence and its mask, which cannot change while this exists. The tokens are looked at for
/// penalties only: otherwise their number will do.
struct Held {
    explicit Held(nb::handle row)
        : params(nb::cast<const kernels::RowParams*>(row[0])),
          num_tokens(nb::len(nb::object(row[1]))),
          num_prompt_tokens(nb::cast<std::size_t>(row[2])) {
        check(num_prompt_tokens <= num_tokens, "num_prompt_tokens is more than there are token_ids.");
        if (kernels::reads_tokens(*params)) {
            token_ids.emplace(row[1], "token_ids");
        }
        if (const nb::object given = row[3]; !given.is_none()) {
            mask.emplace(given, "mask");
        }
    }
    kernels::Context context() const {
        kernels::Context context{token_ids ? token_ids->data() : nullptr, num_tokens, num_prompt_tokens};
        if (mask) {  // the bytes of little-endian words
            context.mask = reinterpret_cast<const std::uint8_t*>(mask->data());
            context.mask_bytes = mask->size() * sizeof(std::uint32_t);
        }
        return context;
    }

    const kernels::RowParams* params;
    std::size_t num_tokens;
    std::size_t num_prompt_tokens;
    std::optional<Column<std::uint32_t>> token_ids;
    std::optional<Column<std::uint32_t>> mask;
};

void check_sizes(const Logits& logits) {
    check(logits.shape(1) >= 1 && logits.shape(1) <= UINT32_MAX, "logits must have a column for each token.");
}

void sample(const Logits& logits, const nb::sequence& rows, const Array<std::uint32_t>& token_ids,
            const Array<float>& logprobs, const Array<bool>& valid, const Table<std::uint32_t>& top_ids,
            const Table<float>& top_logprobs, kernels::ThreadPool* pool, bool portable) {
    const std::size_t n = logits.shape(0), size = logits.shape(1), width = top_ids.shape(1);
    check_sizes(logits);
    check(token_ids.shape(0) == n && logprobs.shape(0) == n && valid.shape(0) == n && top_ids.shape(0) == n &&
              top_logprobs.shape(0) == n && top_logprobs.shape(1) == width && nb::len(rows) == n,
          "rows and all results must have an entry per row of the logits.");
    std::deque<Held> held;
    for (nb::handle row : rows) {
        held.emplace_back(row);
        check(held.back().params->num_logprobs.value_or(0) <= width, "top_ids has less columns than logprobs are due.");
    }
    const nb::gil_scoped_release release;
    for_rows(n, pool, portable, [&](std::size_t i, kernels::Sampler& memory) {
        const kernels::RowParams& params = *held[i].params;
        const float* row = logits.data() + i * size;
        const kernels::Choice choice = memory.sample(row, size, params, held[i].context());
        token_ids.data()[i] = choice.token_id;
        valid.data()[i] = choice.valid;
        logprobs.data()[i] = std::numeric_limits<float>::quiet_NaN();
        if (choice.valid && params.num_logprobs) {
            logprobs.data()[i] = memory.score(row, size, choice.token_id, *params.num_logprobs,
                                              top_ids.data() + i * width, top_logprobs.data() + i * width);
        }
    });
}

void score(const Logits& logits, const Array<const std::uint32_t>& token_ids, const Array<float>& logprobs,
           const Array<std::uint32_t>& ranks, const Table<std::uint32_t>& top_ids, const Table<float>& top_logprobs,
           kernels::ThreadPool* pool, bool portable) {
    const std::size_t n = logits.shape(0), size = logits.shape(1), width = top_ids.shape(1);
    check_sizes(logits);
    check(token_ids.shape(0) == n && logprobs.shape(0) == n && ranks.shape(0) == n && top_ids.shape(0) == n &&
              top_logprobs.shape(0) == n && top_logprobs.shape(1) == width,
          "token_ids and all results must have an entry per row of the logits.");
    check(width <= size, "There are not as many tokens as logprobs are due.");
    const nb::gil_scoped_release release;
    for_rows(n, pool, portable, [&](std::size_t i, kernels::Sampler& memory) {
        const float* row = logits.data() + i * size;
        const std::uint32_t token_id = token_ids.data()[i];
        logprobs.data()[i] =
            memory.score(row, size, token_id, width, top_ids.data() + i * width, top_logprobs.data() + i * width);
        ranks.data()[i] = kernels::Sampler::rank(row, size, token_id);
    });
}

bool distribution(const Logits& logits, nb::handle row, const Array<double>& probabilities, bool portable) {
    check_sizes(logits);
    check(logits.shape(0) == 1 && probabilities.shape(0) == logits.shape(1),
          "logits must be one row, and probabilities as long.");
    const Held held(row);
    return sampler(portable).distribution(logits.data(), logits.shape(1), *held.params, held.context(),
                                          probabilities.data());
}

}  // namespace

void bind_sampling(nb::module_& m) {
    nb::class_<kernels::RowParams>(m, "RowParams")
        .def(
            "__init__",
            [](kernels::RowParams* params, double temperature, std::size_t top_k, double top_p, double min_p,
               double typical_p, double frequency_penalty, double presence_penalty, double repetition_penalty,
               std::size_t min_tokens, std::uint64_t seed, std::vector<std::pair<std::uint32_t, double>> logit_bias,
               std::vector<std::uint32_t> stop_token_ids,
               const std::optional<std::vector<std::uint32_t>>& allowed_token_ids,
               std::optional<std::size_t> num_logprobs) {
                std::optional<std::vector<std::uint8_t>> allowed;
                if (allowed_token_ids) {
                    allowed = bits_of(*allowed_token_ids);
                }
                new (params) kernels::RowParams{temperature,
                                                top_k,
                                                top_p,
                                                min_p,
                                                typical_p,
                                                frequency_penalty,
                                                presence_penalty,
                                                repetition_penalty,
                                                min_tokens,
                                                seed,
                                                std::move(logit_bias),
                                                std::move(stop_token_ids),
                                                std::move(allowed),
                                                num_logprobs};
            },
            nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a, "frequency_penalty"_a,
            "presence_penalty"_a, "repetition_penalty"_a, "min_tokens"_a, "seed"_a, "logit_bias"_a, "stop_token_ids"_a,
            nb::arg("allowed_token_ids").none(), nb::arg("num_logprobs").none());

    // A conversion would be a copy, and results would be written to it.
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("sample", &sample, array("logits"), "rows"_a, nb::kw_only(), array("token_ids"), array("logprobs"),
          array("valid"), array("top_ids"), array("top_logprobs"), "pool"_a = nb::none(), "portable"_a = false);
    m.def("score", &score, array("logits"), array("token_ids"), nb::kw_only(), array("logprobs"), array("ranks"),
          array("top_ids"), array("top_logprobs"), "pool"_a = nb::none(), "portable"_a = false);
    m.def("distribution", &distribution, array("logits"), "row"_a, nb::kw_only(), array("probabilities"),
          "portable"_a = false);
    m.def("uniform", &kernels::uniform, "seed"_a, "position"_a);
}
