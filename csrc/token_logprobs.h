// One row of logits → log-probability of its target and entropy of the row. Portable C++; statistics in double sums of fp32 terms.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrl {

enum class DType { float32, bfloat16, float16 };

struct LogitRows {
    const void* data;
    DType dtype;
    int64_t num_rows;
    int64_t vocab;
    int64_t row_stride;  // in elements; the vocabulary is contiguous
};

// Writes logprobs[i] = z_y − logsumexp(z) and entropy[i] = −Σ p log p for z = row_i / temperature (temperature_stride 0: shared).
// Targets must have been checked; a −inf logit contributes nothing. Rows are split over num_threads OpenMP threads.
void token_logprobs(const LogitRows& logits, const int64_t* targets, const float* temperature, int64_t temperature_stride,
                    float* logprobs, float* entropy, int num_threads);

}  // namespace fastrl
