// The Python face of streams that the drain writes, in rbee.transport._native. Its documentation is
// rbee/transport/_native.pyi.
//
// Owns conversions of a protocol's frames, and the names of slots and finishes. Does not know when a frame is written.

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "rbee/delivery.h"
#include "rbee/frame_stream.h"
#include "rbee/frame_template.h"

#include "python_memory.h"
#include "transport_module.h"

using namespace nb::literals;

namespace {

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
                bytes(frames, "end"),
                nb::cast<std::uint32_t>(frames.attr("first_index"))};
    }

private:
    nb::object kept_[15];
    std::size_t size_ = 0;
};

std::shared_ptr<rbee::Outlet> make_outlet(int fd, std::shared_ptr<rbee::Vocabulary> vocabulary, nb::handle frames,
                                          bool strip, std::uint32_t prompt_tokens,
                                          std::vector<std::uint32_t> stop_token_ids, std::uint64_t received_ns,
                                          bool keep_text) {
    TemplateMembers members;
    rbee::FrameStream stream(std::move(vocabulary), strip, rbee::FrameTemplate(members.frames(frames)), prompt_tokens,
                             std::move(stop_token_ids), keep_text);
    return std::make_shared<rbee::Outlet>(rbee::Outlet{fd, false, {received_ns, 0}, 0, std::move(stream)});
}

/// A namespace for Python.
struct Slots {};

}  // namespace

void bind_outlet(nb::module_& m) {
    nb::dict finishes;
    for (const rbee::NamedFinish& finish : rbee::FrameStream::kOrdinary) {
        finishes[finish.name] = finish.reason;
    }
    m.attr("ORDINARY_FINISHES") = finishes;

    nb::object slots = nb::class_<Slots>(m, "Slot");
    for (const rbee::NamedSlot& named : rbee::kSlots) {
        const auto byte = static_cast<char>(named.slot);
        slots.attr(named.name) = nb::bytes(&byte, 1);
    }
    nb::class_<rbee::Outlet>(m, "Outlet")
        .def(nb::new_(&make_outlet), "fd"_a, "vocabulary"_a, "template"_a, nb::kw_only(), "strip"_a, "prompt_tokens"_a,
             "stop_token_ids"_a, "received_ns"_a = 0, "keep_text"_a = false)
        .def_prop_ro("num_tokens", [](const rbee::Outlet& outlet) { return outlet.stream.num_tokens(); })
        .def_prop_ro("num_frames", [](const rbee::Outlet& outlet) { return outlet.stream.num_frames(); })
        .def_prop_ro("has_end", [](const rbee::Outlet& outlet) { return outlet.stream.has_end(); })
        .def_prop_ro("text",
                     [](const rbee::Outlet& outlet) {
                         const std::string string = '"' + outlet.stream.text() + '"';
                         return nb::bytes(string.data(), string.size());
                     })
        .def_prop_ro("written_ns", [](const rbee::Outlet& outlet) { return outlet.written_ns; });
}
