#include "base/errors.h"

#include <cstring>
#include <new>

#include "bindings/registers.h"

namespace atp::python {

namespace {

// file names and what llama.cpp says of a damaged file may hold bytes that are no UTF-8
void raise(py::handle type, const AtpError & error) {
    const char * text = error.what();
    const auto message = py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(text, static_cast<py::ssize_t>(std::strlen(text)), "backslashreplace"));
    if (message) {
        PyErr_SetObject(type.ptr(), message.ptr());
    }
}

template <typename Error>
py::handle register_error(py::module_ & m, const char * name, py::handle base) {
    static py::handle type;  // kept for the life of the process
    type = py::exception<Error>(m, name, base).release();
    py::register_local_exception_translator([](std::exception_ptr raised) {
        try {
            std::rethrow_exception(std::move(raised));
        } catch (const Error & error) {
            raise(type, error);
        }
    });
    return type;
}

}  // namespace

void register_errors(py::module_ & m) {
    // pybind11 asks the translators in reverse order of registration, so the base comes first
    const py::handle base = register_error<AtpError>(m, "AtpError", PyExc_Exception);
    register_error<ModelError>(m, "ModelError", base);
    register_error<ImageError>(m, "ImageError", base);
    register_error<PlanError>(m, "PlanError", base);
    static const py::handle stage_error = register_error<StageError>(m, "StageError", base);
    py::register_local_exception_translator([](std::exception_ptr raised) {
        try {
            std::rethrow_exception(std::move(raised));
        } catch (const std::bad_alloc &) {
            PyErr_SetString(stage_error.ptr(),
                            "out of memory: this process gets no more from the system; use a smaller "
                            "context (n_ctx), n_ubatch, batch or model, or raise its limit");
        }
    });
}

}  // namespace atp::python
