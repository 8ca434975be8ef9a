#include "rbee_kernels/model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace rbee::kernels {
namespace {

// Rows of activations that a product takes at a time: with the longest rows they stay in the second-level cache.
constexpr std::size_t kBlockRows = 128;
// So few rows are prepared by every thread for itself rather than by one for all: that saves a phase. On two cores of
// Zen 5 a forward pass of one row takes 0.96 (drawn) to 0.99 (greedy) of the time without; of two rows, the same time.
constexpr std::size_t kOwnRows = 2;
// Tokens in a chunk of what is done token by token.
constexpr std::size_t kTokensPerChunk = 8;
// A chunk should take some microseconds: a claim costs a tenth of one, and a thread that is late at the end is waited
// for.
constexpr double kChunkNs = 8000;
// What a thread reads and computes in a nanosecond, for estimates.
constexpr double kBytesPerNs = 24;
constexpr double kMacsPerNs = 150;

std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

/// Share `index` of `count` as even shares of `size` things: [first, second).
std::pair<std::size_t, std::size_t> share(std::size_t size, std::size_t index, std::size_t count) {
    return {size * index / count, size * (index + 1) / count};
}

/// Of all layers: their blocks of the same number lie together.
CacheLayout layout_of(const ModelShape& shape, std::size_t num_layers, std::size_t block_size, CacheFormat format) {
    CacheLayout layout{block_size, shape.num_kv_heads, shape.head_dim, format};
    layout.block_stride = num_layers * (layout.key_block() + layout.value_block());
    return layout;
}

}  // namespace

void Model::Inputs::reserve(std::size_t rows, std::size_t cols) {
    const std::size_t groups = divide_up(cols, kGroup);
    values.reserve(rows * cols);
    quants.reserve(rows * groups * kGroup);
    scales.reserve(rows * groups);
    sums.reserve(rows * groups);
    biases.reserve(rows * groups);
    half_sums.reserve(rows * groups);
}

std::size_t Model::block_bytes(const ModelShape& shape, std::size_t num_layers, std::size_t block_size,
                               CacheFormat format) {
    const CacheLayout layout = layout_of(shape, num_layers, block_size, format);
    return layout.block_stride * layout.element_bytes();
}

Model::Model(const ModelShape& shape, Weights weights, bool exact, CacheFormat cache_format, std::size_t num_blocks,
             std::size_t block_size, const InstructionSet& set, ThreadPool& pool, Progress* progress)
    : shape_(shape),
      weights_(std::move(weights)),
      exact_(exact),
      has_post_norms_(false),
      layout_(layout_of(shape, weights_.layers.size(), block_size, cache_format)),
      set_(set),
      pool_(pool),
      progress_(progress),
      attention_(layout_, shape.num_heads / shape.num_kv_heads, pool.threads()),
      cache_(num_blocks * layout_.block_stride * layout_.element_bytes()),
      threads_(pool.threads()) {
    const std::size_t wide = shape.num_heads * shape.head_dim;
    const std::size_t most_cols = std::max({shape.hidden_size, shape.intermediate_size, wide});
    for (Thread& thread : threads_) {
        thread.inputs.reserve(kOwnRows, most_cols);
        thread.linear_scratch.reserve(set.linear.scratch_bytes(most_cols));
        thread.attention_scratch.reserve(set.attention.scratch_bytes(layout_, shape.num_heads / shape.num_kv_heads));
        thread.tile.reserve(kBlockRows * kPanelRows);
    }
    phases_.push_back({Part::kEmbedding, 0});
    for (std::size_t layer = 0; layer < weights_.layers.size(); ++layer) {
        has_post_norms_ |= weights_.layers[layer].post_mlp_norm != nullptr;
        for (const Part part :
             {Part::kAttentionInput, Part::kProjections, Part::kStore, Part::kAttention, Part::kMerge,
              Part::kOutputInput, Part::kOutput, Part::kMlpInput, Part::kGate, Part::kDownInput, Part::kDown}) {
            phases_.push_back({part, static_cast<std::uint32_t>(layer)});
        }
    }
    phases_.push_back({Part::kHeadInput, 0});
    phases_.push_back({Part::kHead, 0});
}

