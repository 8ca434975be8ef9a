// The Python face of the counters, in rbee.transport._native. Its documentation is rbee/transport/_native.pyi.
//
// Owns the names of counters and histograms as Python has them, and the reading of an arena that is only observed. Does
// not know what is counted where.

#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "rbee/counters.h"
#include "rbee/histogram.h"
#include "rbee/layout.h"

#include "python_memory.h"
#include "transport_module.h"

using namespace nb::literals;

nb::dict read_counters(const rbee::FixedPart& fixed) {
    nb::dict counters;
    const auto add = [&counters](const char* name, std::uint64_t value) { counters[name] = value; };
    rbee::visit_counters(fixed.engine, add);
    rbee::visit_counters(fixed.server, add);
    return counters;
}

namespace {

/// (name, kind, help) of each counter, in the order of read_counters().
nb::tuple counter_list() {
    nb::list list;
    for (const rbee::CounterPlace& place : rbee::CountersOf<rbee::EngineLine>::places) {
        list.append(nb::make_tuple(place.name, place.kind, place.help));
    }
    for (const rbee::CounterPlace& place : rbee::CountersOf<rbee::ServerLines>::places) {
        list.append(nb::make_tuple(place.name, place.kind, place.help));
    }
    return nb::tuple(list);
}

/// (name, unit, help) of each histogram.
nb::tuple histogram_list() {
    nb::list list;
#define RBEE_HISTOGRAM(name, unit, help) list.append(nb::make_tuple(#name, #unit, help));
    RBEE_HISTOGRAMS(RBEE_HISTOGRAM)
#undef RBEE_HISTOGRAM
    return nb::tuple(list);
}

std::vector<std::uint64_t> read_histogram(const rbee::Histogram& histogram) {
    std::vector<std::uint64_t> counts(rbee::kBuckets);
    for (std::uint32_t bucket = 0; bucket < rbee::kBuckets; ++bucket) {
        counts[bucket] = histogram.buckets[bucket].load(std::memory_order_relaxed);
    }
    return counts;
}

/// (epoch, server's pid, counters, histograms by name) of an arena that is mapped read-only.
nb::tuple observe(nb::handle buffer) {
    const Buffer memory(buffer, PyBUF_SIMPLE);
    const rbee::Arena arena = rbee::attach(memory.data(), memory.size());
    const rbee::FixedPart& fixed = *arena.fixed;
    nb::dict histograms;
#define RBEE_HISTOGRAM(name, unit, help) histograms[#name] = read_histogram(fixed.histograms.name);
    RBEE_HISTOGRAMS(RBEE_HISTOGRAM)
#undef RBEE_HISTOGRAM
    return nb::make_tuple(arena.epoch, fixed.header.server_pid, read_counters(fixed), histograms);
}

}  // namespace

void bind_counters(nb::module_& m) {
    m.def("observe", &observe, "buffer"_a);
    m.def("histogram_bounds", [] {
        std::vector<std::uint64_t> starts(rbee::kBuckets);
        for (std::uint32_t bucket = 0; bucket < rbee::kBuckets; ++bucket) {
            starts[bucket] = rbee::bucket_start(bucket);
        }
        return starts;
    });

    m.attr("COUNTERS") = counter_list();
    m.attr("HISTOGRAMS") = histogram_list();
}
