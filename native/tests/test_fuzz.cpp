// Random bytes written over the whole arena between random calls of both sides: whatever the other process may have
// left there, every call returns or throws one of its two errors, and touches nothing outside the mapping or beside a
// ring.
//
// RBEE_FUZZ_ROUNDS sets how long; a failure names the seed of its round, and RBEE_FUZZ_SEED starts with that one.

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "rbee/consumer.h"
#include "rbee/producer.h"

namespace {

#if defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kRounds = 100;  // all in one thread
#else
constexpr std::uint64_t kRounds = 3'000;
#endif

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

/// One arena, both of its sides, and a writer of random bytes.
class Round {
public:
    explicit Round(std::uint64_t seed)
        : random_{seed * 0x9e3779b97f4a7c15 | 1},
          memory_(64 << random_.below(2), 2 << random_.below(4), index()),
          arena_(memory_.attach()),
          cancelled_(0) {
        begin(arena_);
        for (std::uint32_t request = random_.below(100); request != 0; --request) {
            guarded([this] { start(); });
        }
    }

    void run() {
        const std::uint32_t calls = 50 + random_.below(200);
        for (std::uint32_t i = 0; i < calls; ++i) {
            // Some real traffic first, so that there is something to damage.
            if (i > 20 && random_.below(3) == 0) {
                scribble();
            }
            guarded([this] { call(); });
        }
    }

private:
    void begin(const rbee::Arena& arena) {
        producer_ = std::make_unique<rbee::Producer>(arena, memory_.doorbell());
        consumer_ = std::make_unique<rbee::Consumer>(arena, memory_.doorbell());
    }

    template <typename Call>
    static void guarded(Call call) {
        try {
            call();
        } catch (const rbee::TransportError&) {
        } catch (const std::invalid_argument&) {
        }
    }

    void start() {
        rbee::Consumer::Assigned assigned{};
        if (consumer_->assign(assigned)) {
            producer_->open(assigned.ring, assigned.generation);
        }
    }

    /// Anything that a process does with an arena.
    void call() {
        const std::uint32_t ring = random_.below(arena_.geometry.num_rings + 2);
        switch (random_.below(20)) {
            case 0: return attach();
            case 1: return start();
            case 2: return producer_->open(ring, value32());
            case 3: return consumer_->beat(value32());
            case 4: return consumer_->pause(ring);
            case 5: return static_cast<void>(consumer_->resume(ring));
            case 6: return static_cast<void>(consumer_->cancel(ring));
            case 7: return consumer_->expect_all();
            case 8: return static_cast<void>(consumer_->find_stale() || consumer_->poll(0));
            case 9: return producer_->arm_wait();
            case 10: return take_cancelled();
            case 11: return free_space(ring);
            case 12:
            case 13: return drain_copying();
            case 14:
            case 15: return drain();
            default: return commit();
        }
    }

    /// A process that attaches now, to all of the memory or to the part of it that was mapped.
    void attach() {
        const std::size_t mapped = random_.below(4) == 0 ? random_() % memory_.bytes() : memory_.bytes();
        const rbee::Arena arena = rbee::attach(memory_.base(), mapped);
        CHECK(arena.geometry.total_bytes <= mapped);
        CHECK(is_planned(arena.geometry));
        if (arena.geometry.total_bytes == memory_.bytes()) {  // else its gaps lie elsewhere than TestArena thinks
            arena_ = arena;
            begin(arena);
        }
    }

    static bool is_planned(const rbee::Geometry& geometry) {
        try {
            const rbee::Geometry planned = rbee::plan(geometry.num_rings, geometry.ring_capacity);
            return std::memcmp(&geometry, &planned, sizeof planned) == 0;
        } catch (const std::invalid_argument&) {
            return false;
        }
    }

    void take_cancelled() {
        cancelled_.clear();
        producer_->take_cancelled(cancelled_);
        for (const std::uint32_t ring : cancelled_) {
            CHECK(ring < arena_.geometry.num_rings);
        }
    }

    void free_space(std::uint32_t ring) { CHECK(producer_->free_space(ring) <= arena_.geometry.ring_capacity); }

    void drain() {
        const std::size_t budget = 1 + random_.below(200);
        std::size_t taken = 0;
        std::uint64_t sum = 0;
        const auto then = random_.below(2) == 0 ? rbee::Then::arm : rbee::Then::keep_polling;
        consumer_->drain(budget, then, [&](std::uint32_t ring, const rbee::Records& records, rbee::FinishCode) {
            CHECK(ring < arena_.geometry.num_rings && records.size() <= arena_.geometry.ring_capacity);
            for (std::uint32_t i = 0; i < records.size(); ++i) {
                sum += records[i].token_id;
            }
            taken += records.size();
        });
        CHECK(taken <= budget && sum <= taken * UINT32_MAX);
    }

