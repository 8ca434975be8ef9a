// The Python face of the server's side, in rbee.transport._native. Its documentation is rbee/transport/_native.pyi.
//
// Owns conversions, and the memory of what a drain has found, which is kept for the next one. Does not know requests: a
// ring is a number.

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>

#include "rbee/consumer.h"
#include "rbee/delivery.h"

#include "arena_side.h"
#include "python_memory.h"
#include "transport_module.h"

using namespace nb::literals;

namespace {

PyStructSequence_Field kDrainedFields[] = {{"rings", nullptr},  {"ends", nullptr},       {"finishes", nullptr},
                                           {"tokens", nullptr}, {"commit_ns", nullptr},  {"logprobs", nullptr},
                                           {"more", nullptr},   {"needs_wake", nullptr}, {"blocked", nullptr},
                                           {"broken", nullptr}, {"ended", nullptr},      {nullptr, nullptr}};
PyStructSequence_Desc kDrainedType = {"rbee.transport.Drained", "What one drain found; see _native.pyi.",
                                      kDrainedFields, 11};

class Consumer : public Side<rbee::Consumer> {
public:
    Consumer(nb::handle arena, int doorbell_fd) : Side(arena, doorbell_fd) {
        delivery_.emplace(core(), core().num_rings());
    }

    rbee::Delivery& delivery() {
        core();  // throws if closed
        return *delivery_;
    }

    void attach(std::uint32_t ring, std::shared_ptr<rbee::Outlet> outlet) {
        core().check_assigned(ring);
        delivery().attach(ring, std::move(outlet));
    }

    void close() {
        delivery_.reset();
        Side::close();
    }

    /// The tokens of the last drain that were handed to Python have been written too.
    void note_delivered() { delivery().note_delivered(drained_); }

    std::optional<std::pair<std::uint32_t, std::uint32_t>> assign(std::uint64_t received_ns,
                                                                  std::uint64_t queued_tokens,
                                                                  std::shared_ptr<rbee::TokenGaps> gaps) {
        rbee::Consumer::Assigned assigned{};
        if (!core().assign(assigned, queued_tokens)) {
            return std::nullopt;
        }
        delivery().time(assigned.ring, received_ns, std::move(gaps));
        return std::pair{assigned.ring, assigned.generation};
    }

    nb::tuple times(std::uint32_t ring) {
        const rbee::SequenceTimes& times = delivery().sequence(ring);
        return nb::make_tuple(core().start_ns(ring), times.first_ns, times.last_ns, times.num_tokens);
    }

    nb::object drain(nb::handle type, std::size_t max_records, bool polling) {
        delivery().drain(max_records, polling ? rbee::Then::keep_polling : rbee::Then::arm, drained_, deliveries_);
        const std::vector<rbee::Record>& records = drained_.records;
        nb::object result = nb::steal(PyStructSequence_New(reinterpret_cast<PyTypeObject*>(type.ptr())));
        if (!result.is_valid()) {
            throw nb::python_error();
        }
        const auto set = [&result](Py_ssize_t field, nb::object value) {
            PyStructSequence_SET_ITEM(result.ptr(), field, value.release().ptr());
        };
        const std::size_t rings = drained_.rings.size();
        set(0, list_of(rings, [&](std::size_t i) { return PyLong_FromUnsignedLong(drained_.rings[i]); }));
        set(1, list_of(rings, [&](std::size_t i) { return PyLong_FromUnsignedLong(drained_.ends[i]); }));
        set(2, list_of(rings, [&](std::size_t i) { return PyLong_FromUnsignedLong(drained_.finishes[i]); }));
        set(3, list_of(records.size(), [&](std::size_t i) { return PyLong_FromUnsignedLong(records[i].token_id); }));
        // Most neighbours come from the same step: they share one integer object.
        nb::object time;
        std::uint64_t time_ns = 0;
        set(4, list_of(records.size(), [&](std::size_t i) {
                if (!time.is_valid() || records[i].commit_ns != time_ns) {
                    time_ns = records[i].commit_ns;
                    time = nb::steal(PyLong_FromUnsignedLongLong(time_ns));
                }
                return time.inc_ref().ptr();
            }));
        set(5, list_of(records.size(), [&](std::size_t i) { return PyFloat_FromDouble(double{records[i].logprob}); }));
        set(6, nb::bool_(drained_.more));
        set(7, nb::bool_(drained_.needs_wake));
        set(8, list_of(deliveries_.blocked.size(), [&](std::size_t i) {
                const rbee::Deliveries::Rest& rest = deliveries_.blocked[i];
                return nb::make_tuple(rest.ring, nb::bytes(rest.bytes.data(), rest.bytes.size())).release().ptr();
            }));
        set(9, list_of(deliveries_.broken.size(),
                       [&](std::size_t i) { return PyLong_FromUnsignedLong(deliveries_.broken[i]); }));
        set(10, list_of(deliveries_.ended.size(), [&](std::size_t i) {
                return nb::make_tuple(deliveries_.ended[i].ring, deliveries_.ended[i].finish).release().ptr();
            }));
        return result;
    }

