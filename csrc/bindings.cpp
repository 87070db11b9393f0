// Python bindings. Tensors cross as (address, dtype name, shape, stride): no dependence on torch's C++ ABI.
// `kernels/native.py` is the only caller and keeps the tensors alive; values are checked here, where they are read.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "token_logprobs.h"

namespace py = pybind11;

namespace {

fastrl::DType parse_dtype(const std::string& name) {
    if (name == "float32") return fastrl::DType::float32;
    if (name == "bfloat16") return fastrl::DType::bfloat16;
    if (name == "float16") return fastrl::DType::float16;
    throw std::invalid_argument("logits dtype must be float32, bfloat16 or float16, got " + name);
}

void token_logprobs(uintptr_t logits, const std::string& dtype, int64_t num_rows, int64_t vocab, int64_t row_stride,
                    uintptr_t targets, uintptr_t temperature, int64_t temperature_stride, uintptr_t logprobs, uintptr_t entropy,
                    int num_threads) {
    const fastrl::LogitRows rows{reinterpret_cast<const void*>(logits), parse_dtype(dtype), num_rows, vocab, row_stride};
    const auto* target_ids = reinterpret_cast<const int64_t*>(targets);
    if (num_rows < 0 || (num_rows > 0 && vocab < 1))
        throw std::invalid_argument("logits must be (N, V) with V >= 1, got (" + std::to_string(num_rows) + ", " +
                                    std::to_string(vocab) + ")");
    if (num_threads < 1) throw std::invalid_argument("num_threads must be at least 1, got " + std::to_string(num_threads));
    py::gil_scoped_release release;
    for (int64_t i = 0; i < num_rows; ++i)
        if (target_ids[i] < 0 || target_ids[i] >= vocab)
            throw std::invalid_argument("target " + std::to_string(target_ids[i]) + " in row " + std::to_string(i) +
                                        " is outside the vocabulary [0, " + std::to_string(vocab) + ")");
    fastrl::token_logprobs(rows, target_ids, reinterpret_cast<const float*>(temperature), temperature_stride,
                           reinterpret_cast<float*>(logprobs), reinterpret_cast<float*>(entropy), num_threads);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "fastrl's native CPU kernels";
    m.def("token_logprobs", &token_logprobs, py::arg("logits"), py::arg("dtype"), py::arg("num_rows"), py::arg("vocab"),
          py::arg("row_stride"), py::arg("targets"), py::arg("temperature"), py::arg("temperature_stride"), py::arg("logprobs"),
          py::arg("entropy"), py::arg("num_threads"));
}
