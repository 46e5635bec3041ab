#include "bindings/budget.h"

#include <string>

#include "base/errors.h"

namespace atp::python {

std::optional<AtpBudget> to_budget(const py::object & budget) {
    if (budget.is_none()) {
        return std::nullopt;
    }
    if (py::isinstance<py::int_>(budget) && !py::isinstance<py::bool_>(budget)) {
        return AtpBudget{budget.cast<double>(), false};
    }
    if (py::isinstance<py::float_>(budget)) {
        return AtpBudget{budget.cast<double>(), true};
    }
    throw PlanError("a budget is a float (fraction of the image tokens) or an int (their count), got " +
                    py::repr(budget).cast<std::string>());
}

}  // namespace atp::python
