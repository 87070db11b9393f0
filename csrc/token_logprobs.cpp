#include "token_logprobs.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace fastrl {
namespace {

float from_bfloat16(uint16_t bits) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

float from_float16(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu;
    const uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(mantissa), -24);
    const uint32_t wide = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

struct Float32 {
    using storage = float;
    static float load(const storage* p) { return *p; }
};
struct BFloat16 {
    using storage = uint16_t;
    static float load(const storage* p) { return from_bfloat16(*p); }
};
struct Float16 {
    using storage = uint16_t;
    static float load(const storage* p) { return from_float16(*p); }
};

// Two sweeps: the maximum, then Σ e^(z−m) and Σ e^(z−m)(z−m). H = log S − T/S, where S and T are those two sums.
template <class T>
void row_statistics(const typename T::storage* row, int64_t vocab, int64_t target, float inverse_temperature, float* logprob,
                    float* entropy) {
    float maximum = -std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < vocab; ++j) maximum = std::max(maximum, T::load(row + j));
    double sum = 0.0, weighted = 0.0;
    for (int64_t j = 0; j < vocab; ++j) {
        const float shifted = (T::load(row + j) - maximum) * inverse_temperature;
        const float weight = std::exp(shifted);
        sum += weight;
        if (weight > 0.0f) weighted += static_cast<double>(weight) * shifted;
    }
    const double log_sum = std::log(sum);
    *logprob = static_cast<float>((T::load(row + target) - maximum) * inverse_temperature - log_sum);
    *entropy = static_cast<float>(log_sum - weighted / sum);
}

template <class T>
void all_rows(const LogitRows& logits, const int64_t* targets, const float* temperature, int64_t temperature_stride,
              float* logprobs, float* entropy, int num_threads) {
    const auto* data = static_cast<const typename T::storage*>(logits.data);
    (void)num_threads;  // unused where the compiler has no OpenMP
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int64_t i = 0; i < logits.num_rows; ++i) {
        row_statistics<T>(data + i * logits.row_stride, logits.vocab, targets[i], 1.0f / temperature[i * temperature_stride],
                          logprobs + i, entropy + i);
    }
}

}  // namespace

void token_logprobs(const LogitRows& logits, const int64_t* targets, const float* temperature, int64_t temperature_stride,
                    float* logprobs, float* entropy, int num_threads) {
    switch (logits.dtype) {
        case DType::float32:
            return all_rows<Float32>(logits, targets, temperature, temperature_stride, logprobs, entropy, num_threads);
        case DType::bfloat16:
            return all_rows<BFloat16>(logits, targets, temperature, temperature_stride, logprobs, entropy, num_threads);
        case DType::float16:
            return all_rows<Float16>(logits, targets, temperature, temperature_stride, logprobs, entropy, num_threads);
    }
}

}  // namespace fastrl
