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

/// A matrix as it is stored, and the number of the format that it is to have; not checked yet.
struct NamedMatrix {
    std::uint32_t format;
    SourceMatrix source;
};

struct NamedVector {
    const float* data;
    std::size_t size;
};

/// The weights in memory that the caller keeps until they are packed; see rbee/engine/_kernels.pyi for the names.
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

/// Places what a decoder of this shape needs in the order in which a step reads it; matrices are not packed yet.
/// std::invalid_argument names what is missing or does not fit.
CollectedWeights collect_weights(const ModelShape& shape, const std::vector<LayerKind>& layers,
                                 std::vector<Rotary> rotaries, const NamedWeights& named);

}  // namespace rbee::kernels