    /// `ns` are durations of Python's garbage collections since the last call, one each.
    void note_collection(std::uint64_t ns) {
        rbee::ServerLines& line = core().fixed().server;
        rbee::count(line.gc_pauses);
        rbee::count(line.gc_pause_ns, ns);
    }

private:
    std::optional<rbee::Delivery> delivery_;
    rbee::Drained drained_;  // these two are kept for their memory
    rbee::Deliveries deliveries_;
};

}  // namespace

void bind_consumer(nb::module_& m) {
    nb::object drained_type = nb::steal(reinterpret_cast<PyObject*>(PyStructSequence_NewType(&kDrainedType)));
    if (!drained_type.is_valid()) {
        throw nb::python_error();
    }
    m.attr("Drained") = drained_type;

    nb::class_<rbee::TokenGaps>(m, "TokenGaps")
        .def(nb::init<>())
        .def("__len__", &rbee::TokenGaps::size)
        .def("quantile", &rbee::TokenGaps::quantile, "q"_a);

    nb::class_<Consumer>(m, "Consumer")
        .def(nb::init<nb::handle, int>(), "arena"_a, "doorbell_fd"_a)
        .def("assign", &Consumer::assign, "received_ns"_a = 0, "queued_tokens"_a = 0, "gaps"_a.none() = nb::none())
        .def("times", &Consumer::times, "ring"_a)
        .def(
            "cancel", [](Consumer& c, std::uint32_t ring) { return c.core().cancel(ring); }, "ring"_a)
        .def(
            "pause", [](Consumer& c, std::uint32_t ring) { c.core().pause(ring); }, "ring"_a)
        .def(
            "resume", [](Consumer& c, std::uint32_t ring) { return c.core().resume(ring); }, "ring"_a)
        .def("expect_all", [](Consumer& c) { c.delivery().expect_all(); })
        .def("attach", &Consumer::attach, "ring"_a, "outlet"_a)
        .def(
            "detach", [](Consumer& c, std::uint32_t ring) { c.delivery().detach(ring); }, "ring"_a)
        .def(
            "drain",
            [drained_type](Consumer& c, std::size_t max_records, bool polling) {
                return c.drain(drained_type, max_records, polling);
            },
            "max_records"_a = 4096, nb::kw_only(), "polling"_a = false)
        .def("note_delivered", &Consumer::note_delivered)
        .def(
            "poll", [](Consumer& c, std::uint64_t patience_ns) { return c.core().poll(patience_ns); }, "patience_ns"_a)
        .def("silence", [](Consumer& c) { c.core().silence_doorbell(); })
        .def("find_stale", [](Consumer& c) { return c.core().find_stale(); })
        .def_prop_ro("in_use", [](Consumer& c) { return c.core().in_use(); })
        .def_prop_ro("queued_tokens", [](Consumer& c) { return c.core().queued_tokens(); })
        .def(
            "has_begun", [](Consumer& c, std::uint32_t ring) { return c.core().has_begun(ring); }, "ring"_a)
        .def_prop_ro("engine_signs",
                     [](Consumer& c) {  // relaxed: either word stands for itself
                         const rbee::EngineLine& line = c.core().fixed().engine;
                         return nb::make_tuple(line.heartbeat_ns.load(std::memory_order_relaxed),
                                               line.progress.load(std::memory_order_relaxed));
                     })
        .def_prop_ro("sequences_waiting",
                     [](Consumer& c) {  // relaxed: the number stands for itself
                         return c.core().fixed().engine.sequences_waiting.load(std::memory_order_relaxed);
                     })
        .def(
            "beat", [](Consumer& c, std::uint32_t state) { c.core().beat(state); }, "state"_a)
        .def("counters", [](Consumer& c) { return read_counters(c.core().fixed()); })
        .def(
            "note_loop_lag", [](Consumer& c, std::uint64_t ns) { c.core().fixed().histograms.loop_lag.add(ns); },
            "ns"_a)
        .def("note_collection", &Consumer::note_collection, "ns"_a)
        .def("close", &Consumer::close);
}
