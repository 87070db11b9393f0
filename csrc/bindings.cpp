// Python bindings. Tensors cross as (address, dtype name, shape, stride): no dependence on torch's C++ ABI.
// `kernels/native.py` is the only caller and keeps the tensors alive; values are checked here, where they are read.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rows.h"
#include "sweeps.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using Column = std::pair<Address, int64_t>;  // address (0: absent) and stride of one fp32 number per row

fastrl::DType parse_dtype(const std::string& name) {
    if (name == "float32") return fastrl::DType::float32;
    if (name == "bfloat16") return fastrl::DType::bfloat16;
    if (name == "float16") return fastrl::DType::float16;
    throw std::invalid_argument("logits dtype must be float32, bfloat16 or float16, got " + name);
}

fastrl::Surrogate parse_surrogate(const std::string& name) {
    if (name == "reinforce") return fastrl::Surrogate::reinforce;
    if (name == "ppo_clip") return fastrl::Surrogate::ppo_clip;
    if (name == "cispo") return fastrl::Surrogate::cispo;
    throw std::invalid_argument("the surrogate must be reinforce, ppo_clip or cispo, got '" + name + "'");
}

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

fastrl::RowScalar column(const Column& column) { return {pointer<const float>(column.first), column.second}; }

fastrl::LogitRows parse_logits(Address logits, const std::string& dtype, int64_t num_rows, int64_t vocab, int64_t row_stride) {
    if (num_rows < 0 || (num_rows > 0 && vocab < 1))
        throw std::invalid_argument("logits must be (N, V) with V >= 1, got (" + std::to_string(num_rows) + ", " +
                                    std::to_string(vocab) + ")");
    if (num_rows > 1 && row_stride < vocab)
        throw std::invalid_argument("rows of " + std::to_string(vocab) + " logits overlap: the row stride is " + std::to_string(row_stride));
    return {pointer<void>(logits), parse_dtype(dtype), num_rows, vocab, row_stride};
}

void check_targets(const fastrl::LogitRows& logits, const int64_t* targets) {
    for (int64_t i = 0; i < logits.num_rows; ++i)
        if (targets[i] < 0 || targets[i] >= logits.vocab)
            throw std::invalid_argument("target " + std::to_string(targets[i]) + " in row " + std::to_string(i) +
                                        " is outside the vocabulary [0, " + std::to_string(logits.vocab) + ")");
}

void check_temperature(const fastrl::LogitRows& logits, const fastrl::RowScalar& temperature) {
    const int64_t num_values = temperature.stride ? logits.num_rows : (logits.num_rows ? 1 : 0);
    for (int64_t i = 0; i < num_values; ++i)
        if (!(temperature.at(i) > 0))
            throw std::invalid_argument("temperature must be positive, got " + std::to_string(temperature.at(i)) + " in row " +
                                        std::to_string(i));
}

void check_threads(int num_threads) {
    if (num_threads < 1) throw std::invalid_argument("num_threads must be at least 1, got " + std::to_string(num_threads));
}

int64_t score_rows(Address logits, const std::string& dtype, int64_t num_rows, int64_t vocab, int64_t row_stride, Address targets,
                   const Column& temperature, Address bias, float scale, float softcap, Address logprobs, Address entropy,
                   int num_threads) {
    const auto rows = parse_logits(logits, dtype, num_rows, vocab, row_stride);
    const fastrl::RowInputs inputs{pointer<const int64_t>(targets), column(temperature), {}, {}, {}, {}, {}};
    check_threads(num_threads);
    py::gil_scoped_release release;
    check_targets(rows, inputs.targets);
    check_temperature(rows, inputs.temperature);
    return fastrl::score_rows(rows, {pointer<const float>(bias), scale, softcap}, inputs,
                              {pointer<float>(logprobs), pointer<float>(entropy), nullptr, nullptr}, num_threads);
}

