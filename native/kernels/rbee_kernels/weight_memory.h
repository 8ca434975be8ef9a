// The memory that a step streams the weights from.
//
// Owns where each matrix and vector lies, and packs matrices there. Does not know what they are called or what they are
// for.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "rbee/progress.h"
#include "rbee_kernels/memory.h"
#include "rbee_kernels/pack.h"
#include "rbee_kernels/thread_pool.h"
#include "rbee_kernels/weights.h"

namespace rbee::kernels {

/// All weights in the order in which a step reads them, on huge pages. Matrices get their places first and are packed
/// there afterwards, piece by piece, by all threads: until then their sources must stay.
class WeightMemory {
public:
    explicit WeightMemory(std::size_t bytes) : region_(bytes), end_(region_.data()) {}

    const float* copy(const float* data, std::size_t size) {
        unsigned char* const place = end_;
        std::memcpy(place, data, size * sizeof(float));
        end_ += padded(size * sizeof(float));
        return reinterpret_cast<const float*>(place);
    }
    /// A matrix that `check_packable` has accepted.
    Matrix place(const SourceMatrix& source, WeightFormat format) {
        const Matrix matrix{format, source.rows, source.cols, end_};
        add_pieces(source, format, end_, panel_bytes(format, source.cols));
        end_ += padded(matrix.bytes());
        return matrix;
    }
    /// Two with as many panels: the first of the one, the first of the other, the second of the one ...
    std::pair<Matrix, Matrix> interleave(const SourceMatrix& one, WeightFormat one_format, const SourceMatrix& other,
                                         WeightFormat other_format) {
        const std::size_t size = padded(panel_bytes(one_format, one.cols));
        const std::size_t stride = size + padded(panel_bytes(other_format, other.cols));
        const Matrix first{one_format, one.rows, one.cols, end_, stride};
        const Matrix second{other_format, other.rows, other.cols, end_ + size, stride};
        add_pieces(one, one_format, end_, stride);
        add_pieces(other, other_format, end_ + size, stride);
        end_ += first.num_panels() * stride;
        return {first, second};
    }
    static std::size_t padded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

    /// Of the sources of all matrices.
    std::size_t source_bytes() const { return source_bytes_; }
    bool is_packed() const { return next_ == pieces_.size(); }

    /// Packs the next pieces, of about `bytes` in their sources; returns the bytes packed so far.
    std::size_t pack(std::size_t bytes, ThreadPool& pool, Progress& progress) {
        const std::size_t first = next_;
        for (const std::size_t limit = packed_bytes_ + bytes; next_ < pieces_.size() && packed_bytes_ < limit;
             ++next_) {
            packed_bytes_ += pieces_[next_].bytes;
        }
        pool.for_each(next_ - first, [&](std::size_t i, std::size_t thread) {
            const Piece& piece = pieces_[first + i];
            pack_panels(piece.source, piece.format, piece.first_row, piece.end_row, piece.to, piece.stride);
            if (thread == 0) {
                progress.advance();
            }
        });
        return packed_bytes_;
    }

private:
    struct Piece {
        SourceMatrix source;
        WeightFormat format;
        std::size_t first_row;
        std::size_t end_row;
        unsigned char* to;
        std::size_t stride;
        std::size_t bytes;
    };

    void add_pieces(const SourceMatrix& source, WeightFormat format, unsigned char* to, std::size_t stride) {
        constexpr std::size_t kPieceBytes = std::size_t{1} << 18;  // of the source: half a millisecond's work
        const std::size_t panel = source.bytes / std::max<std::size_t>(source.rows, 1) * kPanelRows;
        const std::size_t rows = std::max<std::size_t>(kPieceBytes / std::max<std::size_t>(panel, 1), 1) * kPanelRows;
        for (std::size_t row = 0; row < source.rows; row += rows) {
            const std::size_t end = std::min(row + rows, source.rows);
            const std::size_t bytes = source.bytes / source.rows * (end - row);
            pieces_.push_back({source, format, row, end, to + row / kPanelRows * stride, stride, bytes});
            source_bytes_ += bytes;
        }
    }

    Region region_;
    unsigned char* end_;
    std::vector<Piece> pieces_;
    std::size_t next_ = 0;
    std::size_t source_bytes_ = 0;
    std::size_t packed_bytes_ = 0;
};

}  // namespace rbee::kernels
