// One side of an arena as a Python object has it.
//
// Owns the hold on the mapping until the side is closed. Does not know which side it is.

#pragma once

#include <optional>

#include <nanobind/nanobind.h>

#include "rbee/layout.h"
#include "rbee/platform.h"

#include "python_memory.h"

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