const std::shared_ptr<Buffer<float>>& Model::execute(const Step& step) {
    const auto started = std::chrono::steady_clock::now();
    step_ = &step;
    ++serial_;
    reserve(step);
    attention_.make(step);
    reserve_parts();
    divide(step);
    pool_.run(*this);
    step_ = nullptr;
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    return logits_;
}

Profile Model::profile() const {
    Profile all;
    for (const Thread& thread : threads_) {
        all.linear += thread.profile.linear;
        all.head += thread.profile.head;
        all.attention += thread.profile.attention;
        all.other += thread.profile.other;
    }
    all.steps = seconds_;
    return all;
}

void Model::reserve(const Step& step) {
    const std::size_t tokens = step.num_tokens;
    const std::size_t wide = shape_.num_heads * shape_.head_dim;
    const std::size_t most_cols = std::max({shape_.hidden_size, shape_.intermediate_size, wide});
    const std::size_t angles = weights_.rotaries.size() * tokens * shape_.head_dim / 2;
    x_.reserve(tokens * shape_.hidden_size);
    sum_.reserve(tokens * shape_.hidden_size);
    projected_.reserve(tokens * (wide + 2 * shape_.num_kv_heads * shape_.head_dim));
    attended_.reserve(tokens * wide);
    gated_.reserve(tokens * shape_.intermediate_size);
    up_.reserve(tokens * shape_.intermediate_size);
    if (step.num_logits * shape_.vocab_size > logits_->size()) {
        auto larger = std::make_shared<Buffer<float>>();
        larger->reserve(step.num_logits * shape_.vocab_size);
        logits_ = std::move(larger);
    }
    cosines_.reserve(angles);
    sines_.reserve(angles);
    inputs_.reserve(std::max(tokens, step.num_logits), most_cols);
}

/// Before the run, in which nothing may fail.
void Model::reserve_parts() {
    const std::size_t places = attention_.num_places();
    part_outs_.reserve(places * shape_.num_heads * shape_.head_dim);
    partials_.reserve(places * shape_.num_heads);
    for (Thread& thread : threads_) {
        thread.outs.resize(places);
        thread.partials.resize(places);
    }
}

void Model::divide(const Step& step) {
    const std::size_t tokens = step.num_tokens;
    const Layer& layer = weights_.layers.front();
    const Matrix& up = layer.up.matrix;
    const auto of = [&](std::size_t rows, const Matrix& matrix, std::size_t panels) {
        return division(rows, panels, panel_bytes(matrix.format, matrix.cols), matrix.cols);
    };
    every_thread_prepares_ =
        tokens <= kOwnRows && step.num_logits <= kOwnRows && step.num_hidden == 0 && !has_post_norms_;
    projections_ =
        of(tokens, layer.query.matrix,
           layer.query.matrix.num_panels() + layer.key.matrix.num_panels() + layer.value.matrix.num_panels());
    output_ = of(tokens, layer.output.matrix, layer.output.matrix.num_panels());
    gate_ = of(tokens, up, layer.gate.matrix.num_panels() + up.num_panels());
    gate_.shares = std::min(gate_.shares, up.num_panels());
    down_ = of(tokens, layer.down.matrix, layer.down.matrix.num_panels());
    head_ = of(step.num_logits, weights_.head, weights_.head.num_panels());

    const auto set = [&](Part part, std::size_t count) { chunks_[static_cast<std::size_t>(part)] = count; };
    const std::size_t token_chunks = divide_up(tokens, kTokensPerChunk);
    const std::size_t input_chunks = every_thread_prepares_ ? 0 : token_chunks;
    set(Part::kEmbedding, token_chunks);
    set(Part::kStore, token_chunks);
    for (const Part part : {Part::kAttentionInput, Part::kOutputInput, Part::kMlpInput, Part::kDownInput}) {
        set(part, input_chunks);
    }
    set(Part::kHeadInput, every_thread_prepares_ ? 0 : divide_up(step.num_logits + step.num_hidden, kTokensPerChunk));
    set(Part::kProjections, projections_.row_blocks * projections_.shares);
    set(Part::kOutput, output_.row_blocks * output_.shares);
    set(Part::kGate, gate_.row_blocks * gate_.shares);
    set(Part::kDown, down_.row_blocks * down_.shares);
    set(Part::kHead, step.num_logits == 0 ? 0 : head_.row_blocks * head_.shares);
}

