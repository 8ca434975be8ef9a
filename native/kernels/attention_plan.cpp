#include "rbee_kernels/attention_plan.h"

#include <algorithm>

namespace rbee::kernels {
namespace {

// Rows (queries times heads) of a piece: a few bands of what the kernels compute together.
constexpr std::size_t kPieceRows = 96;
// Less than this is not worth a chunk of its own.
constexpr double kLeastNs = 2000;
// What a thread reads, computes and begins, for estimates.
constexpr double kBytesPerNs = 24;
constexpr double kMacsPerNs = 40;
constexpr double kPieceNs = 100;

}  // namespace

void AttentionPlan::make(const Step& step) {
    const std::size_t most_rows = std::max<std::size_t>(kPieceRows / heads_per_kv_, 1);
    whole_.pieces.clear();
    split_.pieces.clear();
    merges_.clear();
    num_places_ = 0;
    const auto piece_of = [&](std::size_t sequence, std::size_t head, std::size_t row) {
        const auto end = static_cast<std::size_t>(step.query_start[sequence + 1]);
        const auto context = static_cast<std::size_t>(step.context_lens[sequence]);
        return AttentionPiece{sequence, head, row, std::min(most_rows, end - row), 0, context, AttentionPiece::kWhole};
    };
    double total_ns = 0;
    for (std::size_t s = 0; s < step.num_sequences; ++s) {
        for (auto row = static_cast<std::size_t>(step.query_start[s]);
             row < static_cast<std::size_t>(step.query_start[s + 1]); row += most_rows) {
            total_ns += cost_ns(piece_of(s, 0, row)) * static_cast<double>(layout_.num_kv_heads);
        }
    }
    for (std::size_t s = 0; s < step.num_sequences; ++s) {
        const auto start = static_cast<std::size_t>(step.query_start[s]);
        const auto end = static_cast<std::size_t>(step.query_start[s + 1]);
        const std::size_t parts = end - start <= most_rows ? parts_of(piece_of(s, 0, start), total_ns) : 1;
        for (std::size_t head = 0; head < layout_.num_kv_heads; ++head) {
            for (std::size_t row = start; row < end; row += most_rows) {
                add(piece_of(s, head, row), parts);
            }
        }
        if (parts > 1) {
            merges_.push_back({start, end - start, num_places_, parts});
            num_places_ += parts * (end - start);
        }
    }
    divide(whole_);
    divide(split_);
}

/// In how many parts a piece is computed: all that it has, if it is more than half of a thread's share of the work.
std::size_t AttentionPlan::parts_of(const AttentionPiece& piece, double total_ns) const {
    if (threads_ == 1 || cost_ns(piece) * static_cast<double>(2 * threads_) <= total_ns) {
        return 1;
    }
    return layout_.tile_of(piece.end - 1) / kPartTiles + 1;
}

void AttentionPlan::add(const AttentionPiece& piece, std::size_t parts) {
    whole_.pieces.push_back(piece);
    if (parts == 1) {
        split_.pieces.push_back(piece);
        return;
    }
    for (std::size_t part = 0; part < parts; ++part) {
        AttentionPiece some = piece;
        some.begin = layout_.first_position_of(part * kPartTiles);
        some.end = std::min(layout_.first_position_of((part + 1) * kPartTiles), piece.end);
        some.place = num_places_ + part * piece.num_rows;
        split_.pieces.push_back(some);
    }
}

void AttentionPlan::divide(Chunks& chunks) const {
    double total = 0;
    for (const AttentionPiece& piece : chunks.pieces) {
        total += cost_ns(piece);
    }
    const double least = std::max(total / static_cast<double>(4 * threads_), kLeastNs);
    chunks.starts.assign(1, 0);
    double sum = 0;
    for (std::size_t i = 0; i < chunks.pieces.size(); ++i) {
        sum += cost_ns(chunks.pieces[i]);
        if (sum >= least || i + 1 == chunks.pieces.size()) {
            chunks.starts.push_back(i + 1);
            sum = 0;
        }
    }
}

double AttentionPlan::cost_ns(const AttentionPiece& piece) const {
    const auto numbers = static_cast<double>((piece.end - piece.begin) * layout_.head_dim * 2);
    const auto rows = static_cast<double>(piece.num_rows * heads_per_kv_);
    return kPieceNs + numbers * (rows / kMacsPerNs + 2 / kBytesPerNs);
}

}  // namespace rbee::kernels
