// What each binding file adds to rbee.engine._kernels.

#pragma once

#include <nanobind/nanobind.h>

void bind_floors(nanobind::module_& m);
void bind_packing(nanobind::module_& m);
void bind_runner(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);
void bind_thread_pool(nanobind::module_& m);