Model::Division Model::division(std::size_t rows, std::size_t panels, std::size_t panel_size, std::size_t cols) const {
    const double weights = static_cast<double>(panels);
    const double reading = weights * static_cast<double>(panel_size) / kBytesPerNs;
    const double computing = weights * static_cast<double>(kPanelRows * cols * rows) / kMacsPerNs;
    const std::size_t threads = threads_.size();
    const std::size_t blocks = std::max<std::size_t>(divide_up(rows, kBlockRows), 1);
    const auto wanted = static_cast<std::size_t>(std::max(reading, computing) / kChunkNs);
    const std::size_t chunks = divide_up(std::clamp(wanted, std::size_t{1}, 8 * threads), threads) * threads;
    return {blocks, std::clamp(divide_up(chunks, blocks), std::size_t{1}, panels)};
}

std::size_t Model::num_chunks(std::size_t phase) const {
    // One thread opens a phase and sees all earlier writes, so that this has one writer at a time.
    if (progress_ != nullptr) {
        progress_->advance();
    }
    const auto [part, layer] = phases_[phase];
    switch (part) {
        case Part::kAttention: return attention_.num_chunks(weights_.layers[layer]);
        case Part::kMerge: return attention_.splits(weights_.layers[layer]) ? attention_.merges().size() : 0;
        default: return chunks_[static_cast<std::size_t>(part)];
    }
}

