// Two processes over one arena, for any number of steps: rbee_core_stress [steps [seed]], 10^6 steps by default.
//
// The engine's steps come in bursts, with pauses in which the server falls asleep, and at the very moment when it is
// about to; then nothing comes after a step until it has been read, which would hide that its wakeup was lost. Requests
// come and go in rings that are often full, and some are cancelled. Both sides sleep without a timeout that would help
// them: when nothing has happened for kPatienceMs, the one that sleeps only looks at the words, to distinguish a missed
// wakeup from a slow machine. Prints what it saw as one line of JSON; exit code 1 if anything is wrong.
//
// Owns the start and the end of both, and the report. Does not know what either does in between.

#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "engine.h"
#include "server.h"
#include "traffic.h"

namespace {

using namespace stress;

/// Runs the engine in a process of its own; its result comes through `report`.
pid_t start_engine(const TestArena& memory, const int (&control)[2], const int (&report)[2], std::uint64_t steps,
                   std::uint64_t seed) {
    const pid_t pid = fork();
    if (pid != 0) {
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // it may wait for the server without ever looking at the channel
    close(control[1]);
    int code = 1;
    try {
        Engine engine(memory, control[0], steps, seed);
        engine.run();
        const std::uint64_t said[] = {engine.sleeps, engine.missed};
        code = write(report[1], said, sizeof said) == sizeof said ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "engine: %s\n", error.what());
    }
    _exit(code);
}

int run(std::uint64_t steps, std::uint64_t seed) {
    const TestArena memory(kRings, kCapacity, 0xfffff000);
    int control[2];
    int report[2];
    CHECK(pipe(control) == 0 && pipe(report) == 0 && fcntl(control[0], F_SETFL, O_NONBLOCK) == 0);
    const std::uint64_t start = rbee::monotonic_ns();
    const pid_t engine = start_engine(memory, control, report, steps, seed);
    CHECK(engine != -1);
    close(control[0]);
    close(report[1]);
    Server server(memory, control[1], seed + 1);
    server.run();
    close(control[1]);
    if (server.missed != 0) {
        kill(engine, SIGKILL);  // it may wait for the step that was missed
    }
    std::uint64_t said[2] = {};
    const bool reported = read(report[0], said, sizeof said) == sizeof said;
    int status = 0;
    CHECK(waitpid(engine, &status, 0) == engine);
    const double seconds = static_cast<double>(rbee::monotonic_ns() - start) / 1e9;

    const rbee::EngineLine& counted = server.fixed().engine;
    const auto value = [](const rbee::Word<std::uint64_t>& word) { return word.load(std::memory_order_relaxed); };
    const std::uint64_t missing = value(counted.tokens) - server.received;
    std::printf("{\"steps\": %" PRIu64 ", \"tokens\": %" PRIu64 ", \"requests\": %" PRIu32 ", \"cancels\": %" PRIu64
                ", \"full_rings\": %" PRIu64 ", \"wakes_written\": %" PRIu64 ", \"wakes_elided\": %" PRIu64
                ", \"server_sleeps\": %" PRIu64 ", \"engine_sleeps\": %" PRIu64 ", \"engine_wakes\": %" PRIu64
                ", \"missed_server_wakeups\": %" PRIu64 ", \"missed_engine_wakeups\": %" PRIu64 ", \"lost\": %" PRIu64
                ", \"repeated\": %" PRIu64 ", \"foreign\": %" PRIu64 ", \"seconds\": %.1f}\n",
                value(counted.steps), value(counted.tokens), server.requests, value(server.fixed().server.cancels),
                value(counted.full_ring_pauses), value(counted.wakes_written), value(counted.wakes_elided),
                server.sleeps, said[0], value(server.fixed().server.engine_wakes), server.missed, said[1],
                server.lost + missing, server.repeated, server.foreign, seconds);
    const std::uint64_t wrong = server.missed + said[1] + server.lost + missing + server.repeated + server.foreign;
    return reported && status == 0 && wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    const std::uint64_t steps = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1'000'000;
    const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
    try {
        return run(steps, seed * 2 + 88172645463325252);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "server: %s\n", error.what());
        return 1;  // the engine ends with its control channel
    }
}
