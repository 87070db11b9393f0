// The vectorised passes over one row, one table of them per instruction set. Chosen at run time: one binary runs everywhere.
#pragma once

#include <cstdint>
#include <string>

#include "rows.h"

namespace fastrl {

// Sums over a row with u_j = (s_j − maximum)/τ: sum = Σ e^u, weighted = Σ e^u·u. All −inf: sum = 0.
struct RowSums {
    float maximum;
    double sum;
    double weighted;
};

// gradient_j = e^u·(constant + per_log2·u/ln 2), times the derivative of the head's tail where there is one; 0 below log2_least.
struct GradientTerms {
    float maximum;
    float log2_scale;  // log2(e)/τ: u_j = (s_j − maximum)·log2_scale in base 2
    float constant;
    float per_log2;
    float log2_least;
};

// Each array is indexed by DType. Sources and destinations may be the same row.
struct Sweeps {
    const char* name;
    void (*apply_tail[3])(const void* row, float* capped, int64_t vocab, const HeadTail& tail);
    RowSums (*sums[3])(const void* row, int64_t vocab, float log2_scale);
    void (*gradient[3])(void* row, int64_t vocab, const GradientTerms& terms);
    void (*tail_gradient[3])(const float* capped, void* row, int64_t vocab, const GradientTerms& terms, const HeadTail& tail);
};

extern const Sweeps portable_sweeps;
#if defined(__x86_64__)
extern const Sweeps avx2_sweeps;
extern const Sweeps avx512_sweeps;
#endif

// The fastest table that this processor runs, or the forced one.
const Sweeps& current_sweeps();
// avx512 | avx2 | portable | auto. std::invalid_argument for another name or one that this processor does not run.
void force_sweeps(const std::string& name);

}  // namespace fastrl
