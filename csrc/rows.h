// Rows of logits → log-probability, entropy, loss and gradient: the types that cross between bindings and kernel.
// The formulas are those of kernels/reference.py; the source of each surrogate is named in kernels/losses.py.
#pragma once

#include <cstdint>

namespace fastrl {

enum class DType { float32, bfloat16, float16 };
enum class Surrogate { reinforce, ppo_clip, cispo };

// (N, V) logits, contiguous along the vocabulary; row_stride in elements.
struct LogitRows {
    void* data;
    DType dtype;
    int64_t num_rows;
    int64_t vocab;
    int64_t row_stride;
};

// One fp32 number per row; stride 0 shares one number, a null pointer means that there is none.
struct RowScalar {
    const float* data;
    int64_t stride;
    float at(int64_t row) const { return data[row * stride]; }
};

// What the head does after its matrix product: s = softcap·tanh(scale·(x + bias) / softcap); softcap 0 leaves the tanh out.
struct HeadTail {
    const float* bias;  // (V,) or null
    float scale;
    float softcap;
    bool is_identity() const { return bias == nullptr && scale == 1.0f && softcap == 0.0f; }
};

struct TokenLoss {
    Surrogate surrogate;
    double parameters[3];
    double kl_coef;
    double entropy_coef;
    double importance_cap;  // negative: no importance weight
};

struct RowInputs {
    const int64_t* targets;
    RowScalar temperature;
    RowScalar advantages;
    RowScalar weights;
    RowScalar old_logprobs;
    RowScalar sampler_logprobs;
    RowScalar ref_logprobs;
};

// (N,) each. losses and clipped are written by policy_rows only; losses are already multiplied by the token weights.
struct RowOutputs {
    float* logprobs;
    float* entropy;
    float* losses;
    uint8_t* clipped;
};

// Scoring: log-probability and entropy of each row. Returns the first row whose target has logit −inf, or −1.
int64_t score_rows(const LogitRows& logits, const HeadTail& head, const RowInputs& inputs, const RowOutputs& outputs, int num_threads);

// Training: also the weighted loss and, with_gradient, each row of logits overwritten by the gradient of Σ losses. Same return value.
int64_t policy_rows(const LogitRows& logits, const HeadTail& head, const RowInputs& inputs, const TokenLoss& loss, bool with_gradient,
                    const RowOutputs& outputs, int num_threads);

}  // namespace fastrl
