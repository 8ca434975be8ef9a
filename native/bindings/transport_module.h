// What each binding file adds to rbee.transport._native, and what two of them need.

#pragma once

#include <nanobind/nanobind.h>

#include "rbee/layout.h"

void bind_arena(nanobind::module_& m);
void bind_consumer(nanobind::module_& m);
void bind_counters(nanobind::module_& m);
void bind_life_line(nanobind::module_& m);
void bind_outlet(nanobind::module_& m);
void bind_producer(nanobind::module_& m);
void bind_vocabulary(nanobind::module_& m);

/// What both processes have counted, by name.
nanobind::dict read_counters(const rbee::FixedPart& fixed);
