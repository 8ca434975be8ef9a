// What this machine can do at best: which kernels it runs; and, to hold them against, reading from memory and integer
// products.
//
// Owns the two measurements. Their documentation is rbee/engine/_kernels.pyi.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "rbee_kernels/instruction_sets.h"
#include "rbee_kernels/memory.h"
#include "rbee_kernels/thread_pool.h"

#include "kernels_module.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

namespace kernels = rbee::kernels;

double seconds_of(const std::chrono::steady_clock::time_point& started) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

/// Bytes per second that the threads together read, each its own part from beginning to end; the best of some passes.
double read_bandwidth(std::size_t mib, std::size_t threads) {
    const nb::gil_scoped_release release;
    kernels::ThreadPool pool(threads);
    const std::size_t bytes = mib << 20, share = bytes / threads / 64 * 64;
    const kernels::Region memory(bytes);
    std::vector<std::uint64_t> sums(threads * 8);
    const auto pass = [&](auto&& each) {
        const auto started = std::chrono::steady_clock::now();
        pool.for_each(threads, [&](std::size_t part, std::size_t) {
            auto* words = reinterpret_cast<std::uint64_t*>(memory.data() + part * share);
            each(words, share / sizeof(std::uint64_t), sums[part * 8]);
        });
        return seconds_of(started);
    };
    pass([](std::uint64_t* words, std::size_t count, std::uint64_t&) {
        for (std::size_t i = 0; i < count; ++i) {
            words[i] = i;
        }
    });
    double best = 0;
    for (int round = 0; round < 7; ++round) {
        const double took = pass([](const std::uint64_t* words, std::size_t count, std::uint64_t& result) {
            std::uint64_t sum[8] = {};
            for (std::size_t i = 0; i < count; i += 8) {
                __builtin_prefetch(words + i + 256);
                for (std::size_t k = 0; k < 8; ++k) {
                    sum[k] += words[i + k];
                }
            }
            for (const std::uint64_t part : sum) {
                result += part;
            }
        });
        best = std::max(best, static_cast<double>(share * threads) / took);
    }
    return best;
}

/// Products and sums per second of all threads together; the best of some passes.
double peak_macs(const std::string& name, std::size_t threads) {
    const kernels::InstructionSet& set = kernels::choose_instruction_set(name);
    const nb::gil_scoped_release release;
    kernels::ThreadPool pool(threads);
    std::vector<std::size_t> done(threads * 8);
    double best = 0;
    for (int round = 0; round < 7; ++round) {
        const auto started = std::chrono::steady_clock::now();
        pool.for_each(threads, [&](std::size_t part, std::size_t) { done[part * 8] = set.linear.peak(1'000'000); });
        best = std::max(best, static_cast<double>(done[0] * threads) / seconds_of(started));
    }
    return best;
}

}  // namespace

void bind_floors(nb::module_& m) {
    m.def("read_bandwidth", &read_bandwidth, "mib"_a, "threads"_a);
    m.def("peak_macs", &peak_macs, "instruction_set"_a, "threads"_a);
    m.def(
        "choose_instruction_set", [](const std::string& name) { return kernels::choose_instruction_set(name).name; },
        "name"_a);
}
