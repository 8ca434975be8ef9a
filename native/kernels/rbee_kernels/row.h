// A row of any length, in whole blocks; its maximum, its weights, and what of it is above a bound.
//
// Owns how a row becomes blocks. Does not know tokens' parameters.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "rbee_kernels/blocks.h"

namespace rbee::kernels {

constexpr std::size_t blocks_of(std::size_t size) { return (size + kBlock - 1) / kBlock; }

/// Numbers that are read a block at a time. Behind a row that ends within a block, -inf is read.
class Row {
public:
    /// The last block is copied to `tail` if it is not whole; both must outlive the row.
    Row(const float* values, std::size_t size, float* tail) : values_(values), tail_(values), size_(size) {
        const std::size_t whole = size / kBlock * kBlock;
        if (whole != size) {
            std::fill(std::copy(values + whole, values + size, tail), tail + kBlock, -kInfinity);
            tail_ = tail;
        } else {
            tail_ = values + (blocks() - 1) * kBlock;
        }
    }

    std::size_t size() const { return size_; }
    std::size_t blocks() const { return blocks_of(size_); }
    const float* block(std::size_t i) const { return i + 1 == blocks() ? tail_ : values_ + i * kBlock; }
    float operator[](std::size_t i) const { return values_[i]; }

private:
    const float* values_;
    const float* tail_;
    std::size_t size_;
};

/// The greatest of a row, and where it is first; not valid if the row holds NaN or +inf, or -inf only.
struct Peak {
    bool valid;
    float value;
    std::size_t index;
};

/// Fills lane_maxima, 8 for each block of the row.
inline Peak find_peak(const BlockKernels& kernels, const Row& row, float* lane_maxima) {
    float lanes[kLanes];
    std::fill(lanes, lanes + kLanes, -kInfinity);
    const std::size_t last = row.blocks() - 1;  // may be a copy: all others lie one behind the other
    bool nan = kernels.lane_maxima(row.block(0), last, lane_maxima, lanes);
    nan |= kernels.lane_maxima(row.block(last), 1, lane_maxima + last * kLanes, lanes);
    const float greatest = *std::max_element(lanes, lanes + kLanes);
    // Of equal ones the first: in the first block that has it.
    const float* maxima_end = lane_maxima + row.blocks() * kLanes;
    const float* lane = std::find(static_cast<const float*>(lane_maxima), maxima_end, greatest);
    const std::size_t where = static_cast<std::size_t>(lane - lane_maxima) / kLanes;
    const float* block = row.block(where);
    const auto index = static_cast<std::size_t>(std::find(block, block + kBlock, greatest) - block);
    return {!nan && greatest < kInfinity && greatest > -kInfinity, greatest, where * kBlock + index};
}

/// A value that at least `count` values of the row reach, and not many more; -inf if count is too great for that.
///
/// As so many lanes have a maximum that reaches it. `scratch` has room for the maxima.
inline float bound_for(std::size_t count, const Row& row, const float* lane_maxima, float* scratch) {
    const std::size_t size = row.blocks() * kLanes;
    if (count > size) {
        return -kInfinity;
    }
    std::copy(lane_maxima, lane_maxima + size, scratch);
    std::nth_element(scratch, scratch + (count - 1), scratch + size, std::greater<>());
    return scratch[count - 1];
}

}  // namespace rbee::kernels
