// Four floats at a time with the compiler's own vector type: SSE2, NEON or whatever the target's baseline has.

#include <algorithm>
#include <limits>

#include "elements.h"
#include "exp2_polynomial.h"
#include "sweeps.h"

namespace fastrl {
namespace {

#define FASTRL_TARGET

struct Vec {
    static constexpr int width = 4;
    typedef float Reg __attribute__((vector_size(16)));
    typedef int32_t Ints __attribute__((vector_size(16)));

    template <class Element>
    static Reg load(const Element* p) {
        return Reg{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
    }
    template <class Element>
    static void store(Element* p, Reg x) {
        for (int i = 0; i < width; ++i) p[i] = from_float<Element>(x[i]);
    }
    template <class Element>
    static Reg load_part(const Element* row, int64_t count, float filler) {
        float values[width];
        for (int i = 0; i < width; ++i) values[i] = i < count ? to_float(row[i]) : filler;
        return load(values);
    }
    template <class Element>
    static void store_part(Element* row, int64_t count, Reg x) {
        float values[width];
        store(values, x);
        for (int64_t i = 0; i < count; ++i) row[i] = from_float<Element>(values[i]);
    }

    static Reg set1(float x) { return Reg{x, x, x, x}; }
    static Reg add(Reg a, Reg b) { return a + b; }
    static Reg sub(Reg a, Reg b) { return a - b; }
    static Reg mul(Reg a, Reg b) { return a * b; }
    static Reg div(Reg a, Reg b) { return a / b; }
    static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
    static Reg max(Reg a, Reg b) { return a > b ? a : b; }
    static Reg copy_sign(Reg magnitude, Reg sign) {
        const Ints mask = Ints{} + INT32_MIN;
        return (Reg)(((Ints)magnitude & ~mask) | ((Ints)sign & mask));
    }
    static Reg zero_below(Reg x, Reg u, Reg least) { return (Reg)((Ints)x & ~(u < least)); }
    static Reg exp2(Reg x) {
        const Reg shifter = set1(12582912.0f);  // 1.5·2^23: adding it rounds to an integer
        const Reg whole = (x + shifter) - shifter;
        const Reg rest = x - whole;
        Reg value = set1(exp2_coefficients[exp2_degree]);
        for (int i = exp2_degree - 1; i >= 0; --i) value = fma(value, rest, set1(exp2_coefficients[i]));
        const Ints exponent = __builtin_convertvector(max(set1(-127.0f), whole), Ints) + 127;
        return value * (Reg)(exponent << 23);
    }
    static double reduce_add(Reg x) { return (static_cast<double>(x[0]) + x[1]) + (static_cast<double>(x[2]) + x[3]); }
    static float reduce_max(Reg x) { return std::max(std::max(x[0], x[1]), std::max(x[2], x[3])); }
};

#include "sweeps_body.inl"

}  // namespace

const Sweeps portable_sweeps = make_sweeps("portable");

}  // namespace fastrl
