// A histogram of durations or numbers in shared memory: one process counts, observers read at any time.
//
// Log-linear buckets in the manner of Gil Tene's HdrHistogram: 16 per power of two, so that a value is known to 1/16.
// Durations are in nanoseconds; everything of 9 minutes and more falls into the last bucket.

#pragma once

#include "rbee/platform.h"

namespace rbee {

constexpr std::uint32_t kBuckets = 576;

/// The bucket that counts `value`.
constexpr std::uint32_t bucket_of(std::uint64_t value) {
    if (value < 16) {
        return static_cast<std::uint32_t>(value);
    }
    const auto exponent = static_cast<std::uint32_t>(63 - __builtin_clzll(value));
    const std::uint32_t bucket = (exponent - 3) * 16 + static_cast<std::uint32_t>(value >> (exponent - 4) & 15);
    return bucket < kBuckets ? bucket : kBuckets - 1;
}

/// The smallest value that falls into a bucket.
constexpr std::uint64_t bucket_start(std::uint32_t bucket) {
    return bucket < 16 ? bucket : std::uint64_t{16 + bucket % 16} << (bucket / 16 - 1);
}
static_assert(bucket_of(0) == 0 && bucket_of(15) == 15 && bucket_of(16) == 16 && bucket_of(31) == 31);
static_assert(bucket_of(32) == 32 && bucket_of(33) == 32 && bucket_of(34) == 33 && bucket_of(~0ull) == kBuckets - 1);
static_assert(bucket_start(16) == 16 && bucket_start(32) == 32 && bucket_start(33) == 34);
static_assert(bucket_of(bucket_start(300)) == 300 && bucket_of(bucket_start(300) - 1) == 299);

struct Histogram {
    Word<std::uint64_t> buckets[kBuckets];

    /// For the one process that counts here.
    void add(std::uint64_t value, std::uint64_t times = 1) { count(buckets[bucket_of(value)], times); }
};

}  // namespace rbee
