// A decoder of the Llama family: one step for a mixed batch of decoding sequences and chunks of prompts.
//
// Owns the order of what a step computes, how each part is divided into chunks, the memory for what is between the
// parts, and the paged cache. Does not know where weights come from, why a sequence runs now, or what becomes of the
// logits. What a decoder is, is in `decoder.h`; which rows attend to what, in `attention_plan.h`.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "rbee_kernels/attention_plan.h"
#include "rbee/progress.h"
#include "rbee_kernels/decoder.h"
#include "rbee_kernels/instruction_sets.h"
#include "rbee_kernels/memory.h"
#include "rbee_kernels/thread_pool.h"

namespace rbee::kernels {

/// Seconds that threads have worked on each part since the start, together, and that steps have taken.
struct Profile {
    double linear = 0;
    double head = 0;
    double attention = 0;
    double other = 0;
    double steps = 0;
};

class Model {
public:
    /// `exact`: float activations; otherwise in 8 bits wherever weights are quantized. The memory that `weights` points to must stay. `progress` is advanced with every phase
    /// of a step. std::bad_alloc if there is not enough.
    Model(const ModelShape& shape, Weights weights, bool exact, CacheFormat cache_format, std::size_t num_blocks,
          std::size_t block_size, const InstructionSet& set, ThreadPool& pool, Progress* progress = nullptr);

    /// Memory that a block of the cache takes.
    static std::size_t block_bytes(const ModelShape& shape, std::size_t num_layers, std::size_t block_size,
                                   CacheFormat format);

    /// Computes a step. The logits [num_logits][vocab_size] stay until the next one, and their memory as long as the
    /// pointer is held: a larger step allocates another.
    const std::shared_ptr<Buffer<float>>& execute(const Step& step);

    Profile profile() const;

private:
    enum class Part : std::uint8_t {
        kEmbedding,
        kAttentionInput,
        kProjections,
        kStore,
        kAttention,
        kMerge,
        kOutputInput,
        kOutput,
        kMlpInput,
        kGate,
        kDownInput,
        kDown,
        kHeadInput,
        kHead,
    };
    static constexpr std::size_t kParts = 14;
    struct Phase {
        Part part;
        std::uint32_t layer;
    };
    /// How a matrix product is divided: rows of activations into blocks, panels into shares.
    struct Division {
        std::size_t row_blocks = 1;
        std::size_t shares = 1;
    };
    /// Rows of activations as products take them.
    struct Inputs {
        Buffer<float> values;
        Buffer<std::int8_t> quants;
        Buffer<float> scales;
        Buffer<float> sums;
        Buffer<std::int32_t> biases;
        Buffer<HalfSums> half_sums;
        void reserve(std::size_t rows, std::size_t cols);
    };
    struct Thread {
        Inputs inputs;  // for products whose few rows every thread prepares by itself
        std::uint64_t prepared = 0;
        Buffer<unsigned char> linear_scratch;
        Buffer<unsigned char> attention_scratch;
        Buffer<float> tile;
        std::vector<const float*> outs;  // of a row's parts; as long as any step needs, because a chunk must not throw
        std::vector<const Partial*> partials;
        Profile profile;
    };
    friend class ThreadPool;
    std::size_t num_phases() const { return phases_.size(); }
    std::size_t num_chunks(std::size_t phase) const;
    void run(std::size_t phase, std::size_t chunk, std::size_t thread);

    void reserve(const Step& step);
    void reserve_parts();
    void divide(const Step& step);
    Division division(std::size_t rows, std::size_t panels, std::size_t panel_bytes, std::size_t cols) const;
    bool needs_quants(const Matrix& matrix) const { return is_quantized(matrix.format) && !exact_; }

    void embed(std::size_t chunk);
    void prepare_rows(Part part, std::size_t layer, std::size_t chunk);
    void prepare_row(Part part, std::size_t layer, std::size_t row, const Inputs& inputs);
    void final_norm(std::size_t token, float* out) const;
    Activations prepare_activations(Part part, std::size_t layer, std::size_t first, std::size_t rows,
                                    std::uint64_t serial, Thread& thread);
    void multiply(const Linear& linear, std::size_t first_panel, std::size_t end_panel, const Activations& input,
                  Thread& thread, float* out, std::size_t stride) const;
    void multiply_panel(const Matrix& matrix, std::size_t panel, const Activations& input, const std::uint8_t* next,
                        Thread& thread, float* out, std::size_t stride) const;
    void add_bias(const Linear& linear, std::size_t first_panel, std::size_t end_panel, std::size_t rows, float* out,
                  std::size_t stride) const;
    void project(std::size_t layer, std::size_t chunk, std::uint64_t serial, Thread& thread);
    void store(std::size_t layer, std::size_t chunk);
    void attend(std::size_t layer, std::size_t chunk, Thread& thread);
    void merge(std::size_t chunk, Thread& thread);
    void add_product(Part part, std::size_t layer, std::size_t chunk, std::uint64_t serial, Thread& thread);
    void gate(std::size_t layer, std::size_t chunk, std::uint64_t serial, Thread& thread);
    void head(std::size_t chunk, std::uint64_t serial, Thread& thread);
    float query_scale_at(std::int64_t position) const;
    LayerCache cache(std::size_t layer) const;

    ModelShape shape_;
    Weights weights_;
    bool exact_;
    bool has_post_norms_;
    CacheLayout layout_;
    const InstructionSet& set_;
    ThreadPool& pool_;
    Progress* progress_;
    std::vector<Phase> phases_;
    AttentionPlan attention_;
    Region cache_;

    // What a step is about.
    const Step* step_ = nullptr;
    std::uint64_t serial_ = 0;
    std::size_t chunks_[kParts] = {};
    Division projections_, output_, gate_, down_, head_;
    bool every_thread_prepares_ = false;

    // What is between the parts; rows of tokens.
    Buffer<float> x_, sum_, projected_, attended_, gated_, up_, cosines_, sines_, part_outs_;
    Buffer<Partial> partials_;
    std::shared_ptr<Buffer<float>> logits_ = std::make_shared<Buffer<float>>();
    Inputs inputs_;
    std::vector<Thread> threads_;
    double seconds_ = 0;
};

}  // namespace rbee::kernels
