// Matrix products with packed weights: what is the same on every instruction set.
//
// Owns how a product is divided into tiles, floating-point tiles, and exact products with quantized weights. Integer
// dot products, on which everything else rests, are in the one of `linear_avx512.h`, `linear_avx2.h` and
// `linear_portable.h` that fits what this is compiled for.
//
// A tile is some rows of activations times the 16 rows of a panel, its sums in registers. With quantized weights and
// activations (both in groups of 32), group by group,
//
//   sum += activation_scale * weight_scale * (integer dot product) + activation_sum * weight_minimum
//
// where the integer product is exact and activation_sum is the activation's scale times the sum of its quants.

#pragma once

#include <type_traits>

#include "rbee_kernels/linear_task.h"
#include "rbee_kernels/vector16.h"

namespace rbee::kernels {
namespace {

/// Sixteen factors; `shared` are the binary16 numbers of products.
template <Factor K>
inline Vec load_factors(const std::uint8_t* entries, const std::uint8_t* shared) {
    if constexpr (K == Factor::kHalf) {
        return load(reinterpret_cast<const Half*>(entries));
    } else if constexpr (K == Factor::kFloat) {
        return load(reinterpret_cast<const float*>(entries));
    } else if constexpr (K == Factor::kPower) {
        return load_powers(entries);
    } else {
        const Vec half = load(reinterpret_cast<const Half*>(shared));
        if constexpr (K == Factor::kByte) {
            return load(entries) * half;
        } else if constexpr (K == Factor::kSignedByte) {
            return load(reinterpret_cast<const std::int8_t*>(entries)) * half;
        } else {
            std::uint8_t bytes[kPanelRows];
            for (std::size_t r = 0; r < kPanelRows; ++r) {
                bytes[r] = static_cast<std::uint8_t>(K == Factor::kLowHalf ? entries[r] & 15 : entries[r] >> 4);
            }
            return load(bytes) * half;
        }
    }
}

/// A panel's groups of 32 columns.
template <WeightFormat F>
struct Group {
    using Place = GroupPlace<F>;
    static constexpr FormatLayout kLayout = layout_of(F);
    static constexpr bool kMinimum = kLayout.minimum != Factor::kNone;
    static constexpr std::size_t kHalves = kLayout.fine ? 2 : 1;  // of the columns, with scales of their own

    static const std::uint8_t* quants(const std::uint8_t* panel, std::size_t group) {
        return panel + Place::quants(group);
    }
    static Vec scales(const std::uint8_t* panel, std::size_t group, std::size_t half) {
        return load_factors<kLayout.scale>(panel + Place::scales(group, half), panel + Place::shared_scales(group));
    }
    static Vec minimums(const std::uint8_t* panel, std::size_t group, std::size_t half) {
        return load_factors<kLayout.minimum>(panel + Place::minimums(group, half),
                                             panel + Place::shared_minimums(group));
    }
};

/// One tile's activations, and what to prefetch meanwhile: `ahead_step` bytes from `ahead` on in each group.
struct TileInput {
    const std::int8_t* quants;
    const float* scales;
    const float* sums;
    const std::int32_t* biases;
    const HalfSums* half_sums;
    std::size_t cols;
    std::size_t groups;
    const std::uint8_t* ahead;
    std::size_t ahead_step;
};

// A panel that is used once is limited by memory, and is prefetched this far ahead.
constexpr std::size_t kStreamAhead = 4096;

/// Tiles of `left` rows, none above `most` and none much smaller than another.
inline std::size_t tile_rows(std::size_t left, std::size_t most) {
    const std::size_t tiles = (left + most - 1) / most;
    return (left + tiles - 1) / tiles;
}

/// Calls `function` with `rows`, from 1 to Most, as a constant.
template <std::size_t Most, typename Function>
inline void with_rows(std::size_t rows, Function&& function) {
    if constexpr (Most > 1) {
        if (rows < Most) {
            with_rows<Most - 1>(rows, function);
            return;
        }
    }
    function(std::integral_constant<std::size_t, Most>());
}

/// Calls `function(rows as a constant, input, first row)` for each tile of a product with a panel of quantized weights.
template <std::size_t Most, typename Function>
inline void for_each_tile(const std::uint8_t* panel, std::size_t bytes, std::size_t cols, const Activations& all,
                          const std::uint8_t* next, Function&& function) {
    const std::size_t groups = cols / kGroup;
    const bool stream = all.rows <= Most;
    // Several tiles read this panel from the cache, and share the work of asking for the next one.
    const std::size_t steps = (all.rows + Most - 1) / Most * groups;
    const std::size_t share = next == nullptr ? 0 : (bytes / steps + kLineBytes - 1) / kLineBytes * kLineBytes;
    const std::uint8_t* ahead = stream ? panel + kStreamAhead : next;
    for (std::size_t row = 0; row < all.rows;) {
        const std::size_t rows = tile_rows(all.rows - row, Most);
        const TileInput input{all.quants + row * cols,
                              all.scales + row * groups,
                              all.sums + row * groups,
                              all.biases + row * groups,
                              all.half_sums + row * groups,
                              cols,
                              groups,
                              ahead,
                              stream ? bytes / groups : share};
        with_rows<Most>(rows, [&](auto constant) { function(constant, input, row); });
        ahead += stream ? 0 : share * groups;
        row += rows;
    }
}

}  // namespace
}  // namespace rbee::kernels

