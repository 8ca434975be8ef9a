// Both roles in one thread: what each call promises, one property per test.

#include <initializer_list>
#include <vector>

#include <poll.h>

#include "check.h"
#include "rbee/consumer.h"
#include "rbee/producer.h"

namespace {

using Tokens = std::vector<std::uint32_t>;

/// An arena with both of its sides, and short ways to use them.
struct Pair {
    explicit Pair(std::uint32_t capacity = 8, std::uint32_t first_index = 0, std::uint32_t generation = 0)
        : memory(64, capacity, first_index),
          producer(memory.attach(), memory.doorbell()),
          consumer(memory.attach(), memory.doorbell(), generation) {}

    rbee::Consumer::Assigned start() {
        rbee::Consumer::Assigned assigned{};
        CHECK(consumer.assign(assigned));
        producer.open(assigned.ring, assigned.generation);
        return assigned;
    }

    void commit(const Tokens& rings, const Tokens& tokens, const Tokens& finished = {}, rbee::FinishCode reason = 1) {
        const std::vector<float> logprobs(tokens.size(), -0.5f);
        const std::vector<rbee::FinishCode> reasons(finished.size(), reason);
        producer.commit({rings.size(), rings.data(), tokens.data(), logprobs.data(), finished.size(), finished.data(),
                         reasons.data()});
    }

    /// Whether the commits since the last drain have made the doorbell readable.
    bool rung() const {
        pollfd waiting{memory.doorbell(), POLLIN, 0};
        return poll(&waiting, 1, 0) == 1;
    }

    const rbee::Drained& drain(std::size_t budget = 4096) {
        consumer.drain(budget, drained);
        return drained;
    }

    Tokens tokens() const {
        Tokens ids;
        for (const rbee::Record& record : drained.records) {
            ids.push_back(record.token_id);
        }
        return ids;
    }

