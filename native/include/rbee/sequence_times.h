// When the tokens of one sequence came, by their commits.
//
// Owns first, last and gaps. Does not know when tokens were written to anyone: that is delivery.h's TokenTimes.

#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "rbee/consumer.h"

namespace rbee {

/// The gaps between the tokens of a request's sequences, all of them: exact, and 8 bytes for each token.
class TokenGaps {
public:
    void add(std::uint64_t ns) { gaps_.push_back(ns); }

    std::size_t size() const { return gaps_.size(); }

    /// The smallest gap that at least the share `q` of all are not above; 0 without a gap.
    std::uint64_t quantile(double q) {
        if (gaps_.empty()) {
            return 0;
        }
        const double rank = std::max(1.0, std::ceil(q * static_cast<double>(gaps_.size())));
        const std::size_t index = std::min(static_cast<std::size_t>(rank), gaps_.size()) - 1;
        const auto chosen = gaps_.begin() + static_cast<std::ptrdiff_t>(index);
        std::nth_element(gaps_.begin(), chosen, gaps_.end());
        return *chosen;
    }

private:
    std::vector<std::uint64_t> gaps_;
};

/// What a ring's records have shown so far.
struct SequenceTimes {
    std::uint64_t first_ns = 0;  // when the first output token was committed, CLOCK_MONOTONIC; 0: none yet
    std::uint64_t last_ns = 0;
    std::uint32_t num_tokens = 0;          // output tokens
    std::shared_ptr<TokenGaps> gaps = {};  // null: nobody asks for them

    void take(const Records& records) {
        for (std::uint32_t i = 0; i < records.size(); ++i) {
            const Record record = records[i];
            if ((record.token_id & kSideRecord) != 0) {
                continue;
            }
            if (first_ns == 0) {
                first_ns = record.commit_ns;
            } else if (gaps) {
                gaps->add(record.commit_ns - last_ns);
            }
            last_ns = record.commit_ns;
            ++num_tokens;
        }
    }
};

}  // namespace rbee
