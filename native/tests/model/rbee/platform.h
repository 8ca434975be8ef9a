// The machine as the model check has it: stands in for include/rbee/platform.h, so that the core itself is explored.

#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>

#include <fcntl.h>
#include <sys/types.h>

#include "explorer.h"

namespace rbee {

/// As much of std::atomic as the core uses. Every order must be named: there is no seq_cst by default.
template <typename T>
class Word {
public:
    static constexpr bool is_always_lock_free = std::atomic<T>::is_always_lock_free;

    Word() = default;
    explicit Word(T value) : value_(value) {}
    Word(const Word&) = delete;
    Word& operator=(const Word&) = delete;

    T load(std::memory_order order) const {
        return model::exploring() ? perform({model::Kind::load, order, this, value_}) : value_;
    }
    void store(T value, std::memory_order order) {
        if (model::exploring()) {
            perform({model::Kind::store, order, this, value_, value});
        } else {
            value_ = value;
        }
    }
    T exchange(T value, std::memory_order order) {
        return perform({model::Kind::exchange, order, this, value_, value});
    }
    T fetch_add(T value, std::memory_order order) {
        return perform({model::Kind::fetch_add, order, this, value_, value});
    }
    /// Returns nothing, because the explorer lets others come between it and what follows: see explorer.h.
    void fetch_or(T value, std::memory_order order) { perform({model::Kind::fetch_or, order, this, value_, value}); }
    bool compare_exchange_strong(T& expected, T desired, std::memory_order success, std::memory_order failure) {
        if (failure != std::memory_order_relaxed) {
            model::violated("the model knows relaxed failures of compare_exchange_strong only");
        }
        const T found = perform({model::Kind::compare_exchange, success, this, value_, desired, expected});
        const bool exchanged = found == expected;
        expected = found;
        return exchanged;
    }
    /// Sleeps until the word is not 0; no other word becomes visible by that.
    void await(std::memory_order order = std::memory_order_relaxed) const {
        perform({model::Kind::await, order, this, value_});
    }

private:
    static T perform(const model::Operation& operation) { return static_cast<T>(model::perform(operation)); }

    T value_;  // before the threads start; then the explorer has the values
};

template <typename T>
T load_plain(const T& from) {
    model::read_plain(&from, sizeof from);
    return from;
}

template <typename T>
void store_plain(T& to, const T& value) {
    model::write_plain(&to, &value, sizeof to);
}

// Nothing depends on these, so they are no steps.
inline void count(Word<std::uint64_t>&, std::uint64_t = 1) {}
template <typename T>
void set_gauge(Word<T>&, T) {}
inline std::uint64_t monotonic_ns() { return 1; }
inline std::uint32_t process_id() { return 1; }
inline int descriptor_flags(int) { return O_NONBLOCK; }
inline void relax_processor() {}
inline void give_way() {}

/// The one eventfd. Relaxed: the kernel is trusted to keep its count, and not to order anything else.
inline Word<std::uint64_t> the_eventfd{0};

inline ssize_t add_to_eventfd(int) {
    the_eventfd.fetch_add(1, std::memory_order_relaxed);
    return sizeof(std::uint64_t);
}

inline ssize_t take_eventfd(int) {
    if (the_eventfd.exchange(0, std::memory_order_relaxed) == 0) {
        errno = EAGAIN;
        return -1;
    }
    return sizeof(std::uint64_t);
}

}  // namespace rbee
