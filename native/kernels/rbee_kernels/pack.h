// Weight matrices from the layouts of files into those of weights.h, and back to floats.
//
// Owns what can be packed into what, and what quantizing floats does to them. Does not know files or threads: several
// may pack rows of the same matrix at once. Errors are std::invalid_argument with a sentence. No alignment is needed.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rbee_kernels/weights.h"

namespace rbee::kernels {

/// With the numbers that ggml gives them: all types that llama.cpp reads weights of.
enum class SourceType : std::uint32_t {
    kF32 = 0,
    kF16 = 1,
    kQ4_0 = 2,
    kQ4_1 = 3,
    kQ5_0 = 6,
    kQ5_1 = 7,
    kQ8_0 = 8,
    kQ2_K = 10,
    kQ3_K = 11,
    kQ4_K = 12,
    kQ5_K = 13,
    kQ6_K = 14,
    kIQ2_XXS = 16,
    kIQ2_XS = 17,
    kIQ3_XXS = 18,
    kIQ1_S = 19,
    kIQ4_NL = 20,
    kIQ3_S = 21,
    kIQ2_S = 22,
    kIQ4_XS = 23,
    kIQ1_M = 29,
    kBF16 = 30,
    kTQ1_0 = 34,
    kTQ2_0 = 35,
    kMXFP4 = 39,
    kNVFP4 = 40,
    kQ1_0 = 41,
    kQ2_0 = 42,
};

/// ggml's names of them.
std::vector<const char*> source_types();

/// A matrix as it is in a file: rows of `cols` numbers, or of their blocks, without anything between them.
struct SourceMatrix {
    SourceType type;
    const std::uint8_t* data;
    std::size_t bytes;
    std::size_t rows;
    std::size_t cols;
    const std::uint32_t* row_order = nullptr;  // if not null, [rows]: which row of the source the packed row i is
};

/// The format that holds a type without loss.
WeightFormat held_by(SourceType type);

/// Bytes of a packed matrix. Refuses what the format cannot have: quantized rows that are not whole blocks.
std::size_t packed_bytes(WeightFormat format, std::size_t rows, std::size_t cols);

/// A matrix in so many bytes, which must be exactly its own.
Matrix packed_matrix(WeightFormat format, std::size_t rows, std::size_t cols, const std::uint8_t* packed,
                     std::size_t bytes);

/// Refuses a matrix whose bytes or row_order do not fit its size, and a format that would lose anything but this:
/// * floats in kQ4 or kQ8 are quantized in groups of 32: kQ4 has their least as minimum and 1/15 of their range as
///   scale, kQ8 1/127 of their greatest magnitude as scale. These are rounded to binary16, then quants to the nearest.
///   A group that has NaN or infinity, or a factor beyond binary16, is NaN throughout: it shows in what is computed;
/// * zeros of quantized blocks may have another sign, and what a scale makes infinite may be NaN.
/// Only kF32 holds floats other than its own without quantizing them.
void check_packable(const SourceMatrix& source, WeightFormat format);

/// Writes the panel of rows `first_row` to first_row + 15 at `to`, the next one at to + stride, and so on to `end_row`.
/// Checks nothing: `check_packable` has accepted matrix and format, first_row is a multiple of 16, end_row another one
/// or `rows`. What is packed has exactly the weights of the source, but for what `check_packable` lists.
void pack_panels(const SourceMatrix& source, WeightFormat format, std::size_t first_row, std::size_t end_row,
                 std::uint8_t* to, std::size_t stride);

/// Both of these with all checks, to the rows' place in `packed`, which is the whole matrix and has `packed_bytes`.
void pack(const SourceMatrix& source, WeightFormat format, std::size_t first, std::size_t end, std::uint8_t* packed,
          std::size_t bytes);

/// Refuses a matrix whose bytes or row_order do not fit its size, and rows that it does not have.
void check_rows(const SourceMatrix& source, std::size_t first, std::size_t end);

/// Rows `first` to `end` as floats, [end - first][cols]: those that ggml makes of them, but for zeros and infinity as
/// above. Checks nothing; `check_rows` does.
void dequantize(const SourceMatrix& source, std::size_t first, std::size_t end, float* out);

/// The weights as floats, [rows][cols]; scale * quant + minimum is rounded once at most.
void unpack(const Matrix& matrix, float* out);

}  // namespace rbee::kernels
