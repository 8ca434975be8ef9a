// A life line shows one process that a thread of another one has ended.
//
// It is a robust mutex of POSIX, which the watched thread holds as long as it lives. When a thread ends, the kernel gives
// up its robust mutexes before the memory of its process, and it shows the end of a process after that: with the hundreds
// of megabytes of a model, 10 to 50 ms later. Owns the mutex. Does not know what either process does.

#pragma once

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>

#include <pthread.h>

#include "rbee/layout.h"

namespace rbee {

class LifeLine {
public:
    /// Bytes of shared memory that it takes, aligned to them.
    static constexpr std::size_t kBytes = 64;

    explicit LifeLine(void* memory) : mutex_(static_cast<pthread_mutex_t*>(memory)) {}

    /// Makes zeroed memory, which no other process has mapped yet, a line that no thread holds.
    void format() {
        pthread_mutexattr_t attributes;
        check(pthread_mutexattr_init(&attributes));
        check(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
        check(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
        check(pthread_mutex_init(mutex_, &attributes));
        pthread_mutexattr_destroy(&attributes);
    }

    /// From now on the calling thread holds it, to its end.
    void hold() { check(pthread_mutex_trylock(mutex_)); }

    /// Waits until the thread that holds it has ended.
    void wait() {
        const int result = pthread_mutex_lock(mutex_);
        check(result == EOWNERDEAD ? 0 : result);
        pthread_mutex_unlock(mutex_);  // not made consistent before: it cannot be held again
    }

private:
    static void check(int error) {
        if (error != 0) {
            throw TransportError(std::string("The life line cannot be used: ") + std::strerror(error) + ".");
        }
    }

    pthread_mutex_t* mutex_;
};
static_assert(sizeof(pthread_mutex_t) <= LifeLine::kBytes && alignof(pthread_mutex_t) <= LifeLine::kBytes);

}  // namespace rbee
