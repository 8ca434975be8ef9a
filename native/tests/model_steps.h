// Sequences as the model computes them: in random steps, on scattered blocks of a cache that was full of NaN.
//
// Owns how sequences are divided into steps and where their tokens lie in the cache. Does not know what the logits must
// be.

#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "rbee_kernels/model.h"

#include "check.h"
#include "model_weights.h"

namespace rbee::kernels::test {

using Tokens = std::vector<std::int64_t>;
/// Of each sequence a row for each token; empty where it is not needed.
using Rows = std::vector<std::vector<std::vector<float>>>;
struct Results {
    Rows logits;
    Rows hidden;
};

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

    const float* execute(Model& model, const std::vector<std::int64_t>& logits_rows,
                         const std::vector<std::int64_t>& hidden_rows = {}, float* hidden_states = nullptr) const {
        const Step step{token_ids_.size(),  context_lens_.size(), query_start_.data(), context_lens_.data(),
                        token_ids_.data(),  positions_.data(),    slots_.data(),       block_tables_.data(),
                        table_size_,        logits_rows.size(),   logits_rows.data(),  hidden_rows.size(),
                        hidden_rows.data(), hidden_states};
        return model.execute(step)->data();
    }

private:
    std::size_t block_size_, table_size_;
    std::vector<std::int64_t> query_start_{0}, context_lens_, token_ids_, positions_, slots_, block_tables_;
};

/// Computes the sequences in steps in which each of them has at most so many tokens, up to all that are left.
inline Results computed(const Options& options, const TestWeights& weights, bool exact, CacheFormat cache,
                        const InstructionSet& set, std::size_t threads, const std::vector<Tokens>& sequences,
                        std::size_t most_tokens, std::size_t most_sequences, Random& random) {
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
    Model model(options.shape, weights.weights, exact, cache, num_blocks, size, set, pool, &progress);

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
    Rows logits, hidden;
    for (const Tokens& tokens : sequences) {
        const auto count = static_cast<std::ptrdiff_t>((tokens.size() + size - 1) / size);
        tables.emplace_back(free.end() - count, free.end());
        free.erase(free.end() - count, free.end());
        logits.emplace_back(tokens.size());
        hidden.emplace_back(tokens.size());
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
                return {std::move(logits), std::move(hidden)};
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
        // Hidden states of others, or of none.
        std::vector<std::int64_t> kept;
        for (std::size_t row = 0; row < rows.size(); ++row) {
            if (random.below(2) == 0) {
                kept.insert(kept.begin() + random.below(2) * static_cast<std::ptrdiff_t>(kept.size()),
                            static_cast<std::int64_t>(row));
            }
        }
        const std::size_t width = options.shape.hidden_size;
        std::vector<float> states(kept.size() * width);
        const float* results = batch.execute(model, asked, kept, states.data());
        for (std::size_t i = 0; i < kept.size(); ++i) {
            const auto [s, position] = rows[static_cast<std::size_t>(kept[i])];
            hidden[s][position].assign(states.data() + i * width, states.data() + (i + 1) * width);
        }
        for (std::size_t i = 0; i < asked.size(); ++i) {
            const auto [s, position] = rows[static_cast<std::size_t>(asked[i])];
            logits[s][position].assign(results + i * vocab, results + (i + 1) * vocab);
        }
    }
}

}  // namespace rbee::kernels::test
