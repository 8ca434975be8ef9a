// The memory that a step streams the weights from.
//
// Owns where each matrix and vector lies. Does not know what they are called or what they are for.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "rbee/progress.h"
#include "rbee_kernels/memory.h"
#include "rbee_kernels/thread_pool.h"
#include "rbee_kernels/weights.h"

namespace rbee::kernels {

/// Copies of all weights in the order in which a step reads them, on huge pages.
class WeightMemory {
public:
    explicit WeightMemory(std::size_t bytes) : region_(bytes), end_(region_.data()) {}

    const unsigned char* copy(const void* data, std::size_t bytes) {
        unsigned char* start = end_;
        copies_.push_back({start, data, bytes});
        end_ += padded(bytes);
        return start;
    }
    /// Two matrices with as many panels: the first of the one, the first of the other, the second of the one ...
    void interleave(Matrix& one, Matrix& other) {
        const std::size_t size = panel_bytes(one.format, one.cols);
        const std::size_t other_size = panel_bytes(other.format, other.cols);
        Matrix merged_one = one, merged_other = other;
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
    void fill(ThreadPool& pool, Progress& progress) {
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
        pool.for_each(parts.size(), [&](std::size_t i, std::size_t thread) {
            std::memcpy(parts[i].to, parts[i].from, parts[i].bytes);
            if (thread == 0) {
                progress.advance();
            }
        });
        copies_.clear();
    }

private:
    struct Copy {
        unsigned char* to;
        const void* from;
        std::size_t bytes;
    };
    Region region_;
    unsigned char* end_;
    std::vector<Copy> copies_;
};

}  // namespace rbee::kernels
