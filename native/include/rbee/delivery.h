// From rings straight to sockets: a drain that renders and sends the frames of the streams that were attached to it.
//
// Owns which ring has which outlet, and what a full or broken socket means. Does not know the event loop, nor HTTP
// beyond the framing of one chunk. The sockets belong to the event loop: an outlet must be detached before its
// descriptor is closed, and while bytes that the socket did not take wait elsewhere, the ring must be paused, or frames
// would overtake them.

#pragma once

#include <cerrno>
#include <memory>
#include <vector>

#include <sys/socket.h>

#include "rbee/consumer.h"
#include "rbee/frame_stream.h"
#include "rbee/sequence_times.h"

namespace rbee {

/// First token and gaps of one stream.
struct TokenTimes {
    std::uint64_t received_ns = 0;  // when the request had been received; 0: its first token is not timed
    std::uint64_t token_ns = 0;     // when the newest token was handed over, from the first content on

    /// So many tokens, at least one, were handed over at `now`; `content`: they showed anything.
    void count(Histograms& histograms, std::uint32_t num_tokens, bool content, std::uint64_t now) {
        if (token_ns != 0) {
            histograms.token_gap.add(now - token_ns);
        } else if (!content) {
            return;
        } else if (received_ns != 0) {
            histograms.first_token.add(now - received_ns);
        }
        if (num_tokens > 1) {
            histograms.token_gap.add(0, num_tokens - 1);
        }
        token_ns = now;
    }
};

/// One response's socket, and what is written to it.
struct Outlet {
    int fd;
    bool held = false;  // nothing is sent any more; all that is rendered is `blocked`
    TokenTimes times{};
    std::uint64_t written_ns = 0;  // when the last frames went out
    FrameStream stream;
};

/// What a drain did at attached rings and its caller must act on.
struct Deliveries {
    struct Rest {
        std::uint32_t ring;
        std::string bytes;
    };
    struct End {
        std::uint32_t ring;
        FinishCode finish;
    };
    std::vector<Rest> blocked;          // bytes that the socket did not take; the ring is paused now, or has ended
    std::vector<std::uint32_t> broken;  // rings whose socket is of no use any more
    std::vector<End> ended;             // rings that have finished, and are detached and free

    void clear() {
        blocked.clear();
        broken.clear();
        ended.clear();
    }
};

class Delivery {
public:
    /// For a consumer of `num_rings` rings, which must outlive it.
    Delivery(Consumer& consumer, std::uint32_t num_rings)
        : consumer_(consumer), outlets_(num_rings), times_(num_rings), sequences_(num_rings) {}

    /// Times the tokens of a newly assigned ring that drain() shows to its caller; `received_ns` 0: does not. `gaps`,
    /// if any, get what is between them.
    void time(std::uint32_t ring, std::uint64_t received_ns, std::shared_ptr<TokenGaps> gaps = {}) {
        times_.at(ring) = {received_ns, 0};
        sequences_[ring] = {};
        sequences_[ring].gaps = std::move(gaps);
        consumer_.forget_start(ring);
    }

    /// What has been drained of the sequence that was assigned this ring last, ended or not.
    const SequenceTimes& sequence(std::uint32_t ring) const { return sequences_.at(ring); }

    /// The caller has written what the last drain() put into `drained`.
    void note_delivered(const Drained& drained) {
        const std::uint64_t now = monotonic_ns();
        Histograms& histograms = consumer_.fixed().histograms;
        std::uint32_t start = 0;
        for (std::size_t i = 0; i < drained.rings.size(); ++i) {
            std::uint32_t num_tokens = 0;
            for (std::uint32_t record = start; record < drained.ends[i]; ++record) {
                histograms.delivery.add(now - drained.records[record].commit_ns);
                num_tokens += (drained.records[record].token_id & kSideRecord) == 0;
            }
            start = drained.ends[i];
            TokenTimes& times = drained_times_[i];
            if (num_tokens != 0 && times.received_ns != 0) {
                times.count(histograms, num_tokens, true, now);
            }
            if (drained.finishes[i] == 0) {  // else the ring may belong to another sequence by now
                times_[drained.rings[i]] = times;
            }
        }
    }

    /// From now on the ring's tokens go to this outlet; std::invalid_argument if there is no such ring. The outlet may
    /// have been held by a dead engine's ring that had nothing for it.
    void attach(std::uint32_t ring, std::shared_ptr<Outlet> outlet) {
        outlet->held = false;
        outlets_.at(ring) = std::move(outlet);
    }

    /// The ring's tokens are shown to drain()'s caller again. Harmless for a ring that is not attached.
    void detach(std::uint32_t ring) { outlets_.at(ring).reset(); }

    /// See Consumer::expect_all(). What a paused ring holds must not overtake what its socket waits for: it is rendered
    /// and then `blocked`, whole.
    void expect_all() {
        for (std::uint32_t ring = 0; ring < consumer_.num_rings(); ++ring) {
            if (outlets_[ring] && consumer_.is_paused(ring)) {
                outlets_[ring]->held = true;
            }
        }
        consumer_.expect_all();
    }

