// The Python face of the core: rbee.transport._native. Its documentation for users is rbee/transport/_native.pyi.
//
// Owns conversions and lifetimes, nothing else. Every call keeps the GIL: all take microseconds, but for a drain that
// sends to hundreds of sockets, which is what its process is there for. One thread per side is what the core expects.

#include <optional>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "rbee/consumer.h"
#include "rbee/delivery.h"
#include "rbee/producer.h"
#include "rbee/progress.h"

#include "python_memory.h"

using namespace nb::literals;

namespace {

/// One side of an arena, and its hold on the mapping until close().
template <typename Core>
class Side {
public:
    Side(nb::handle arena, int doorbell_fd) : owner_(nb::borrow(arena)) {
        buffer_.emplace(arena.attr("buffer"), PyBUF_WRITABLE);
        core_.emplace(rbee::attach(buffer_->data(), buffer_->size()), doorbell_fd);
        rbee::map_all_pages(buffer_->data(), buffer_->size());
    }

    Core& core() {
        if (!core_) {
            throw rbee::TransportError("This side of the arena has been closed.");
        }
        return *core_;
    }

    void close() {
        core_.reset();
        buffer_.reset();
        owner_.reset();
    }

private:
    nb::object owner_;  // declared first, so that the view of its memory is released before it
    std::optional<Buffer> buffer_;
    std::optional<Core> core_;
};

class Producer : public Side<rbee::Producer> {
public:
    Producer(nb::handle arena, int doorbell_fd) : Side(arena, doorbell_fd) { progress_->bind(core().progress()); }
    ~Producer() { progress_->unbind(); }
    Producer(const Producer&) = delete;
    Producer& operator=(const Producer&) = delete;

    /// Outlives this object: without an arena it counts for itself.
    const std::shared_ptr<rbee::Progress>& progress() const { return progress_; }

    void close() {
        progress_->unbind();
        Side::close();
    }

    std::uint64_t commit(nb::handle ring_array, nb::handle token_array, nb::handle logprob_array,
                         nb::handle finished_array, nb::handle finish_array) {
        const Column<std::uint32_t> rings(ring_array, "rings"), tokens(token_array, "tokens");
        const Column<float> logprobs(logprob_array, "logprobs");
        const Column<std::uint32_t> finished(finished_array, "finished");
        const Column<rbee::FinishCode> finishes(finish_array, "finishes");
        if (tokens.size() != rings.size() || logprobs.size() != rings.size()) {
            throw std::invalid_argument("rings, tokens and logprobs must have one entry per token each.");
        }
        if (finishes.size() != finished.size()) {
            throw std::invalid_argument("finished and finishes must have one entry per finished ring each.");
        }
        return core().commit({rings.size(), rings.data(), tokens.data(), logprobs.data(), finished.size(),
                              finished.data(), finishes.data()});
    }