#if defined(__AVX512VNNI__)
#include "rbee_kernels/linear_avx512.h"
#elif defined(__AVX2__)
#include "rbee_kernels/linear_avx2.h"
#else
#include "rbee_kernels/linear_portable.h"
#endif

namespace rbee::kernels {
namespace {

// Columns whose floats are in the first-level cache at a time: 16 KiB.
constexpr std::size_t kExactCols = 256;

/// out[M][16] (+)= x[M][cols] * weights[cols][16].
template <std::size_t M, typename T>
inline void float_tile(const T* weights, const float* x, std::size_t x_stride, std::size_t cols, bool add, float* out,
                       std::size_t stride) {
    Vec sums[M];
#pragma GCC unroll 16
    for (std::size_t m = 0; m < M; ++m) {
        sums[m] = add ? load(out + m * stride) : broadcast(0.0F);
    }
    for (std::size_t k = 0; k < cols; ++k) {
        const Vec w = load(weights + k * kPanelRows);
#pragma GCC unroll 16
        for (std::size_t m = 0; m < M; ++m) {
            sums[m] = fma(broadcast(x[m * x_stride + k]), w, sums[m]);
        }
    }
#pragma GCC unroll 16
    for (std::size_t m = 0; m < M; ++m) {
        store(out + m * stride, sums[m]);
    }
}

template <typename T>
void multiply_floats(const T* weights, std::size_t cols, const Activations& activations, std::size_t first, bool add,
                     float* out, std::size_t stride) {
    for (std::size_t row = 0; row < activations.rows;) {
        const std::size_t rows = tile_rows(activations.rows - row, kFloatTileRows);
        const float* x = activations.values + row * activations.values_stride + first;
        with_rows<kFloatTileRows>(rows, [&](auto m) {
            float_tile<decltype(m)::value>(weights, x, activations.values_stride, cols, add, out + row * stride,
                                           stride);
        });
        row += rows;
    }
}

/// Column k of all 16 rows of a group, as floats.
template <WeightFormat F>
inline void unpack_group(const std::uint8_t* panel, std::size_t group, float* out) {
    constexpr std::size_t half_cols = kGroup / Group<F>::kHalves;
    std::int8_t numbers[kGroup * kPanelRows];
    unpack_numbers<F>(Group<F>::quants(panel, group), numbers);
    for (std::size_t half = 0; half < Group<F>::kHalves; ++half) {
        const Vec scale = Group<F>::scales(panel, group, half);
        [[maybe_unused]] Vec minimum;
        if constexpr (Group<F>::kMinimum) {
            minimum = Group<F>::minimums(panel, group, half);
        }
        for (std::size_t k = half * half_cols; k < (half + 1) * half_cols; ++k) {
            const Vec number = signed_bytes(numbers + k / 4 * kQuadBytes, k % 4);
            if constexpr (Group<F>::kMinimum) {
                store(out + k * kPanelRows, fma(number, scale, minimum));
            } else {
                store(out + k * kPanelRows, number * scale);
            }
        }
    }
}

template <WeightFormat F>
void multiply_exactly(const std::uint8_t* panel, std::size_t cols, const Activations& activations, float* scratch,
                      float* out, std::size_t stride) {
    for (std::size_t first = 0; first < cols; first += kExactCols) {
        const std::size_t some = cols - first < kExactCols ? cols - first : kExactCols;
        for (std::size_t k = 0; k < some; k += kGroup) {
            unpack_group<F>(panel, (first + k) / kGroup, scratch + k * kPanelRows);
        }
        multiply_floats(scratch, some, activations, first, first != 0, out, stride);
    }
}

template <WeightFormat F>
void multiply_format(const Matrix& matrix, const std::uint8_t* panel, const Activations& activations,
                     const std::uint8_t* next, void* scratch, float* out, std::size_t stride) {
    if constexpr (F == WeightFormat::kF32) {
        multiply_floats(reinterpret_cast<const float*>(panel), matrix.cols, activations, 0, false, out, stride);
    } else if constexpr (F == WeightFormat::kF16) {
        multiply_floats(reinterpret_cast<const Half*>(panel), matrix.cols, activations, 0, false, out, stride);
    } else if constexpr (F == WeightFormat::kBF16) {
        multiply_floats(reinterpret_cast<const BFloat*>(panel), matrix.cols, activations, 0, false, out, stride);
    } else if (activations.quants == nullptr) {
        multiply_exactly<F>(panel, matrix.cols, activations, static_cast<float*>(scratch), out, stride);
    } else {
        multiply_quantized<F>(panel, matrix.cols, activations, next, scratch, out, stride);
    }
}

void multiply(const Matrix& matrix, std::size_t panel, const Activations& activations, const std::uint8_t* next,
              void* scratch, float* out, std::size_t stride) {
    with_format(matrix.format, [&](auto format) {
        multiply_format<decltype(format)::value>(matrix, matrix.panel(panel), activations, next, scratch, out, stride);
    });
}

/// The floats of an exact product's columns, or an unpacked panel.
std::size_t linear_scratch_bytes(std::size_t cols) {
    const std::size_t exact = kExactCols * kPanelRows * sizeof(float);
    const std::size_t unpacked = cols / kGroup * kUnpackedGroupBytes;
    return exact > unpacked ? exact : unpacked;
}

template <typename T>
void unpack_floats(const std::uint8_t* panel, std::size_t row, std::size_t cols, float* out) {
    float lanes[kPanelRows];
    for (std::size_t k = 0; k < cols; ++k) {
        store(lanes, load(reinterpret_cast<const T*>(panel) + k * kPanelRows));
        out[k] = lanes[row];
    }
}

void unpack_row(const Matrix& matrix, std::size_t row, float* out) {
    const std::uint8_t* panel = matrix.panel(row / kPanelRows);
    row %= kPanelRows;
    with_format(matrix.format, [&](auto constant) {
        constexpr WeightFormat F = decltype(constant)::value;
        if constexpr (F == WeightFormat::kF32) {
            unpack_floats<float>(panel, row, matrix.cols, out);
        } else if constexpr (F == WeightFormat::kF16) {
            unpack_floats<Half>(panel, row, matrix.cols, out);
        } else if constexpr (F == WeightFormat::kBF16) {
            unpack_floats<BFloat>(panel, row, matrix.cols, out);
        } else {
            float columns[kGroup * kPanelRows];
            for (std::size_t k = 0; k < matrix.cols; k += kGroup) {
                unpack_group<F>(panel, k / kGroup, columns);
                for (std::size_t i = 0; i < kGroup; ++i) {
                    out[k + i] = columns[i * kPanelRows + row];
                }
            }
        }
    });
}

constexpr LinearFunctions kLinearFunctions{linear_scratch_bytes, multiply, unpack_row, peak};

}  // namespace
}  // namespace rbee::kernels
