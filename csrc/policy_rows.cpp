#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "elements.h"
#include "rows.h"
#include "sweeps.h"
#include "token_loss.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fastrl {
namespace {

constexpr double log2_e = 1.44269504088896340736;
constexpr double log2_negligible = -64;  // a whole vocabulary of such probabilities changes nothing: their gradient is written as 0
constexpr double log2_smallest = -122;   // of a gradient: products with it stay away from denormals

size_t element_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

float read_element(const void* row, DType dtype, int64_t j) {
    switch (dtype) {
        case DType::float32: return static_cast<const float*>(row)[j];
        case DType::bfloat16: return to_float(static_cast<const BFloat16*>(row)[j]);
        case DType::float16: return to_float(static_cast<const Float16*>(row)[j]);
    }
    return std::numeric_limits<float>::quiet_NaN();
}

void write_element(void* row, DType dtype, int64_t j, float value) {
    switch (dtype) {
        case DType::float32: static_cast<float*>(row)[j] = value; return;
        case DType::bfloat16: static_cast<BFloat16*>(row)[j] = from_float<BFloat16>(value); return;
        case DType::float16: static_cast<Float16*>(row)[j] = from_float<Float16>(value); return;
    }
}

// log p_y = shifted − log_sum and H = log_sum − weighted/sum, with shifted = (s_y − maximum)/τ.
struct RowStatistics {
    float target_logit;
    double log_sum;
    double logprob;
    double entropy;
};

struct RowKernel {
    const LogitRows& logits;
    const HeadTail& tail;
    const RowInputs& inputs;
    const TokenLoss* loss;  // null: scoring
    bool with_gradient;
    const RowOutputs& outputs;
    const Sweeps& sweeps;

    void* row_data(int64_t row) const {
        return static_cast<char*>(logits.data) + row * logits.row_stride * static_cast<int64_t>(element_size(logits.dtype));
    }

    // Returns false where the target's logit is −inf. `scratch` holds (V,) floats unless the tail is the identity.
    bool run(int64_t row, float* scratch) const {
        void* data = row_data(row);
        const double temperature = inputs.temperature.at(row);
        const float log2_scale = static_cast<float>(log2_e / temperature);
        const int dtype = static_cast<int>(logits.dtype);
        RowSums sums;
        RowStatistics statistics;
        if (tail.is_identity()) {
            sums = sweeps.sums[dtype](data, logits.vocab, log2_scale);
            statistics.target_logit = read_element(data, logits.dtype, inputs.targets[row]);
        } else {
            sweeps.apply_tail[dtype](data, scratch, logits.vocab, tail);
            sums = sweeps.sums[static_cast<int>(DType::float32)](scratch, logits.vocab, log2_scale);
            statistics.target_logit = scratch[inputs.targets[row]];
        }
        statistics.log_sum = std::log(sums.sum);
        statistics.logprob = (static_cast<double>(statistics.target_logit) - sums.maximum) / temperature - statistics.log_sum;
        statistics.entropy = statistics.log_sum - sums.weighted / sums.sum;
        outputs.logprobs[row] = static_cast<float>(statistics.logprob);
        outputs.entropy[row] = static_cast<float>(statistics.entropy);
        const bool is_possible = statistics.target_logit != -std::numeric_limits<float>::infinity();
        if (loss != nullptr) {
            const TokenTerm term = token_term(*loss, inputs, row, statistics.logprob, statistics.entropy);
            outputs.losses[row] = static_cast<float>(inputs.weights.at(row) * term.loss);
            outputs.clipped[row] = term.clipped;
            if (with_gradient) write_gradient(row, data, scratch, sums, statistics, term.slope);
        }
        return is_possible;
    }

