// The memory that the threads of a program share, under the views that explorer.h describes.
//
// Owns the messages of each word, the accesses to plain memory, and what each thread has seen of both; from these it
// follows in how many ways a thread can take its next step. Does not know which way is taken, or what has been tried.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "explorer.h"

namespace model {

constexpr std::size_t kMaxThreads = 4;
constexpr std::size_t kPlainSlots = 1 + kMaxThreads;  // of a piece of plain memory: writes, reads of each thread
constexpr std::size_t kSlots = 64;                    // one of each word, kPlainSlots of each piece of plain memory

/// Up to which message of each word a thread or message has seen; for plain memory, which of its writes and reads.
struct View {
    std::array<std::uint8_t, kSlots> at{};

    void join(const View& other) {
        for (std::size_t i = 0; i < kSlots; ++i) {
            at[i] = std::max(at[i], other.at[i]);
        }
    }
};

struct Hash {
    std::uint64_t a = 0x9e3779b97f4a7c15;
    std::uint64_t b = 0xc2b2ae3d27d4eb4f;

    void add(std::uint64_t value) {
        a = (a ^ value) * 0xff51afd7ed558ccd;
        a ^= a >> 32;
        b = (b + value) * 0xc4ceb9fe1a85ec53;
        b ^= b >> 29;
    }
    void add(const View& view) {
        for (std::size_t i = 0; i < kSlots; i += sizeof(std::uint64_t)) {
            std::uint64_t eight;
            std::memcpy(&eight, &view.at[i], sizeof eight);
            add(eight);
        }
    }
    bool operator==(const Hash& other) const { return a == other.a && b == other.b; }
};

struct HashOfHash {
    std::size_t operator()(const Hash& hash) const { return hash.a; }
};

/// One value in a word's modification order, and the view that an acquire of it joins.
struct Message {
    std::uint64_t value = 0;
    std::uint64_t operand = 0;
    Kind kind = Kind::store;
    View view{};

    bool continues() const { return kind != Kind::store; }  // a read-modify-write: right behind what it read
};

/// A word, or a piece of plain memory. Keeps its index and its slots from one execution to the next.
struct Place {
    const void* address = nullptr;
    std::size_t slot = 0;
    bool plain = false;
    std::uint64_t initial = 0;
    std::vector<Message> messages{};                 // of a word
    std::array<std::uint8_t, kPlainSlots> counts{};  // of plain memory: how many accesses of each sort there were
    std::uint64_t content = 0;                       // of plain memory: a hash
};

/// What memory knows of a thread.
struct Thread {
    View view{};
    Hash history{};  // everything that it has done and read: its local state
    Operation next{Kind::load};
    std::size_t place = 0;  // of the next operation
    bool ended = false;
};

/// During one execution after the other. Threads are numbers, in the order in which the program has them.
class Memory {
public:
    /// `program` has the threads and the names of places; it must stay, and may be another at each restart.
    explicit Memory(const Program& program) : program_(program) {}

    /// Back to what was there before the threads started.
    void restart();

    /// A thread is about to do this, or has ended.
    void announce(std::size_t thread, const Operation& operation);
    void end(std::size_t thread) { threads_[thread].ended = true; }

    const Operation& announced(std::size_t thread) const { return threads_[thread].next; }
    bool has_ended(std::size_t thread) const { return threads_[thread].ended; }

    /// In how many ways a thread can take its next step; 0 if it must wait or has ended.
    std::size_t variants(std::size_t thread) const;

    /// Takes the step; returns what was read.
    std::uint64_t execute(std::size_t thread, std::size_t variant);

    /// These two end the execution if there is a data race.
    void read_plain(std::size_t thread, const void* memory);
    void write_plain(std::size_t thread, void* memory, const void* value, std::size_t bytes);

    /// Everything on which the rest of an execution depends, with message numbers that count from the oldest one that
    /// a thread can still read.
    Hash state() const;

    std::uint64_t final_value(const void* word) const;

private:
    std::uint64_t take(Thread& me, std::size_t variant);
    std::uint64_t read(Thread& me, const Place& place, std::size_t from);
    void write(Thread& me, Place& place, std::size_t at, std::uint64_t value, const View& continued);
    void make_room(std::size_t slot, std::size_t at);
    Place& place_at(const void* address, bool plain, std::size_t slots);
    std::size_t word_at(const Operation& operation);
    Place& plain_at(const void* address) { return place_at(address, true, kPlainSlots); }

    const Program& program_;
    std::array<Thread, kMaxThreads> threads_;
    std::vector<Place> places_;
    std::unordered_map<const void*, std::size_t> index_;  // into places_
    std::size_t used_slots_ = 0;
    View fence_view_;
};

}  // namespace model
