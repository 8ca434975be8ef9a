// What a decoder of the Llama family is, and what a step of it takes in.
//
// Owns the description; `model.h` computes it.
//
// One description fits all members: what differs is which norms and biases exist, the activation, whether it is of a
// gate, the angles of the rotary embedding, some factors, and how far each layer looks back. A layer is
//
//   x += residual_scale * [norm] output(attention(rotate([norm] query(n)), rotate([norm] key(n)), value(n))),  n = norm(x)
//   x += residual_scale * [norm] down(activation(gate(n)) * up(n)),  or down(activation(up(n))),               n = norm(x)
//
// (Llama: Touvron et al., 2023. Grouped heads: Ainslie et al., 2023. Rotary: Su et al., 2021.)

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rbee_kernels/elementwise_functions.h"
#include "rbee_kernels/weights.h"

namespace rbee::kernels {

struct ModelShape {
    std::size_t vocab_size;
    std::size_t hidden_size;
    std::size_t intermediate_size;
    std::size_t num_heads;
    std::size_t num_kv_heads;
    std::size_t head_dim;
    float epsilon;  // of the norms
    Activation activation;
    float attention_scale;
    float embedding_scale;
    float residual_scale = 1;  // another one only in models without norms behind their halves
    float logit_scale = 1;
    // Queries at position p are multiplied by 1 + query_growth * ln(1 + floor(p / query_length)).
    float query_growth = 0;
    std::size_t query_length = 1;
};

/// A matrix and what is added to its results, or null.
struct Linear {
    Matrix matrix;
    const float* bias = nullptr;
};

/// Angles per position of the pairs (i, n + i) of a head: position * inverse_frequencies[i], for each of the n; cosines
/// and sines are multiplied by `factor`. What is behind the pairs is not turned: no frequencies, no rotation.
struct Rotary {
    std::vector<float> inverse_frequencies;
    float factor;
};

/// Norms that a model does not have are null, and a gate that it does not have is no matrix (0 rows). A step reads gate
/// and up panel by panel in turn.
struct Layer {
    const float* attention_norm = nullptr;
    Linear query, key, value;
    const float* query_norm = nullptr;
    const float* key_norm = nullptr;
    Linear output;
    const float* post_attention_norm = nullptr;
    const float* mlp_norm = nullptr;
    Linear gate, up, down;
    const float* post_mlp_norm = nullptr;
    std::size_t window = 0;  // positions that a token sees, itself included; 0: all
    std::size_t rotary = 0;  // which of the model's
};

struct Weights {
    Matrix embedding;
    Matrix head;
    const float* final_norm;
    std::vector<Layer> layers;
    std::vector<Rotary> rotaries;
};

/// T tokens of S sequences; the arrays are as in rbee.engine.input_batch, and checked.
struct Step {
    std::size_t num_tokens;
    std::size_t num_sequences;
    const std::int64_t* query_start;
    const std::int64_t* context_lens;
    const std::int64_t* token_ids;
    const std::int64_t* positions;
    const std::int64_t* slot_mapping;
    const std::int64_t* block_tables;
    std::size_t block_table_stride;
    std::size_t num_logits;
    const std::int64_t* logits_rows;
    std::size_t num_hidden = 0;
    const std::int64_t* hidden_rows = nullptr;
    float* hidden_states = nullptr;  // [num_hidden][hidden_size], which the step writes: what the head reads of a row
};

}  // namespace rbee::kernels
