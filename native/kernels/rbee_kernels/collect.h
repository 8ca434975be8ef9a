// A decoder's weights out of matrices and vectors with names.
//
// Owns which names a decoder needs and their sizes. Does not know where they were stored.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "rbee_kernels/decoder.h"
#include "rbee_kernels/weight_memory.h"

namespace rbee::kernels {

/// A packed matrix as it was stored, not checked yet.
struct NamedMatrix {
    std::uint32_t format;
    std::size_t rows;
    std::size_t cols;
    const std::uint8_t* data;
    std::size_t bytes;
};

struct NamedVector {
    const float* data;
    std::size_t size;
};

/// The weights in memory that the caller keeps; see rbee/engine/_kernels.pyi for the names.
struct NamedWeights {
    std::map<std::string, NamedMatrix> matrices;
    std::map<std::string, NamedVector> vectors;
};

struct LayerKind {
    std::size_t window;  // see Layer
    std::size_t rotary;
};

struct CollectedWeights {
    WeightMemory memory;
    Weights weights;  // in `memory`
};

/// Copies what a decoder of this shape needs, in the order in which a step reads it. std::invalid_argument names what
/// is missing or does not fit.
CollectedWeights collect_weights(const ModelShape& shape, const std::vector<LayerKind>& layers,
                                 std::vector<Rotary> rotaries, const NamedWeights& named, ThreadPool& pool,
                                 Progress& progress);

}  // namespace rbee::kernels