void Model::run(std::size_t phase, std::size_t chunk, std::size_t thread_index) {
    const auto [part, layer] = phases_[phase];
    const std::uint64_t serial = serial_ * phases_.size() + phase;
    Thread& thread = threads_[thread_index];
    const auto started = std::chrono::steady_clock::now();
    double* account = &thread.profile.other;
    switch (part) {
        case Part::kEmbedding: embed(chunk); break;
        case Part::kAttentionInput:
        case Part::kOutputInput:
        case Part::kMlpInput:
        case Part::kDownInput:
        case Part::kHeadInput: prepare_rows(part, layer, chunk); break;
        case Part::kProjections:
            account = &thread.profile.linear;
            project(layer, chunk, serial, thread);
            break;
        case Part::kStore: store(layer, chunk); break;
        case Part::kAttention:
            account = &thread.profile.attention;
            attend(layer, chunk, thread);
            break;
        case Part::kMerge:
            account = &thread.profile.attention;
            merge(chunk, thread);
            break;
        case Part::kOutput:
        case Part::kDown:
            account = &thread.profile.linear;
            add_product(part, layer, chunk, serial, thread);
            break;
        case Part::kGate:
            account = &thread.profile.linear;
            gate(layer, chunk, serial, thread);
            break;
        case Part::kHead:
            account = &thread.profile.head;
            head(chunk, serial, thread);
            break;
    }
    *account += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

void Model::embed(std::size_t chunk) {
    const std::size_t end = std::min((chunk + 1) * kTokensPerChunk, step_->num_tokens);
    const std::size_t half = shape_.head_dim / 2;
    for (std::size_t t = chunk * kTokensPerChunk; t < end; ++t) {
        float* x = x_.data() + t * shape_.hidden_size;
        set_.linear.unpack_row(weights_.embedding, static_cast<std::size_t>(step_->token_ids[t]), x);
        if (shape_.embedding_scale != 1.0F) {
            set_.elementwise.scale(x, shape_.embedding_scale, shape_.hidden_size, x);
        }
        for (std::size_t r = 0; r < weights_.rotaries.size(); ++r) {
            const Rotary& rotary = weights_.rotaries[r];
            const std::size_t at = (r * step_->num_tokens + t) * half;
            for (std::size_t i = 0; i < rotary.inverse_frequencies.size(); ++i) {
                const float angle = rotary.inverse_frequencies[i] * static_cast<float>(step_->positions[t]);
                cosines_[at + i] = std::cos(angle) * rotary.factor;
                sines_[at + i] = std::sin(angle) * rotary.factor;
            }
        }
    }
}

void Model::prepare_rows(Part part, std::size_t layer, std::size_t chunk) {
    const bool head = part == Part::kHeadInput;  // whose rows are those of logits, then those of hidden states
    const std::size_t rows = head ? step_->num_logits + step_->num_hidden : step_->num_tokens;
    const std::size_t end = std::min((chunk + 1) * kTokensPerChunk, rows);
    for (std::size_t row = chunk * kTokensPerChunk; row < end; ++row) {
        if (head && row >= step_->num_logits) {
            const std::size_t i = row - step_->num_logits;
            final_norm(static_cast<std::size_t>(step_->hidden_rows[i]), step_->hidden_states + i * shape_.hidden_size);
        } else {
            prepare_row(part, layer, row, inputs_);
        }
    }
}

/// What the head reads of a token. A token may have several rows of logits and hidden states, so that its x stays.
void Model::final_norm(std::size_t token, float* out) const {
    const std::size_t hidden = shape_.hidden_size;
    if (has_post_norms_) {
        set_.elementwise.rms_norm(sum_.data() + token * hidden, weights_.layers.back().post_mlp_norm, shape_.epsilon,
                                  hidden, out);
        set_.elementwise.add(out, x_.data() + token * hidden, hidden);
    } else {
        std::memcpy(out, x_.data() + token * hidden, hidden * sizeof(float));
    }
    set_.elementwise.rms_norm(out, weights_.final_norm, shape_.epsilon, hidden, out);
}

/// What the products of a part (or of the part after an input part) take in, from row `row` of what is before them.
void Model::prepare_row(Part part, std::size_t layer_index, std::size_t row, const Inputs& inputs) {
    const Layer& layer = weights_.layers[layer_index];
    const std::size_t hidden = shape_.hidden_size;
    const auto add_normed = [&](const float* norm, std::size_t t, float* out) {
        float* sum = sum_.data() + t * hidden;
        set_.elementwise.rms_norm(sum, norm, shape_.epsilon, hidden, sum);
        set_.elementwise.add(out, sum, hidden);
    };
    const float* source = nullptr;
    std::size_t cols = hidden;
    bool quantized = false;
    switch (part) {
        case Part::kAttentionInput:
        case Part::kProjections: {
            float* x = x_.data() + row * hidden;
            if (layer_index > 0 && has_post_norms_) {
                add_normed(weights_.layers[layer_index - 1].post_mlp_norm, row, x);
            }
            float* normed = inputs.values.data() + row * hidden;
            set_.elementwise.rms_norm(x, layer.attention_norm, shape_.epsilon, hidden, normed);
            source = normed;
            quantized =
                needs_quants(layer.query.matrix) || needs_quants(layer.key.matrix) || needs_quants(layer.value.matrix);
            break;
        }
        case Part::kOutputInput:
        case Part::kOutput:
            cols = shape_.num_heads * shape_.head_dim;
            source = attended_.data() + row * cols;
            quantized = needs_quants(layer.output.matrix);
            break;
        case Part::kMlpInput:
        case Part::kGate: {
            float* x = x_.data() + row * hidden;
            if (has_post_norms_) {
                add_normed(layer.post_attention_norm, row, x);
            }
            float* normed = inputs.values.data() + row * hidden;
            set_.elementwise.rms_norm(x, layer.mlp_norm, shape_.epsilon, hidden, normed);
            source = normed;
            quantized = needs_quants(layer.gate.matrix) || needs_quants(layer.up.matrix);
            break;
        }
        case Part::kDownInput:
        case Part::kDown:
            cols = shape_.intermediate_size;
            source = gated_.data() + row * cols;
            quantized = needs_quants(layer.down.matrix);
            break;
        default: {  // the head's
            float* normed = inputs.values.data() + row * hidden;
            final_norm(static_cast<std::size_t>(step_->logits_rows[row]), normed);
            source = normed;
            quantized = needs_quants(weights_.head);
        }
    }
    if (quantized) {
        const std::size_t groups = divide_up(cols, kGroup), at = row * groups;
        set_.elementwise.quantize(source, cols,
                                  {inputs.quants.data() + at * kGroup, inputs.scales.data() + at,
                                   inputs.sums.data() + at, inputs.biases.data() + at, inputs.half_sums.data() + at});
    }
}

Activations Model::prepare_activations(Part part, std::size_t layer, std::size_t first, std::size_t rows,
                                       std::uint64_t serial, Thread& thread) {
    const Inputs& inputs = every_thread_prepares_ ? thread.inputs : inputs_;
    if (every_thread_prepares_ && thread.prepared != serial) {
        for (std::size_t row = first; row < first + rows; ++row) {
            prepare_row(part, layer, row, inputs);
        }
        thread.prepared = serial;
    }
    std::size_t cols = shape_.hidden_size;
    const float* values = inputs.values.data();
    if (part == Part::kOutput) {
        cols = shape_.num_heads * shape_.head_dim;
        values = attended_.data();
    } else if (part == Part::kDown) {
        cols = shape_.intermediate_size;
        values = gated_.data();
    }
    const std::size_t at = first * divide_up(cols, kGroup);
    return {rows,
            values + first * cols,
            cols,
            exact_ ? nullptr : inputs.quants.data() + at * kGroup,
            inputs.scales.data() + at,
            inputs.sums.data() + at,
            inputs.biases.data() + at,
            inputs.half_sums.data() + at};
}

void Model::multiply_panel(const Matrix& matrix, std::size_t panel, const Activations& input, const std::uint8_t* next,
                           Thread& thread, float* out, std::size_t stride) const {
    const std::size_t column = panel * kPanelRows;
    if (column + kPanelRows <= matrix.rows) {
        set_.linear.multiply(matrix, panel, input, next, thread.linear_scratch.data(), out + column, stride);
        return;
    }
    set_.linear.multiply(matrix, panel, input, next, thread.linear_scratch.data(), thread.tile.data(), kPanelRows);
    for (std::size_t row = 0; row < input.rows; ++row) {
        std::memcpy(out + row * stride + column, thread.tile.data() + row * kPanelRows,
                    (matrix.rows - column) * sizeof(float));
    }
}

void Model::multiply(const Linear& linear, std::size_t first_panel, std::size_t end_panel, const Activations& input,
                     Thread& thread, float* out, std::size_t stride) const {
    for (std::size_t panel = first_panel; panel < end_panel; ++panel) {
        const std::uint8_t* next = panel + 1 < end_panel ? linear.matrix.panel(panel + 1) : nullptr;
        multiply_panel(linear.matrix, panel, input, next, thread, out, stride);
    }
    add_bias(linear, first_panel, end_panel, input.rows, out, stride);
}

void Model::add_bias(const Linear& linear, std::size_t first_panel, std::size_t end_panel, std::size_t rows, float* out,
                     std::size_t stride) const {
    if (linear.bias == nullptr || first_panel == end_panel) {
        return;
    }
    const std::size_t column = first_panel * kPanelRows;
    const std::size_t count = std::min(end_panel * kPanelRows, linear.matrix.rows) - column;
    for (std::size_t row = 0; row < rows; ++row) {
        set_.elementwise.add(out + row * stride + column, linear.bias + column, count);
    }
}

void Model::project(std::size_t layer_index, std::size_t chunk, std::uint64_t serial, Thread& thread) {
    const Layer& layer = weights_.layers[layer_index];
    const auto [first_row, end_row] = share(step_->num_tokens, chunk / projections_.shares, projections_.row_blocks);
    std::size_t panels = 0;
    for (const Linear* linear : {&layer.query, &layer.key, &layer.value}) {
        panels += linear->matrix.num_panels();
    }
    const auto [begin, end] = share(panels, chunk % projections_.shares, projections_.shares);
    const Activations input =
        prepare_activations(Part::kProjections, layer_index, first_row, end_row - first_row, serial, thread);
    const std::size_t stride = (shape_.num_heads + 2 * shape_.num_kv_heads) * shape_.head_dim;
    float* out = projected_.data() + first_row * stride;
    std::size_t offset = 0;
    for (const Linear* linear : {&layer.query, &layer.key, &layer.value}) {
        const std::size_t count = linear->matrix.num_panels();
        const std::size_t from = std::clamp(begin, offset, offset + count) - offset;
        const std::size_t to = std::clamp(end, offset, offset + count) - offset;
        multiply(*linear, from, to, input, thread, out, stride);
        out += linear->matrix.rows;
        offset += count;
    }
}

void Model::store(std::size_t layer_index, std::size_t chunk) {
    const Layer& layer = weights_.layers[layer_index];
    const LayerCache layer_cache = cache(layer_index);
    const std::size_t dim = shape_.head_dim;
    const std::size_t heads = shape_.num_heads, kv_heads = shape_.num_kv_heads;
    const std::size_t turned = 2 * weights_.rotaries[layer.rotary].inverse_frequencies.size();
    const std::size_t end = std::min((chunk + 1) * kTokensPerChunk, step_->num_tokens);
    for (std::size_t t = chunk * kTokensPerChunk; t < end; ++t) {
        float* row = projected_.data() + t * (heads + 2 * kv_heads) * dim;
        const std::size_t angle = (layer.rotary * step_->num_tokens + t) * dim / 2;
        const float query_scale = query_scale_at(step_->positions[t]);
        for (std::size_t head = 0; head < heads + kv_heads; ++head) {
            float* vector = row + head * dim;
            const float* norm = head < heads ? layer.query_norm : layer.key_norm;
            if (norm != nullptr) {
                set_.elementwise.rms_norm(vector, norm, shape_.epsilon, dim, vector);
            }
            set_.elementwise.rotate(vector, cosines_.data() + angle, sines_.data() + angle, turned);
            if (head < heads && query_scale != 1.0F) {
                set_.elementwise.scale(vector, query_scale, dim, vector);
            }
        }
        set_.attention.store(layer_cache, step_->slot_mapping[t], row + heads * dim, row + (heads + kv_heads) * dim);
    }
}

float Model::query_scale_at(std::int64_t position) const {
    if (shape_.query_growth == 0.0F) {
        return 1;
    }
    const auto lengths = static_cast<float>(static_cast<std::size_t>(position) / shape_.query_length);
    return 1 + shape_.query_growth * std::log(1 + lengths);
}

LayerCache Model::cache(std::size_t layer) const {
    const std::size_t heads = layout_.num_kv_heads, keys = heads * layout_.key_place() * layout_.element_bytes();
    unsigned char* base = cache_.data() + layer * (keys + heads * layout_.value_place() * layout_.element_bytes());
    return {layout_, base, base + keys};
}

void Model::attend(std::size_t layer_index, std::size_t chunk, Thread& thread) {
    const Layer& layer = weights_.layers[layer_index];
    const LayerCache layer_cache = cache(layer_index);
    const std::size_t dim = shape_.head_dim, heads = shape_.num_heads, heads_per_kv = heads / shape_.num_kv_heads;
    const std::size_t stride = (heads + 2 * shape_.num_kv_heads) * dim;
    attention_.for_each_piece(layer, chunk, [&](const AttentionPiece& piece) {
        const std::size_t first_head = piece.kv_head * heads_per_kv;
        const bool partial = piece.place != AttentionPiece::kWhole;
        const std::size_t place = partial ? piece.place : piece.first_row;
        const AttentionTask task{
            &layer_cache,
            step_->block_tables + piece.sequence * step_->block_table_stride,
            piece.kv_head,
            heads_per_kv,
            piece.num_rows,
            static_cast<std::size_t>(step_->positions[piece.first_row]),
            layer.window,
            shape_.attention_scale,
            projected_.data() + piece.first_row * stride + first_head * dim,
            stride,
            (partial ? part_outs_.data() : attended_.data()) + (place * heads + first_head) * dim,
            heads * dim,
            partial ? partials_.data() + place * heads + first_head * piece.num_rows : nullptr,
            piece.begin,
            piece.end,
        };
        set_.attention.attend(task, thread.attention_scratch.data());
    });
}

/// A part's partial results are [kv head][row][head of that kv head], its sums [row][head].
void Model::merge(std::size_t chunk, Thread& thread) {
    const std::size_t dim = shape_.head_dim, heads = shape_.num_heads, heads_per_kv = heads / shape_.num_kv_heads;
    const auto [first_row, num_rows, first_place, parts] = attention_.merges()[chunk];
    for (std::size_t row = 0; row < num_rows; ++row) {
        for (std::size_t head = 0; head < heads; ++head) {
            for (std::size_t part = 0; part < parts; ++part) {
                const std::size_t place = first_place + part * num_rows;
                thread.outs[part] = part_outs_.data() + ((place + row) * heads + head) * dim;
                thread.partials[part] = partials_.data() + place * heads +
                                        (head / heads_per_kv * num_rows + row) * heads_per_kv + head % heads_per_kv;
            }
            set_.attention.merge(thread.outs.data(), thread.partials.data(), parts, dim,
                                 attended_.data() + ((first_row + row) * heads + head) * dim);
        }
    }
}

void Model::add_product(Part part, std::size_t layer_index, std::size_t chunk, std::uint64_t serial, Thread& thread) {
    const Layer& layer = weights_.layers[layer_index];
    const Linear& linear = part == Part::kOutput ? layer.output : layer.down;
    const Division& divided = part == Part::kOutput ? output_ : down_;
    const std::size_t hidden = shape_.hidden_size;
    const auto [first_row, end_row] = share(step_->num_tokens, chunk / divided.shares, divided.row_blocks);
    const auto [begin, end] = share(linear.matrix.num_panels(), chunk % divided.shares, divided.shares);
    const Activations input = prepare_activations(part, layer_index, first_row, end_row - first_row, serial, thread);
    multiply(linear, begin, end, input, thread, sum_.data() + first_row * hidden, hidden);
    if (!has_post_norms_) {
        const std::size_t column = begin * kPanelRows, count = std::min(end * kPanelRows, hidden) - column;
        for (std::size_t row = first_row; row < end_row; ++row) {
            float* sum = sum_.data() + row * hidden + column;
            if (shape_.residual_scale != 1.0F) {
                set_.elementwise.scale(sum, shape_.residual_scale, count, sum);
            }
            set_.elementwise.add(x_.data() + row * hidden + column, sum, count);
        }
    }
}

void Model::gate(std::size_t layer_index, std::size_t chunk, std::uint64_t serial, Thread& thread) {
    const Layer& layer = weights_.layers[layer_index];
    const std::size_t width = shape_.intermediate_size;
    const auto [first_row, end_row] = share(step_->num_tokens, chunk / gate_.shares, gate_.row_blocks);
    const auto [begin, end] = share(layer.up.matrix.num_panels(), chunk % gate_.shares, gate_.shares);
    const Activations input =
        prepare_activations(Part::kGate, layer_index, first_row, end_row - first_row, serial, thread);
    float* gates = gated_.data() + first_row * width;
    const std::size_t column = begin * kPanelRows, count = std::min(end * kPanelRows, width) - column;
    if (layer.gate.matrix.rows == 0) {
        multiply(layer.up, begin, end, input, thread, gates, width);
        for (std::size_t row = first_row; row < end_row; ++row) {
            float* activated = gated_.data() + row * width + column;
            set_.elementwise.activate(shape_.activation, activated, count, activated);
        }
        return;
    }
    float* ups = up_.data() + first_row * width;
    for (std::size_t panel = begin; panel < end; ++panel) {
        const std::uint8_t* next = panel + 1 < end ? layer.gate.matrix.panel(panel + 1) : nullptr;
        multiply_panel(layer.gate.matrix, panel, input, layer.up.matrix.panel(panel), thread, gates, width);
        multiply_panel(layer.up.matrix, panel, input, next, thread, ups, width);
    }
    add_bias(layer.gate, begin, end, input.rows, gates, width);
    add_bias(layer.up, begin, end, input.rows, ups, width);
    for (std::size_t row = first_row; row < end_row; ++row) {
        float* gated = gated_.data() + row * width + column;
        set_.elementwise.gate(shape_.activation, gated, up_.data() + row * width + column, count, gated);
    }
}

void Model::head(std::size_t chunk, std::uint64_t serial, Thread& thread) {
    const auto [first_row, end_row] = share(step_->num_logits, chunk / head_.shares, head_.row_blocks);
    const auto [begin, end] = share(weights_.head.num_panels(), chunk % head_.shares, head_.shares);
    const Activations input = prepare_activations(Part::kHead, 0, first_row, end_row - first_row, serial, thread);
    multiply({weights_.head}, begin, end, input, thread, logits_->data() + first_row * shape_.vocab_size,
             shape_.vocab_size);
    if (shape_.logit_scale != 1.0F) {
        const std::size_t column = begin * kPanelRows, count = std::min(end * kPanelRows, shape_.vocab_size) - column;
        for (std::size_t row = first_row; row < end_row; ++row) {
            float* logits = logits_->data() + row * shape_.vocab_size + column;
            set_.elementwise.scale(logits, shape_.logit_scale, count, logits);
        }
    }
}

}  // namespace rbee::kernels
