// Both roles as threads over one mapping, so that ThreadSanitizer sees every pair of accesses, and with the real
// eventfd and poll(). A lost wakeup ends in a failure after kPatienceMs, never in a hang.

#pragma once

#include <exception>
#include <thread>

#include <poll.h>

#include "check.h"

constexpr int kPatienceMs = 10'000;

/// True once the descriptor is readable: looks a while without sleeping, because that hits the narrow interleavings far
/// more often, then sleeps like the real thing. False when patience ends.
inline bool wait_readable(int fd) {
    pollfd waiting{fd, POLLIN, 0};
    for (int i = 0; i < 200; ++i) {
        if (poll(&waiting, 1, 0) == 1) {
            return true;
        }
    }
    return poll(&waiting, 1, kPatienceMs) == 1;
}

/// Runs both roles; the first exception of either ends the test. `stop` ends the other one.
template <typename Engine, typename Server>
void run_roles(Engine engine, Server server) {
    std::atomic<bool> stop{false};
    std::exception_ptr error;
    std::thread thread([&] {
        try {
            engine(stop);
        } catch (...) {
            error = std::current_exception();
            stop = true;
        }
    });
    std::exception_ptr server_error;
    try {
        server(stop);
    } catch (...) {
        server_error = std::current_exception();
        stop = true;
    }
    thread.join();
    for (const std::exception_ptr& failure : {error, server_error}) {
        if (failure) {
            std::rethrow_exception(failure);
        }
    }
}
