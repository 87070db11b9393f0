// The loss of one token and its slope in the log-probability: kernels/surrogates.py and losses.py of one token, in double.
#pragma once

#include <algorithm>
#include <cmath>

#include "rows.h"

namespace fastrl {

struct TokenTerm {
    double loss;
    double slope;  // ∂loss/∂logp
    bool clipped;
};

constexpr double max_log_ratio = 20.0;

inline TokenTerm reinforce(double logprob, double advantage) { return {-advantage * logprob, -advantage, false}; }

// parameters: low, high, dual (0: off).
inline TokenTerm ppo_clip(double log_ratio, double advantage, const double* parameters) {
    const double ratio = std::exp(std::clamp(log_ratio, -max_log_ratio, max_log_ratio));
    const double bounded = std::clamp(ratio, 1.0 - parameters[0], 1.0 + parameters[1]);
    TokenTerm term{std::max(-advantage * ratio, -advantage * bounded), 0.0, false};
    term.clipped = (advantage > 0 && ratio > 1.0 + parameters[1]) || (advantage < 0 && ratio < 1.0 - parameters[0]);
    const double bound = -advantage * parameters[2];
    if (parameters[2] != 0.0 && advantage < 0 && term.loss > bound) {
        term.loss = bound;
        term.clipped = true;
    }
    if (!term.clipped && std::abs(log_ratio) <= max_log_ratio) term.slope = -advantage * ratio;
    return term;
}

// parameters: cap.
inline TokenTerm cispo(double logprob, double log_ratio, double advantage, const double* parameters) {
    const double ratio = std::exp(std::clamp(log_ratio, -max_log_ratio, max_log_ratio));
    const double slope = -std::min(ratio, parameters[0]) * advantage;
    return {slope * logprob, slope, ratio > parameters[0] && advantage != 0};
}

// Before the token's weight. The entropy's own slope is −loss.entropy_coef and is left to the caller.
inline TokenTerm token_term(const TokenLoss& loss, const RowInputs& inputs, int64_t row, double logprob, double entropy) {
    const double advantage = inputs.advantages.at(row);
    const double log_ratio = inputs.old_logprobs.data ? logprob - inputs.old_logprobs.at(row) : 0.0;
    TokenTerm term{};
    switch (loss.surrogate) {
        case Surrogate::reinforce: term = reinforce(logprob, advantage); break;
        case Surrogate::ppo_clip: term = ppo_clip(log_ratio, advantage, loss.parameters); break;
        case Surrogate::cispo: term = cispo(logprob, log_ratio, advantage, loss.parameters); break;
    }
    if (loss.importance_cap >= 0) {
        const double importance = std::min(std::exp(logprob - inputs.sampler_logprobs.at(row)), loss.importance_cap);
        term.loss *= importance;
        term.slope *= importance;
    }
    if (loss.kl_coef != 0) {
        const double raw_ratio = inputs.ref_logprobs.at(row) - logprob;
        const double log_ref_ratio = std::clamp(raw_ratio, -max_log_ratio, max_log_ratio);
        const double ref_ratio = std::exp(log_ref_ratio);
        term.loss += loss.kl_coef * (ref_ratio - log_ref_ratio - 1.0);
        if (std::abs(raw_ratio) <= max_log_ratio) term.slope += loss.kl_coef * (1.0 - ref_ratio);
    }
    if (loss.entropy_coef != 0) term.loss -= loss.entropy_coef * entropy;
    return term;
}

}  // namespace fastrl