    /// Drains: attached rings to their sockets, the others into `drained`. Both are overwritten.
    void drain(std::size_t max_records, Then then, Drained& drained, Deliveries& deliveries) {
        drained.clear();
        drained_times_.clear();
        deliveries.clear();
        Split split{monotonic_ns(), 0, 0, 0, 0};
        const std::uint64_t start = split.now;
        std::uint64_t newest = 0;
        const DrainEnd end =
            consumer_.drain(max_records, then, [&](std::uint32_t ring, const Records& records, FinishCode finish) {
                if (records.size() != 0) {
                    newest = std::max(newest, records[records.size() - 1].commit_ns);
                }
                sequences_[ring].take(records);
                if (finish != 0) {
                    sequences_[ring].gaps.reset();
                }
                if (outlets_[ring]) {
                    deliver(ring, records, finish, deliveries, split);
                } else {
                    drained.add(ring, records, finish);
                    drained_times_.push_back(times_[ring]);
                }
            });
        for (const Deliveries::Rest& rest : deliveries.blocked) {
            if (outlets_[rest.ring] && !outlets_[rest.ring]->held) {  // else it has ended
                consumer_.pause(rest.ring);
            }
        }
        drained.more = end.more;
        drained.needs_wake = end.needs_wake;
        if (newest != 0 && newest <= start) {  // else it came while this drain was at work already
            consumer_.fixed().histograms.wakeup.add(start - newest);
        }
        ServerLines& line = consumer_.fixed().server;
        count(line.drain_ns, monotonic_ns() - start);
        count(line.render_ns, split.render_ns);
        count(line.send_ns, split.send_ns);
        count(line.direct_tokens, split.tokens);
        count(line.direct_sends, split.sends);
        count(line.blocked_sends, deliveries.blocked.size());
    }

private:
    /// Where the time of one drain goes.
    struct Split {
        std::uint64_t now;
        std::uint64_t render_ns;
        std::uint64_t send_ns;
        std::uint64_t tokens;
        std::uint64_t sends;

        /// The time since the last lap.
        std::uint64_t lap() {
            const std::uint64_t before = now;
            now = monotonic_ns();
            return now - before;
        }
    };

    static constexpr std::size_t kChunkHead = 18;  // sixteen hexadecimal digits, CR, LF

    void deliver(std::uint32_t ring, const Records& records, FinishCode finish, Deliveries& deliveries, Split& split) {
        Outlet& outlet = *outlets_[ring];
        split.lap();
        chunk_.assign(kChunkHead, ' ');
        outlet.stream.render(records, finish, chunk_);
        split.tokens += records.size();
        split.render_ns += split.lap();
        if (chunk_.size() > kChunkHead) {
            send_chunk(ring, outlet, deliveries, split);
        }
        Histogram& latencies = consumer_.fixed().histograms.delivery;
        for (std::uint32_t i = 0; i < records.size(); ++i) {
            latencies.add(split.now - records[i].commit_ns);
        }
        if (records.size() != 0) {
            const bool content = chunk_.size() > kChunkHead;
            outlet.times.count(consumer_.fixed().histograms, records.size(), content, split.now);
        }
        if (finish != 0) {
            deliveries.ended.push_back({ring, finish});
            outlets_[ring].reset();
        }
    }

    /// Sends the frames in `chunk_` as one HTTP/1.1 chunk, with one system call.
    void send_chunk(std::uint32_t ring, Outlet& outlet, Deliveries& deliveries, Split& split) {
        char digits[16];
        const auto size = chunk_.size() - kChunkHead;
        const auto num_digits =
            static_cast<std::size_t>(std::to_chars(digits, digits + sizeof digits, size, 16).ptr - digits);
        const std::size_t start = kChunkHead - 2 - num_digits;
        chunk_.replace(start, num_digits, digits, num_digits);
        chunk_.replace(kChunkHead - 2, 2, "\r\n");
        chunk_ += "\r\n";

        const std::size_t wanted = chunk_.size() - start;
        if (outlet.held) {
            deliveries.blocked.push_back({ring, chunk_.substr(start)});
            return;
        }
        const ssize_t sent = send(outlet.fd, chunk_.data() + start, wanted, MSG_DONTWAIT | MSG_NOSIGNAL);
        const int error = errno;
        RBEE_CRASH_POINT(frames_sent);
        split.send_ns += split.lap();
        ++split.sends;
        outlet.written_ns = split.now;
        if (sent == static_cast<ssize_t>(wanted)) {
            return;
        }
        if (sent >= 0 || error == EAGAIN || error == ENOBUFS || error == ENOMEM || error == EINTR) {
            const std::size_t taken = sent > 0 ? static_cast<std::size_t>(sent) : 0;
            deliveries.blocked.push_back({ring, chunk_.substr(start + taken)});
        } else {
            deliveries.broken.push_back(ring);
        }
    }

    Consumer& consumer_;
    std::vector<std::shared_ptr<Outlet>> outlets_;
    std::vector<TokenTimes> times_;          // by ring
    std::vector<TokenTimes> drained_times_;  // of the rings of the last drain
    std::vector<SequenceTimes> sequences_;   // by ring
    std::string chunk_;                      // kept for its memory
};

}  // namespace rbee