    std::vector<std::uint32_t> take_cancelled() {
        std::vector<std::uint32_t> cancelled;
        core().take_cancelled(cancelled);
        return cancelled;
    }

private:
    std::shared_ptr<rbee::Progress> progress_ = std::make_shared<rbee::Progress>();
};

PyStructSequence_Field kDrainedFields[] = {{"rings", nullptr},  {"ends", nullptr},       {"finishes", nullptr},
                                           {"tokens", nullptr}, {"commit_ns", nullptr},  {"logprobs", nullptr},
                                           {"more", nullptr},   {"needs_wake", nullptr}, {"blocked", nullptr},
                                           {"broken", nullptr}, {"ended", nullptr},      {nullptr, nullptr}};
PyStructSequence_Desc kDrainedType = {"rbee.transport.Drained", "What one drain found; see _native.pyi.",
                                      kDrainedFields, 11};

/// What both processes have counted, by name.
nb::dict read_counters(const rbee::FixedPart& fixed) {
    nb::dict counters;
    const auto add = [&counters](const char* name, std::uint64_t value) { counters[name] = value; };
    rbee::visit_counters(fixed.engine, add);
    rbee::visit_counters(fixed.server, add);
    return counters;
}

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

/// (name, help) of each histogram.
nb::tuple histogram_list() {
    nb::list list;
#define RBEE_HISTOGRAM(name, help) list.append(nb::make_tuple(#name, help));
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
#define RBEE_HISTOGRAM(name, help) histograms[#name] = read_histogram(fixed.histograms.name);
    RBEE_HISTOGRAMS(RBEE_HISTOGRAM)
#undef RBEE_HISTOGRAM
    return nb::make_tuple(arena.epoch, fixed.header.server_pid, read_counters(fixed), histograms);
}

std::shared_ptr<rbee::Vocabulary> make_vocabulary(const nb::iterable& pieces) {
    auto vocabulary = std::make_shared<rbee::Vocabulary>();
    for (nb::handle piece : pieces) {
        if (PyUnicode_Check(piece.ptr())) {
            Py_ssize_t size = 0;
            const char* text = PyUnicode_AsUTF8AndSize(piece.ptr(), &size);
            if (text == nullptr) {
                throw nb::python_error();
            }
            vocabulary->add({text, static_cast<std::size_t>(size)}, true);
        } else {
            vocabulary->add(bytes_of(piece), false);
        }
    }
    return vocabulary;
}

nb::object piece_of(const rbee::Vocabulary& vocabulary, std::uint32_t token) {
    const std::string_view piece = vocabulary.piece(token);
    const auto size = static_cast<Py_ssize_t>(piece.size());
    nb::object object = nb::steal(vocabulary.is_text(token) ? PyUnicode_DecodeUTF8(piece.data(), size, nullptr)
                                                            : PyBytes_FromStringAndSize(piece.data(), size));
    if (!object.is_valid()) {
        throw nb::python_error();
    }
    return object;
}

/// The members of a rbee.transport.FrameTemplate. Keeps the bytes alive that its views look at.
class TemplateMembers {
public:
    std::string_view bytes(nb::handle frames, const char* name) {
        kept_[size_] = frames.attr(name);
        return bytes_of(kept_[size_++]);
    }

    rbee::LastFrameSources last_frames(nb::handle frames) {
        return {bytes(frames, "first_last"), bytes(frames, "next_last"), bytes(frames, "last"), bytes(frames, "empty")};
    }

    rbee::FrameSources frames(nb::handle frames) {
        return {bytes(frames, "first"),
                bytes(frames, "next"),
                last_frames(frames.attr("stop")),
                last_frames(frames.attr("length")),
                last_frames(frames.attr("deadline")),
                bytes(frames, "end")};
    }

private:
    nb::object kept_[15];
    std::size_t size_ = 0;
};

std::shared_ptr<rbee::Outlet> make_outlet(int fd, std::shared_ptr<rbee::Vocabulary> vocabulary, nb::handle frames,
                                          bool strip, std::uint32_t prompt_tokens,
                                          std::vector<std::uint32_t> stop_token_ids, std::uint64_t received_ns) {
    TemplateMembers members;
    rbee::FrameStream stream(std::move(vocabulary), strip, rbee::FrameTemplate(members.frames(frames)), prompt_tokens,
                             std::move(stop_token_ids));
    return std::make_shared<rbee::Outlet>(rbee::Outlet{fd, false, {received_ns, 0}, 0, std::move(stream)});
}

/// A namespace for Python.
struct Slots {};

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