    // ∂L/∂s_j = w/τ·[c(δ_jy − p_j) + h·p_j(log p_j + H)], with p_j = e^u/sum and log p_j = u − log_sum.
    void write_gradient(int64_t row, void* data, const float* scratch, const RowSums& sums, const RowStatistics& statistics,
                        double logprob_slope) const {
        const double scale = inputs.weights.at(row) / inputs.temperature.at(row);
        const double slope = scale * logprob_slope, entropy_slope = scale * loss->entropy_coef;
        if (slope == 0 && entropy_slope == 0) {
            std::memset(data, 0, static_cast<size_t>(logits.vocab) * element_size(logits.dtype));
            return;
        }
        const double least = std::max(std::exp2(log2_negligible) * (std::abs(slope) + std::abs(entropy_slope)), std::exp2(log2_smallest));
        double constant = (entropy_slope * (statistics.entropy - statistics.log_sum) - slope) / sums.sum;
        if (std::abs(constant) * sums.sum < least) constant = 0;
        const double per_log2 = entropy_slope / sums.sum / log2_e;
        const double log2_size = std::log2(std::max(std::abs(constant), std::abs(per_log2)));
        const GradientTerms terms{sums.maximum, static_cast<float>(log2_e / inputs.temperature.at(row)), static_cast<float>(constant),
                                  static_cast<float>(per_log2), static_cast<float>(std::max(log2_negligible, log2_smallest - log2_size))};
        const int dtype = static_cast<int>(logits.dtype);
        // The target's own 1 − p_y is formed without cancellation and written last.
        const double probability = std::exp(statistics.logprob);
        double target = slope * -std::expm1(statistics.logprob) + entropy_slope * probability * (statistics.logprob + statistics.entropy);
        if (tail.is_identity()) {
            sweeps.gradient[dtype](data, logits.vocab, terms);
        } else {
            sweeps.tail_gradient[dtype](scratch, data, logits.vocab, terms, tail);
            const double relative = tail.softcap != 0.0f ? statistics.target_logit / static_cast<double>(tail.softcap) : 0.0;
            target *= tail.scale * (1.0 - relative * relative);
        }
        write_element(data, logits.dtype, inputs.targets[row], std::abs(target) < least ? 0.0f : static_cast<float>(target));
    }
};

int64_t run_rows(const RowKernel& kernel, int num_threads) {
    const int64_t num_rows = kernel.logits.num_rows, vocab = kernel.logits.vocab;
    const int64_t rows_per_task = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, vocab));
    const int num_workers = static_cast<int>(std::min<int64_t>(num_threads, (num_rows + rows_per_task - 1) / rows_per_task));
    const bool needs_scratch = !kernel.tail.is_identity();
    std::vector<float> scratch(needs_scratch ? static_cast<size_t>(vocab) * std::max(num_workers, 1) : 0);
    std::atomic<int64_t> first_impossible{num_rows};
#pragma omp parallel for schedule(dynamic, rows_per_task) num_threads(num_workers) if (num_workers > 1)
    for (int64_t row = 0; row < num_rows; ++row) {
#if defined(_OPENMP)
        const int worker = omp_get_thread_num();
#else
        const int worker = 0;
#endif
        if (kernel.run(row, needs_scratch ? scratch.data() + worker * vocab : nullptr)) continue;
        int64_t seen = first_impossible.load();
        while (row < seen && !first_impossible.compare_exchange_weak(seen, row)) {
        }
    }
    return first_impossible.load() == num_rows ? -1 : first_impossible.load();
}

}  // namespace

int64_t score_rows(const LogitRows& logits, const HeadTail& head, const RowInputs& inputs, const RowOutputs& outputs, int num_threads) {
    return run_rows({logits, head, inputs, nullptr, false, outputs, current_sweeps()}, num_threads);
}

int64_t policy_rows(const LogitRows& logits, const HeadTail& head, const RowInputs& inputs, const TokenLoss& loss, bool with_gradient,
                    const RowOutputs& outputs, int num_threads) {
    return run_rows({logits, head, inputs, &loss, with_gradient, outputs, current_sweeps()}, num_threads);
}

}  // namespace fastrl
