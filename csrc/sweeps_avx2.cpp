// Eight floats at a time: AVX2, FMA and F16C (every x86 server since 2013).

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "elements.h"
#include "exp2_polynomial.h"
#include "sweeps.h"

namespace fastrl {
namespace {

#define FASTRL_TARGET __attribute__((target("avx2,fma,f16c")))
#define FASTRL_INLINE static inline __attribute__((always_inline, target("avx2,fma,f16c")))

struct Vec {
    static constexpr int width = 8;
    using Reg = __m256;

    FASTRL_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
    FASTRL_INLINE Reg load(const BFloat16* p) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    FASTRL_INLINE Reg load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

    FASTRL_INLINE void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
    // Rounds half to even in integers; the NaNs that arithmetic makes stay NaN.
    FASTRL_INLINE void store(BFloat16* p, Reg x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), is_odd);
        const __m256i high = _mm256_srli_epi32(rounded, 16);
        const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    }
    FASTRL_INLINE void store(Float16* p, Reg x) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }

    template <class Element>
    FASTRL_INLINE Reg load_part(const Element* row, int64_t count, float filler) {
        float values[width];
        for (int i = 0; i < width; ++i) values[i] = i < count ? to_float(row[i]) : filler;
        return load(values);
    }
    template <class Element>
    FASTRL_INLINE void store_part(Element* row, int64_t count, Reg x) {
        float values[width];
        store(values, x);
        for (int64_t i = 0; i < count; ++i) row[i] = from_float<Element>(values[i]);
    }

    FASTRL_INLINE Reg set1(float x) { return _mm256_set1_ps(x); }
    FASTRL_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
    FASTRL_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
    FASTRL_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
    FASTRL_INLINE Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
    FASTRL_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
    FASTRL_INLINE Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
    FASTRL_INLINE Reg copy_sign(Reg magnitude, Reg sign) {
        const Reg mask = _mm256_set1_ps(-0.0f);
        return _mm256_or_ps(_mm256_andnot_ps(mask, magnitude), _mm256_and_ps(mask, sign));
    }
    FASTRL_INLINE Reg zero_below(Reg x, Reg u, Reg least) { return _mm256_and_ps(x, _mm256_cmp_ps(u, least, _CMP_NLT_UQ)); }
    FASTRL_INLINE Reg exp2(Reg x) {
        const Reg whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Reg rest = _mm256_sub_ps(x, whole);
        Reg value = set1(exp2_coefficients[exp2_degree]);
#pragma GCC unroll 8
        for (int i = exp2_degree - 1; i >= 0; --i) value = fma(value, rest, set1(exp2_coefficients[i]));
        const __m256i exponent = _mm256_cvtps_epi32(_mm256_max_ps(set1(-127.0f), whole));
        const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23);
        return _mm256_mul_ps(value, _mm256_castsi256_ps(power));
    }
    FASTRL_INLINE double reduce_add(Reg x) {
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
        const __m256d four = _mm256_add_pd(low, high);
        const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
        return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
    }
    FASTRL_INLINE float reduce_max(Reg x) {
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
    }
};

#include "sweeps_body.inl"

}  // namespace

const Sweeps avx2_sweeps = make_sweeps("avx2");

}  // namespace fastrl

#endif
