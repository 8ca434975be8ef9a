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
    std::size_t num_pieces = 0;
    for (std::size_t s = 0; s < step.num_sequences; ++s) {
        const auto rows = static_cast<std::size_t>(step.query_start[s + 1] - step.query_start[s]);
        num_pieces += (rows + most_rows - 1) / most_rows * layout_.num_kv_heads;
    }
    for (std::size_t s = 0; s < step.num_sequences; ++s) {
        const auto start = static_cast<std::size_t>(step.query_start[s]);
        const auto end = static_cast<std::size_t>(step.query_start[s + 1]);
        const auto context = static_cast<std::size_t>(step.context_lens[s]);
        std::size_t parts = 1;
        if (end - start == 1 && threads_ > 1 && num_pieces < 2 * threads_) {
            parts = layout_.tile_of(context - 1) / kPartTiles + 1;
        }
        for (std::size_t head = 0; head < layout_.num_kv_heads; ++head) {
            for (std::size_t row = start; row < end; row += most_rows) {
                add({s, head, row, std::min(most_rows, end - row), 0, context, AttentionPiece::kWhole}, parts);
            }
        }
        if (parts > 1) {
            merges_.push_back({start, num_places_, parts});
            num_places_ += parts;
        }
    }
    divide(whole_);
    divide(split_);
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
        some.place = num_places_ + part;
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
