// Element types of a row of logits, and their scalar conversions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastrl {

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }
inline float to_float(Float16 value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t exponent = (value.bits >> 10) & 0x1fu;
    const uint32_t mantissa = value.bits & 0x3ffu;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(mantissa), -24);
    return float_of(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest, ties to even.
template <class Element>
Element from_float(float value);
template <>
inline float from_float<float>(float value) {
    return value;
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
    const uint32_t bits = bits_of(value);
    if (std::isnan(value)) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
inline Float16 from_float<Float16>(float value) {
    const uint32_t sign = (bits_of(value) >> 16) & 0x8000u;
    const float magnitude = std::fabs(value);
    if (std::isnan(value)) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
    // Below 2^-14 the step is 2^-24; above, the eleven leading bits are kept.
    if (magnitude < 6.103515625e-05f) return {static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 16777216.0f)))};
    const uint32_t bits = bits_of(magnitude) - (112u << 23);
    return {static_cast<uint16_t>(sign | ((bits + 0xfffu + ((bits >> 13) & 1u)) >> 13))};
}

}  // namespace fastrl
