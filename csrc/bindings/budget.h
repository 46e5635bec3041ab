// A budget of image tokens, as Python writes it.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "prune/atp_policy.h"

namespace atp::python {

namespace py = pybind11;

// None: no budget. A float is a fraction of the image tokens, an int their count; throws PlanError for others
std::optional<AtpBudget> to_budget(const py::object & budget);

}  // namespace atp::python
