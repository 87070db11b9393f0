// Sixteen floats at a time: AVX-512 F, BW, DQ, VL (Skylake-SP, Zen 4 and later).

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "elements.h"
#include "exp2_polynomial.h"
#include "sweeps.h"

namespace fastrl {
namespace {

#define FASTRL_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define FASTRL_INLINE static inline __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))

struct Vec {
    static constexpr int width = 16;
    using Reg = __m512;

    FASTRL_INLINE Reg widen(__m256i bits, BFloat16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
    FASTRL_INLINE Reg widen(__m256i bits, Float16) { return _mm512_cvtph_ps(bits); }
    // Rounds half to even in integers; the NaNs that arithmetic makes stay NaN.
    FASTRL_INLINE __m256i narrow(Reg x, BFloat16) {
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), is_odd);
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    }
    FASTRL_INLINE __m256i narrow(Reg x, Float16) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
    FASTRL_INLINE __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

    FASTRL_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
    FASTRL_INLINE void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
    FASTRL_INLINE Reg load_part(const float* p, int64_t count, float filler) {
        return _mm512_mask_loadu_ps(set1(filler), first(count), p);
    }
    FASTRL_INLINE void store_part(float* p, int64_t count, Reg x) { _mm512_mask_storeu_ps(p, first(count), x); }

    template <class Half>
    FASTRL_INLINE Reg load(const Half* p) {
        return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), Half{});
    }
    template <class Half>
    FASTRL_INLINE void store(Half* p, Reg x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x, Half{}));
    }
    template <class Half>
    FASTRL_INLINE Reg load_part(const Half* p, int64_t count, float filler) {
        const Reg values = widen(_mm256_maskz_loadu_epi16(first(count), p), Half{});
        return _mm512_mask_mov_ps(set1(filler), first(count), values);
    }
    template <class Half>
    FASTRL_INLINE void store_part(Half* p, int64_t count, Reg x) {
        _mm256_mask_storeu_epi16(p, first(count), narrow(x, Half{}));
    }

    FASTRL_INLINE Reg set1(float x) { return _mm512_set1_ps(x); }
    FASTRL_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
    FASTRL_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
    FASTRL_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
    FASTRL_INLINE Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
    FASTRL_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
    FASTRL_INLINE Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
    FASTRL_INLINE Reg copy_sign(Reg magnitude, Reg sign) {
        const Reg mask = _mm512_set1_ps(-0.0f);
        return _mm512_or_ps(_mm512_andnot_ps(mask, magnitude), _mm512_and_ps(mask, sign));
    }
    FASTRL_INLINE Reg zero_below(Reg x, Reg u, Reg least) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(u, least, _CMP_NLT_UQ), x);
    }
    FASTRL_INLINE Reg exp2(Reg x) {
        const Reg whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Reg rest = _mm512_sub_ps(x, whole);
        Reg value = set1(exp2_coefficients[exp2_degree]);
#pragma GCC unroll 8
        for (int i = exp2_degree - 1; i >= 0; --i) value = fma(value, rest, set1(exp2_coefficients[i]));
        return _mm512_scalef_ps(value, whole);
    }
    FASTRL_INLINE double reduce_add(Reg x) {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
        return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
    }
    FASTRL_INLINE float reduce_max(Reg x) { return _mm512_reduce_max_ps(x); }
};

#include "sweeps_body.inl"

}  // namespace

const Sweeps avx512_sweeps = make_sweeps("avx512");

}  // namespace fastrl

#endif