    TestArena memory;
    rbee::Producer producer;
    rbee::Consumer consumer;
    rbee::Drained drained;
};

void tokens_come_out_in_order_and_the_finish_with_the_last() {
    Pair pair;
    const std::uint32_t a = pair.start().ring;
    const std::uint32_t b = pair.start().ring;
    pair.commit({a, b, a}, {1, 2, 3});
    pair.commit({a}, {4}, {a}, 2);
    const rbee::Drained& drained = pair.drain();
    CHECK((drained.rings == Tokens{a, b}) && (drained.ends == Tokens{3, 4}));
    CHECK((drained.finishes == std::vector<rbee::FinishCode>{2, 0}) && (pair.tokens() == Tokens{1, 3, 4, 2}));
    CHECK(drained.records[0].commit_ns == drained.records[3].commit_ns);
    CHECK(drained.records[0].commit_ns <= drained.records[2].commit_ns && drained.records[0].logprob == -0.5f);
    CHECK(!drained.more && pair.consumer.in_use() == 1);
    CHECK(pair.drain().rings.empty());
}

void a_finish_without_tokens_arrives() {
    Pair pair;
    const std::uint32_t ring = pair.start().ring;
    pair.commit({}, {}, {ring}, 3);
    CHECK((pair.drain().rings == Tokens{ring}) && pair.drained.finishes[0] == 3 && pair.drained.ends[0] == 0);
    CHECK(pair.consumer.in_use() == 0);
}

void indices_wrap_around() {
    Pair pair(4, 0xfffffffd);
    const std::uint32_t ring = pair.start().ring;
    for (std::uint32_t round = 0; round < 100; ++round) {
        pair.commit({ring, ring, ring}, {round, round + 1, round + 2});
        CHECK(pair.producer.free_space(ring) == 1);
        pair.drain();
        CHECK((pair.tokens() == Tokens{round, round + 1, round + 2}));
    }
}

void generations_wrap_around() {
    Pair pair(4, 0, 0xfffffffe);
    for (const std::uint32_t generation : {0xffffffffU, 1U, 2U}) {  // 0 is no generation
        const rbee::Consumer::Assigned assigned = pair.start();
        CHECK(assigned.ring == 0 && assigned.generation == generation);
        Tokens cancelled;
        pair.producer.take_cancelled(cancelled);
        CHECK(cancelled.empty());  // a cancel of the generation before is none of this one
        pair.commit({0}, {generation});
        CHECK((pair.drain().finishes[0] == 0) && (pair.tokens() == Tokens{generation}));
        pair.consumer.cancel(0);
        pair.producer.take_cancelled(cancelled);
        CHECK((cancelled == Tokens{0}));
        pair.commit({}, {}, {0}, 3);
        CHECK((pair.drain().finishes[0] == 3) && pair.consumer.in_use() == 0);
    }
}

void a_step_that_does_not_fit_changes_nothing() {
    Pair pair(2);
    const std::uint32_t a = pair.start().ring;
    const std::uint32_t b = pair.start().ring;
    pair.commit({b}, {1});
    CHECK(pair.rung());
    pair.drain();
    pair.commit({b, b}, {2, 3});
    CHECK_THROWS(rbee::TransportError, pair.commit({a, b}, {10, 11}));
    CHECK_THROWS(rbee::TransportError, pair.commit({a, a, a}, {10, 11, 12}));
    CHECK_THROWS(rbee::TransportError, pair.commit({a, 60}, {10, 11}));
    CHECK_THROWS(std::invalid_argument, pair.commit({a, 64}, {10, 11}));
    CHECK_THROWS(std::invalid_argument, pair.commit({a}, {10}, {a, a}));
    CHECK_THROWS(std::invalid_argument, pair.commit({a}, {10}, {a, 0xffffffff}));
    CHECK_THROWS(std::invalid_argument, pair.commit({a}, {10}, {a}, 0));
    pair.drain();
    CHECK((pair.drained.rings == Tokens{b}) && (pair.tokens() == Tokens{2, 3}));
    pair.commit({a, a}, {20, 21}, {a});  // all of its space is still there, and it can finish
    pair.drain();
    CHECK((pair.tokens() == Tokens{20, 21}) && pair.drained.finishes[0] == 1);
    CHECK(pair.consumer.fixed().engine.steps.load() == 3);
}

void a_finished_ring_takes_nothing_more_until_it_is_opened_again() {
    Pair pair;
    const std::uint32_t ring = pair.start().ring;
    pair.commit({ring}, {1}, {ring});
    CHECK_THROWS(rbee::TransportError, pair.commit({ring}, {2}));
    CHECK_THROWS(rbee::TransportError, pair.producer.open(ring, 2));  // not drained yet
    pair.drain();
    pair.producer.open(ring, 2);
    CHECK_THROWS(rbee::TransportError, pair.producer.open(ring, 3));
    CHECK_THROWS(std::invalid_argument, pair.producer.open(63, 0));
}

void a_small_budget_delivers_everything_and_the_finish_last() {
    Pair pair;
    const std::uint32_t ring = pair.start().ring;
    pair.commit({ring, ring, ring}, {1, 2, 3}, {ring});
    CHECK(pair.drain(2).more && pair.drained.finishes[0] == 0 && (pair.tokens() == Tokens{1, 2}));
    CHECK(pair.consumer.in_use() == 1);
    CHECK(!pair.drain(2).more && pair.drained.finishes[0] == 1 && (pair.tokens() == Tokens{3}));
    CHECK_THROWS(std::invalid_argument, pair.drain(0));
}

/// With a budget of one record a turn, rings that are refilled all the time still get equal turns.
void a_small_budget_starves_nobody() {
    Pair pair(2);
    Tokens rings;
    for (int i = 0; i < 5; ++i) {
        rings.push_back(pair.start().ring);
    }
    std::vector<int> served(64);
    for (int turn = 0; turn < 50; ++turn) {
        for (const std::uint32_t ring : rings) {
            if (pair.producer.free_space(ring) != 0) {
                pair.commit({ring}, {0});
            }
        }
        ++served[pair.drain(1).rings.at(0)];
        CHECK(pair.drained.rings.size() == 1);
    }
    for (const std::uint32_t ring : rings) {
        CHECK(served[ring] == 10);
    }
}

void a_paused_ring_keeps_its_records() {
    Pair pair;
    const std::uint32_t a = pair.start().ring;
    const std::uint32_t b = pair.start().ring;
    pair.consumer.pause(a);
    pair.commit({a, b}, {1, 2}, {a});
    CHECK((pair.drain().rings == Tokens{b}) && !pair.drained.more && !pair.consumer.resume(b));
    CHECK(pair.consumer.resume(a));
    CHECK((pair.drain().rings == Tokens{a}) && (pair.tokens() == Tokens{1}) && pair.drained.finishes[0] == 1);
    CHECK_THROWS(std::invalid_argument, pair.consumer.pause(a));  // it has been given back
}

void a_finish_does_not_end_the_next_generation() {
    Pair pair;
    const rbee::Consumer::Assigned first = pair.start();
    pair.commit({first.ring}, {1}, {first.ring}, 4);
    pair.drain();
    const rbee::Consumer::Assigned second = pair.start();
    CHECK(second.ring == first.ring && second.generation == first.generation + 1);
    pair.commit({second.ring}, {2});
    CHECK(pair.drain().finishes[0] == 0 && pair.consumer.in_use() == 1);
}

void a_cancel_is_reported_once_and_only_for_its_generation() {
    Pair pair;
    const std::uint32_t ring = pair.start().ring;
    Tokens cancelled;
    pair.producer.take_cancelled(cancelled);
    CHECK(cancelled.empty());
    pair.consumer.cancel(ring);
    pair.producer.take_cancelled(cancelled);
    pair.producer.take_cancelled(cancelled);
    CHECK(cancelled == Tokens{ring});
    pair.commit({}, {}, {ring}, 3);
    pair.drain();
    CHECK(pair.start().ring == ring);
    cancelled.clear();
    pair.producer.take_cancelled(cancelled);
    CHECK(cancelled.empty());
    CHECK_THROWS(std::invalid_argument, pair.consumer.cancel(63));
}

void every_ring_can_be_taken_and_handed_back() {
    Pair pair;
    rbee::Consumer::Assigned assigned{};
    for (int i = 0; i < 64; ++i) {
        CHECK(pair.consumer.assign(assigned));
    }
    CHECK(!pair.consumer.assign(assigned) && pair.consumer.in_use() == 64);
    pair.consumer.pause(17);
    pair.producer.open(17, 1);
    pair.commit({}, {}, {17}, 3);
    CHECK(pair.drain().rings.empty());  // paused
    pair.consumer.expect_all();
    pair.drain();
    CHECK(pair.consumer.in_use() == 63);
    CHECK_THROWS(std::invalid_argument, pair.consumer.pause(17));
    CHECK_THROWS(std::invalid_argument, pair.consumer.pause(64));
    CHECK(pair.consumer.assign(assigned) && assigned.ring == 17 && assigned.generation == 2);
    pair.producer.open(17, 2);
    pair.commit({17}, {1}, {17});
    CHECK((pair.drain().rings == Tokens{17}));  // the pause ended with the request before
}

/// Queued tokens count until the engine publishes anything for their ring, or it is cancelled.
void queued_tokens_are_those_of_rings_that_have_not_begun() {
    Pair pair;
    rbee::Consumer::Assigned first{}, second{};
    CHECK(pair.consumer.assign(first, 100) && pair.consumer.assign(second, 20));
    CHECK(pair.consumer.queued_tokens() == 120 && !pair.consumer.has_begun(first.ring));
    pair.producer.open(first.ring, first.generation);
    pair.producer.open(second.ring, second.generation);
    pair.consumer.pause(first.ring);
    pair.commit({first.ring}, {1});
    CHECK(pair.drain().rings.empty());
    CHECK(pair.consumer.queued_tokens() == 20 && pair.consumer.has_begun(first.ring));
    pair.consumer.cancel(second.ring);
    CHECK(pair.consumer.queued_tokens() == 0);
}

/// A finish may be found before its ready bit, which then says nothing of the ring's next request.
void a_ready_bit_that_was_left_behind_begins_nothing() {
    Pair pair;
    const std::uint32_t first = pair.start().ring, second = pair.start().ring;
    pair.commit({first, second, second}, {1, 2, 3});
    pair.consumer.drain(2, rbee::Then::arm, [](std::uint32_t, const rbee::Records&, rbee::FinishCode) {});
    pair.commit({first}, {4});
    pair.consumer.drain(4, rbee::Then::arm, [&](std::uint32_t ring, const rbee::Records&, rbee::FinishCode finish) {
        if (finish == 0 && pair.consumer.in_use() == 2) {
            pair.commit({}, {}, {ring == first ? second : first});  // while the other one is about to be drained
        }
    });
    CHECK(pair.consumer.in_use() == 1);
    rbee::Consumer::Assigned again{};
    CHECK(pair.consumer.assign(again, 7) && again.generation == 2);
    pair.producer.open(again.ring, again.generation);
    pair.consumer.pause(again.ring);
    pair.drain();
    CHECK(pair.consumer.queued_tokens() == 7 && !pair.consumer.has_begun(again.ring));
}

void the_doorbell_rings_only_for_a_server_that_sleeps() {
    Pair pair;
    const std::uint32_t ring = pair.start().ring;
    pair.commit({ring}, {1});  // armed from the start
    CHECK(pair.rung());
    pair.commit({ring}, {2});
    pair.drain(1);
    CHECK(!pair.rung() && pair.drained.more);  // awake: it will come again by itself
    pair.commit({ring}, {3});
    CHECK(!pair.rung());
    CHECK(!pair.drain().more);
    pair.commit({ring}, {4});
    CHECK(pair.rung());
    pair.drain();
    CHECK(!pair.drain().more && !pair.rung());  // a drain while armed stays armed
    pair.producer.commit({});                   // nothing to publish
    CHECK(!pair.rung());
    CHECK(pair.consumer.fixed().engine.wakes_written.load() == 2);
    CHECK(pair.consumer.fixed().engine.wakes_elided.load() == 2);
}

void a_waiting_engine_is_woken_by_cancel_and_by_space() {
    Pair pair(2);
    pair.producer.arm_wait();  // no ring is open: nothing to wait for
    const std::uint32_t ring = pair.start().ring;
    CHECK(!pair.consumer.cancel(ring));
    pair.producer.arm_wait();
    CHECK(pair.consumer.cancel(ring) && !pair.consumer.cancel(ring));
    pair.commit({ring, ring}, {1, 2});
    CHECK(pair.producer.free_space(ring) == 0);
    pair.producer.arm_wait();
    CHECK(pair.drain().needs_wake && !pair.drain().needs_wake);
    pair.producer.arm_wait();
    pair.commit({ring}, {3});  // it steps again: it does not sleep
    CHECK(!pair.drain().needs_wake);
    CHECK(pair.consumer.fixed().engine.full_ring_pauses.load() == 1);
}

void tokens_of_an_unfinished_commit_are_found_after_the_engines_death() {
    Pair pair;
    const std::uint32_t ring = pair.start().ring;
    pair.start();
    pair.commit({ring}, {1});
    pair.memory.attach().ready[0].store(0);  // as if the engine had died before setting the bit
    CHECK(pair.drain().rings.empty());
    pair.consumer.expect_all();
    CHECK((pair.drain().rings == Tokens{ring}) && (pair.tokens() == Tokens{1}));
}

void the_backstop_finds_what_nobody_rang_for() {
    Pair pair;
    const std::uint32_t ring = pair.start().ring;
    pair.drain();
    CHECK(!pair.consumer.find_stale() && !pair.consumer.find_stale());
    pair.commit({ring}, {1});
    CHECK(!pair.consumer.find_stale());  // the server may be about to be woken
    pair.drain();
    CHECK(!pair.consumer.find_stale() && !pair.consumer.find_stale());
    pair.commit({ring}, {2});
    CHECK(!pair.consumer.find_stale() && pair.consumer.find_stale());
    CHECK(pair.consumer.fixed().server.stale_wakeups.load() == 1);
}

void a_tail_beyond_the_capacity_is_a_corrupt_ring() {
    Pair pair(4);
    const std::uint32_t ring = pair.start().ring;
    pair.commit({ring}, {1});
    pair.memory.attach().tails[ring].store(6);
    CHECK_THROWS(rbee::TransportError, pair.drain());
    pair.memory.attach().heads[ring].store(2);  // beyond our tail
    CHECK_THROWS(rbee::TransportError, pair.producer.free_space(ring));
    CHECK_THROWS(rbee::TransportError, pair.commit({ring, ring, ring, ring}, {1, 2, 3, 4}));
}

void records_in_a_free_ring_are_refused() {
    Pair pair(4);
    pair.producer.open(5, 1);  // the server never assigned it
    pair.commit({5}, {1});
    CHECK_THROWS(rbee::TransportError, pair.drain());
}

void a_doorbell_that_could_block_is_refused() {
    const TestArena memory(64, 2);
    const int blocking = eventfd(0, 0);
    CHECK_THROWS(rbee::TransportError, rbee::Consumer(memory.attach(), blocking));
    close(blocking);
    CHECK_THROWS(rbee::TransportError, rbee::Producer(memory.attach(), blocking));
}

}  // namespace