fastrl::TokenLoss parse_loss(const std::string& surrogate, const std::vector<double>& parameters, double kl_coef, double entropy_coef,
                             double importance_cap) {
    fastrl::TokenLoss loss{parse_surrogate(surrogate), {0, 0, 0}, kl_coef, entropy_coef, importance_cap};
    const size_t expected = loss.surrogate == fastrl::Surrogate::reinforce ? 0 : loss.surrogate == fastrl::Surrogate::ppo_clip ? 3 : 1;
    if (parameters.size() != expected)
        throw std::invalid_argument(surrogate + " takes " + std::to_string(expected) + " parameters, got " +
                                    std::to_string(parameters.size()));
    for (size_t i = 0; i < parameters.size(); ++i) loss.parameters[i] = parameters[i];
    return loss;
}

int64_t policy_rows(Address logits, const std::string& dtype, int64_t num_rows, int64_t vocab, int64_t row_stride, Address targets,
                    const Column& temperature, Address bias, float scale, float softcap, Address logprobs, Address entropy,
                    int num_threads, const Column& advantages, const Column& weights, const Column& old_logprobs,
                    const Column& sampler_logprobs, const Column& ref_logprobs, const std::string& surrogate,
                    const std::vector<double>& parameters, double kl_coef, double entropy_coef, double importance_cap,
                    bool with_gradient, Address losses, Address clipped) {
    const auto rows = parse_logits(logits, dtype, num_rows, vocab, row_stride);
    const auto loss = parse_loss(surrogate, parameters, kl_coef, entropy_coef, importance_cap);
    const fastrl::RowInputs inputs{pointer<const int64_t>(targets), column(temperature), column(advantages), column(weights),
                                   column(old_logprobs), column(sampler_logprobs), column(ref_logprobs)};
    if (num_rows > 0 && importance_cap >= 0 && inputs.sampler_logprobs.data == nullptr)
        throw std::invalid_argument("importance_cap needs sampler_logprobs");
    if (num_rows > 0 && kl_coef != 0 && inputs.ref_logprobs.data == nullptr) throw std::invalid_argument("kl_coef needs ref_logprobs");
    check_threads(num_threads);
    py::gil_scoped_release release;
    check_targets(rows, inputs.targets);
    check_temperature(rows, inputs.temperature);
    return fastrl::policy_rows(rows, {pointer<const float>(bias), scale, softcap}, inputs, loss, with_gradient,
                               {pointer<float>(logprobs), pointer<float>(entropy), pointer<float>(losses), pointer<uint8_t>(clipped)},
                               num_threads);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "fastrl's native CPU kernels";
    m.def("path", [] { return std::string(fastrl::current_sweeps().name); }, "The code path in use: avx512, avx2 or portable.");
    m.def("force_path", &fastrl::force_sweeps, py::arg("name"), "Use this path from now on, for every thread; auto: the fastest.");
    m.def("score_rows", &score_rows, py::kw_only(), py::arg("logits"), py::arg("dtype"), py::arg("num_rows"), py::arg("vocab"),
          py::arg("row_stride"), py::arg("targets"), py::arg("temperature"), py::arg("bias"), py::arg("scale"), py::arg("softcap"),
          py::arg("logprobs"), py::arg("entropy"), py::arg("num_threads"));
    m.def("policy_rows", &policy_rows, py::kw_only(), py::arg("logits"), py::arg("dtype"), py::arg("num_rows"), py::arg("vocab"),
          py::arg("row_stride"), py::arg("targets"), py::arg("temperature"), py::arg("bias"), py::arg("scale"), py::arg("softcap"),
          py::arg("logprobs"), py::arg("entropy"), py::arg("num_threads"), py::arg("advantages"), py::arg("weights"),
          py::arg("old_logprobs"), py::arg("sampler_logprobs"), py::arg("ref_logprobs"), py::arg("surrogate"), py::arg("parameters"),
          py::arg("kl_coef"), py::arg("entropy_coef"), py::arg("importance_cap"), py::arg("with_gradient"),
          py::arg("losses"), py::arg("clipped"));
}