    std::optional<std::pair<std::uint32_t, std::uint32_t>> assign(std::uint64_t received_ns) {
        rbee::Consumer::Assigned assigned{};
        if (!core().assign(assigned)) {
            return std::nullopt;
        }
        delivery().time(assigned.ring, received_ns);
        return std::pair{assigned.ring, assigned.generation};
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

NB_MODULE(_native, m) {
    m.doc() = "The shared-memory core of rbee.transport, in C++; see docs/transport.md.";

    nb::register_exception_translator(
        [](const std::exception_ptr& error, void* transport_error) {
            try {
                std::rethrow_exception(error);
            } catch (const rbee::TransportError& e) {
                PyErr_SetString(static_cast<PyObject*>(transport_error), e.what());
            }
        },
        nb::module_::import_("rbee.errors").attr("TransportError").inc_ref().ptr());

    m.def(
        "arena_size",
        [](std::uint32_t num_rings, std::uint32_t ring_capacity) {
            return rbee::plan(num_rings, ring_capacity).total_bytes;
        },
        "num_rings"_a, "ring_capacity"_a);
    m.def(
        "format_arena",
        [](nb::handle buffer, std::uint32_t num_rings, std::uint32_t ring_capacity, std::uint64_t epoch,
           std::uint32_t first_index) {
            const Buffer memory(buffer, PyBUF_WRITABLE);
            rbee::format(memory.data(), memory.size(), rbee::plan(num_rings, ring_capacity), epoch, first_index);
        },
        "buffer"_a, nb::kw_only(), "num_rings"_a, "ring_capacity"_a, "epoch"_a, "first_index"_a);
    m.def(
        "inspect_arena",
        [](nb::handle buffer) {
            const Buffer memory(buffer, PyBUF_WRITABLE);
            const rbee::Arena arena = rbee::attach(memory.data(), memory.size());
            return nb::make_tuple(arena.geometry.num_rings, arena.geometry.ring_capacity, arena.epoch);
        },
        "buffer"_a);

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
    nb::dict finishes;
    for (const rbee::NamedFinish& finish : rbee::FrameStream::kOrdinary) {
        finishes[finish.name] = finish.reason;
    }
    m.attr("ORDINARY_FINISHES") = finishes;

    nb::class_<rbee::Progress>(m, "Progress")
        .def(nb::init<>())
        .def("advance", &rbee::Progress::advance)
        .def_prop_ro("chunks", &rbee::Progress::chunks);

    nb::class_<Producer>(m, "Producer")
        .def(nb::init<nb::handle, int>(), "arena"_a, "doorbell_fd"_a)
        .def(
            "open", [](Producer& p, std::uint32_t ring, std::uint32_t generation) { p.core().open(ring, generation); },
            "ring"_a, "generation"_a)
        .def("commit", &Producer::commit, "rings"_a, "tokens"_a, "logprobs"_a, nb::arg("finished").none() = nb::none(),
             nb::arg("finishes").none() = nb::none())
        .def(
            "free_space", [](Producer& p, std::uint32_t ring) { return p.core().free_space(ring); }, "ring"_a)
        .def("take_cancelled", &Producer::take_cancelled)
        .def("arm_wait", [](Producer& p) { p.core().arm_wait(); })
        .def_prop_ro("progress", &Producer::progress)
        .def(
            "beat", [](Producer& p, std::uint32_t state) { p.core().beat(state); }, "state"_a)
        .def(
            "report",
            [](Producer& p, std::uint64_t step_ns, std::uint32_t running, std::uint32_t waiting, std::uint32_t blocks,
               std::uint32_t blocks_used, std::uint64_t preemptions, std::uint64_t prompt_tokens,
               std::uint64_t cached_prompt_tokens) {
                p.core().report(
                    step_ns, {running, waiting, blocks, blocks_used, preemptions, prompt_tokens, cached_prompt_tokens});
            },
            "step_ns"_a, nb::kw_only(), "sequences_running"_a, "sequences_waiting"_a, "kv_blocks"_a, "kv_blocks_used"_a,
            "preemptions"_a, "prompt_tokens"_a, "cached_prompt_tokens"_a)
        .def("close", &Producer::close);

    nb::object drained_type = nb::steal(reinterpret_cast<PyObject*>(PyStructSequence_NewType(&kDrainedType)));
    if (!drained_type.is_valid()) {
        throw nb::python_error();
    }
    m.attr("Drained") = drained_type;

    nb::class_<rbee::Vocabulary>(m, "Vocabulary")
        .def(nb::new_(&make_vocabulary), "pieces"_a)
        .def("__len__", &rbee::Vocabulary::size)
        .def("piece", &piece_of, "token_id"_a);
    nb::object slots = nb::class_<Slots>(m, "Slot");
    for (const rbee::NamedSlot& named : rbee::kSlots) {
        const auto byte = static_cast<char>(named.slot);
        slots.attr(named.name) = nb::bytes(&byte, 1);
    }
    nb::class_<rbee::Outlet>(m, "Outlet")
        .def(nb::new_(&make_outlet), "fd"_a, "vocabulary"_a, "template"_a, nb::kw_only(), "strip"_a, "prompt_tokens"_a,
             "stop_token_ids"_a, "received_ns"_a = 0)
        .def_prop_ro("num_tokens", [](const rbee::Outlet& outlet) { return outlet.stream.num_tokens(); })
        .def_prop_ro("written_ns", [](const rbee::Outlet& outlet) { return outlet.written_ns; });

    nb::class_<Consumer>(m, "Consumer")
        .def(nb::init<nb::handle, int>(), "arena"_a, "doorbell_fd"_a)
        .def("assign", &Consumer::assign, "received_ns"_a = 0)
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