extern const Test kRolesTests[];
const Test kRolesTests[] = {
    {"tokens come out in order and the finish with the last", tokens_come_out_in_order_and_the_finish_with_the_last},
    {"a finish without tokens arrives", a_finish_without_tokens_arrives},
    {"indices wrap around", indices_wrap_around},
    {"generations wrap around", generations_wrap_around},
    {"a step that does not fit changes nothing", a_step_that_does_not_fit_changes_nothing},
    {"a finished ring takes nothing more until it is opened again",
     a_finished_ring_takes_nothing_more_until_it_is_opened_again},
    {"a small budget delivers everything and the finish last", a_small_budget_delivers_everything_and_the_finish_last},
    {"a small budget starves nobody", a_small_budget_starves_nobody},
    {"a paused ring keeps its records", a_paused_ring_keeps_its_records},
    {"a finish does not end the next generation", a_finish_does_not_end_the_next_generation},
    {"a cancel is reported once and only for its generation", a_cancel_is_reported_once_and_only_for_its_generation},
    {"every ring can be taken and handed back", every_ring_can_be_taken_and_handed_back},
    {"queued tokens are those of rings that have not begun", queued_tokens_are_those_of_rings_that_have_not_begun},
    {"a ready bit that was left behind begins nothing", a_ready_bit_that_was_left_behind_begins_nothing},
    {"the doorbell rings only for a server that sleeps", the_doorbell_rings_only_for_a_server_that_sleeps},
    {"a waiting engine is woken by cancel and by space", a_waiting_engine_is_woken_by_cancel_and_by_space},
    {"tokens of an unfinished commit are found after the engine's death",
     tokens_of_an_unfinished_commit_are_found_after_the_engines_death},
    {"the backstop finds what nobody rang for", the_backstop_finds_what_nobody_rang_for},
    {"a tail beyond the capacity is a corrupt ring", a_tail_beyond_the_capacity_is_a_corrupt_ring},
    {"records in a free ring are refused", records_in_a_free_ring_are_refused},
    {"a doorbell that could block is refused", a_doorbell_that_could_block_is_refused},
    {nullptr, nullptr}};