    void drain_copying() {
        consumer_->drain(SIZE_MAX, drained_);
        CHECK(drained_.records.size() <= std::size_t{arena_.geometry.num_rings} * arena_.geometry.ring_capacity);
        CHECK(drained_.rings.size() <= arena_.geometry.num_rings);
        CHECK(drained_.rings.empty() || drained_.ends.back() == drained_.records.size());
    }

    void commit() {
        std::uint32_t rings[8], tokens[8], finished[2];
        const float logprobs[8] = {};
        const rbee::FinishCode reasons[2] = {1, static_cast<rbee::FinishCode>(random_.below(8))};
        const std::uint32_t first = random_.below(arena_.geometry.num_rings + 1);
        for (std::uint32_t i = 0; i < 8; ++i) {
            rings[i] = first + random_.below(3);
            tokens[i] = value32();
        }
        for (std::uint32_t& ring : finished) {
            ring = first + random_.below(3);
        }
        const std::uint32_t num_finished = random_.below(4) == 0 ? 1 + random_.below(2) : 0;
        producer_->commit({random_.below(9), rings, tokens, logprobs, num_finished, finished, reasons});
    }

    /// Changes some bytes somewhere; half of the time in a word that one side reads of the other.
    void scribble() {
        const rbee::Geometry& geometry = arena_.geometry;
        const std::uint64_t regions[][2] = {{0, sizeof(rbee::Header)},
                                            {offsetof(rbee::FixedPart, doorbell), offsetof(rbee::FixedPart, engine)},
                                            {geometry.tails, geometry.generations},
                                            {geometry.finish, geometry.heads},
                                            {geometry.heads, geometry.cancel},
                                            {geometry.cancel, geometry.starts},
                                            {geometry.ready, geometry.ready + geometry.num_rings / 8},
                                            {0, geometry.records}};
        const auto& region = regions[random_.below(8)];
        const std::uint64_t words = (region[1] - region[0]) / 4;
        unsigned char* const at = memory_.base() + region[0] + random_() % words * 4;
        unsigned char* const other = memory_.base() + region[0] + random_() % words * 4;
        std::uint32_t word;
        std::memcpy(&word, at, sizeof word);
        switch (random_.below(6)) {
            case 0: word = value32(); break;
            case 1: word ^= 1u << random_.below(32); break;
            case 2: word += random_.below(9) - 4; break;
            case 3: std::memcpy(&word, other, sizeof word); break;
            case 4: std::swap_ranges(at, at + sizeof word, other); return;
            default: return lie();
        }
        std::memcpy(at, &word, sizeof word);
    }

    /// A header that is consistent in itself.
    void lie() {
        const rbee::Geometry geometry = rbee::lay_out(random_.below(200), random_.below(20));
        std::memcpy(memory_.base() + offsetof(rbee::Header, geometry), &geometry, sizeof geometry);
    }

    std::uint32_t value32() {
        constexpr std::uint32_t kInteresting[] = {0, 1, 2, 63, 64, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
        return random_.below(2) == 0 ? kInteresting[random_.below(9)] : static_cast<std::uint32_t>(random_());
    }

    std::uint32_t index() { return value32(); }

    Random random_;
    TestArena memory_;
    rbee::Arena arena_;
    std::unique_ptr<rbee::Producer> producer_;
    std::unique_ptr<rbee::Consumer> consumer_;
    rbee::Drained drained_;
    std::vector<std::uint32_t> cancelled_;
};

void whatever_is_scribbled_nothing_leaves_the_mapping() {
    const std::uint64_t first = from_environment("RBEE_FUZZ_SEED", 1);
    const std::uint64_t rounds = from_environment("RBEE_FUZZ_ROUNDS", kRounds);
    for (std::uint64_t seed = first; seed < first + rounds; ++seed) {
        try {
            Round(seed).run();
        } catch (const std::exception& error) {
            throw std::logic_error(error.what() + (" in the round of seed " + std::to_string(seed)));
        }
    }
}

}  // namespace

extern const Test kFuzzTests[];
const Test kFuzzTests[] = {
    {"whatever is scribbled, nothing leaves the mapping", whatever_is_scribbled_nothing_leaves_the_mapping},
    {nullptr, nullptr}};
